// SPDX-License-Identifier: Apache-2.0
//! Control plane as a library: the REST API, with PostgreSQL, Redis and the host agents.
//!
//! Servers are stateless: any number of them may run side by side. PostgreSQL stores the state, Redis the
//! events; the agents run the sandboxes. Another program can build its own server with [`Server::builder`] and
//! an [`Extension`].

// Other programs are built with what is public here: it can grow without breaking them, and they can name all of it.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unnameable_types)]

mod access;
mod accounts;
mod admin;
mod admission;
pub mod agents;
mod announcements;
mod artifacts;
mod attempts;
mod audit;
mod builds;
mod by;
mod caller;
mod channels;
mod claims;
mod config;
mod contact;
mod db;
mod deeds;
mod env_config;
mod error;
mod event_store;
mod events;
mod extension;
mod fault;
mod held;
mod hooks;
mod hosts;
mod idempotency;
mod images;
mod keys;
mod lease;
mod links;
mod mail;
#[doc(hidden)]
pub mod measured;
mod names;
mod networks;
mod oauth;
mod passwords;
mod place;
mod platform;
mod providers;
mod proxy;
mod public_url;
mod quotas;
mod receivers;
mod relay;
mod request_trace;
mod routes;
pub mod sandboxes;
mod secrets;
mod server;
mod services;
mod serving;
mod signatures;
mod singleton;
mod snapshots;
mod stall;
mod state;
mod teams;
mod telemetry;
mod template_store;
mod templates;
#[cfg(test)]
mod testing;
mod upload;
mod usage;
mod workers;

pub use access::Access;
pub use accounts::{Accounts, Device, Entry};
pub use admin::{Admin, SignInLink, describe_database};
pub use audit::{Audit, Export, Recorded};
pub use builds::Builds;
pub use caller::{Caller, Permission, Permissions, Principal};
pub use channels::{Channels, Page as ChannelPage};
pub use config::{
    AgentTls, BuildSettings, ChannelSettings, Config, Limits, MailSettings, OAuthSettings, ProxySettings,
    Settings, SmtpTls, TemplateSettings,
};
pub use db::extensions::Migrations;
pub use deeds::{AuditFilter, AuditResource};
pub use error::Fault;
pub use events::{EventFilter, EventId, Events, Start, Subscription};
pub use extension::Extension;
pub use hooks::Hooks;
pub use hosts::Hosts;
pub use idempotency::Idempotency;
pub use images::Images;
pub use keys::{KeyPage, Keys};
pub use platform::{ListedTeams as AllTeams, ListedUsers, Platform, SandboxFilter, UserFilter};
pub use receivers::new_channel_key;
pub use routes::{Authenticator, HttpService, needs, needs_in_team};
pub use sandboxes::Sandboxes;
pub use server::{Server, ServerBuilder, document};
pub use services::Services;
pub use snapshots::Snapshots;
pub use teams::{ListedInvitations, ListedMembers, ListedMine, ListedTeams, Teams};
pub use templates::Templates;
pub use usage::Usage;
pub use workers::Worker;
