// SPDX-License-Identifier: Apache-2.0
//! Extensions: what another program adds to the control plane when it builds its own server.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use crate::{
    db::extensions::Migrations, hooks::Hooks, routes::Authenticator, services::Services, workers::Worker,
};

/// Extension of a server. All its parts are optional.
pub trait Extension: Send + Sync + 'static {
    /// Name of the extension, for messages.
    fn name(&self) -> &'static str;

    /// Routes, each declared with the permission that it needs ([`crate::needs`]). They become part of the
    /// OpenAPI document. Their state is given later, so that the document can be printed without a database.
    fn routes(&self) -> OpenApiRouter<Services> {
        OpenApiRouter::new()
    }

    /// Migrations of its tables, which are in a schema of its own. They run after those of the server.
    fn migrations(&self) -> Option<Migrations> {
        None
    }

    /// Background tasks.
    fn workers(&self, _services: &Services) -> Vec<Worker> {
        Vec::new()
    }

    /// Authenticators, which are asked in their order after those of the server.
    fn authenticators(&self, _services: &Services) -> Vec<Arc<dyn Authenticator>> {
        Vec::new()
    }

    /// What it does when sandboxes are created and change.
    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        None
    }
}
