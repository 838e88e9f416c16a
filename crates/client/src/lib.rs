// SPDX-License-Identifier: Apache-2.0
//! Client of Wrenn's REST API: sandboxes, commands, files and events over one HTTP connection pool.

mod directories;
mod error;
mod events;
mod files;
mod ports;
mod processes;
mod sandboxes;
mod sse;
mod terminals;
mod transport;
mod watch;
mod websocket;

pub use error::Error;
pub use events::{Event, EventFilter};
pub use files::{FileContent, ReadOptions, WriteOptions};
pub use ports::PortConnection;
pub use processes::{ProcessEvent, ProcessInput, ProcessStream};
pub use reqwest::Body;
pub use sandboxes::SandboxFilter;
pub use terminals::{Terminal, TerminalEvent, TerminalInput};
pub use transport::Client;
pub use watch::FileChanges;

/// Result of an API call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
