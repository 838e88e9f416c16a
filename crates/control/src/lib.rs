//! The control plane: REST API over PostgreSQL and Redis
