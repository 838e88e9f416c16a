// SPDX-License-Identifier: Apache-2.0
//! Control plane as a library: the REST API, with PostgreSQL, Redis and the host agents.
//!
//! Servers are stateless: any number of them may run side by side. PostgreSQL stores the state, Redis the
//! events; the agents run the sandboxes. Another program can build its own server with [`Server::builder`] and
//! an [`Extension`].

mod admin;
mod admission;
pub mod agents;
mod caller;
mod config;
mod db;
mod error;
mod event_store;
mod events;
mod extension;
mod fault;
mod hosts;
mod idempotency;
mod keys;
mod lease;
mod names;
mod proxy;
mod relay;
mod request_trace;
mod routes;
pub mod sandboxes;
mod server;
mod services;
mod serving;
mod signatures;
mod snapshots;
mod stall;
mod state;
mod telemetry;
#[cfg(test)]
mod testing;
mod workers;

pub use admin::{Admin, describe_database};
pub use caller::{Caller, Permission, Permissions, Principal};
pub use config::{AgentTls, Config, Limits, ProxySettings, Settings};
pub use error::Fault;
pub use events::{EventFilter, EventId, Events, Start, Subscription};
pub use extension::Extension;
pub use hosts::Hosts;
pub use idempotency::Idempotency;
pub use keys::Keys;
pub use routes::{Authenticator, HttpService, needs};
pub use sandboxes::Sandboxes;
pub use server::{Server, ServerBuilder, document};
pub use services::Services;
pub use snapshots::Snapshots;
pub use workers::Worker;
