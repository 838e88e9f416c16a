// SPDX-License-Identifier: Apache-2.0
//! Client of Wrenn's REST API: sandboxes, commands, files, events, templates and their builds, users, teams and their keys,
//! over one HTTP connection pool.

mod accounts;
mod admin;
mod audit;
mod builds;
mod channels;
mod directories;
mod error;
mod events;
mod files;
mod images;
mod keys;
mod metrics;
mod paging;
mod ports;
mod processes;
mod providers;
mod reconnecting;
mod sandboxes;
mod sse;
mod teams;
mod templates;
mod terminals;
mod transport;
mod usage;
mod watch;
mod websocket;

pub use audit::AuditFilter;
pub use builds::BuildLogEvent;
pub use error::Error;
pub use events::{Event, EventFilter};
pub use files::{FileContent, ReadOptions, WriteOptions};
pub use ports::PortConnection;
pub use processes::{ProcessEvent, ProcessInput, ProcessStream};
pub use reqwest::Body;
pub use sandboxes::SandboxFilter;
pub use terminals::{Terminal, TerminalEvent, TerminalInput};
pub use transport::Client;
pub use usage::UsageDays;
pub use watch::FileChanges;

/// Result of an API call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
