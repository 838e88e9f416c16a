// SPDX-License-Identifier: Apache-2.0
//! Services of a server, for its surfaces, workers and extensions.

use std::sync::Arc;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access, accounts::Accounts, audit::Audit, builds::Builds, channels::Channels, events::Events,
    hosts::Hosts, images::Images, keys::Keys, oauth::OAuth, platform::Platform, sandboxes::Sandboxes,
    signatures::Signatures, snapshots::Snapshots, state::State, teams::Teams, templates::Templates,
    usage::Usage,
};

/// All services of a server; cheap to clone.
#[derive(Clone)]
pub struct Services {
    state: Arc<State>,
}

impl Services {
    pub(crate) const fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Sandboxes, their commands and files.
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.state.clone())
    }

    /// Named snapshots of sandboxes.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.state.clone())
    }

    /// Templates that sandboxes are created from.
    pub fn templates(&self) -> Templates {
        Templates::new(self.state.clone())
    }

    /// Builds of templates.
    pub fn builds(&self) -> Builds {
        Builds::new(self.state.clone())
    }

    /// Images that teams use and upload.
    pub fn images(&self) -> Images {
        Images::new(self.state.clone())
    }

    /// Sign-in by accounts at providers.
    pub(crate) fn oauth(&self) -> OAuth {
        OAuth::new(self.state.clone())
    }

    /// Events of sandboxes, snapshots and hosts.
    pub fn events(&self) -> Events {
        Events::new(self.state.clone())
    }

    /// Channels, to which events are delivered.
    pub fn channels(&self) -> Channels {
        Channels::new(self.state.clone())
    }

    /// The audit log.
    pub fn audit(&self) -> Audit {
        Audit::new(self.state.clone())
    }

    /// What teams have used, and statistics.
    pub fn usage(&self) -> Usage {
        Usage::new(self.state.clone())
    }

    /// Teams, their members, and invitations into them.
    pub fn teams(&self) -> Teams {
        Teams::new(self.state.clone())
    }

    /// What administrators of the platform see and change of all teams.
    pub fn platform(&self) -> Platform {
        Platform::new(self.state.clone())
    }

    /// Accounts of users.
    pub fn accounts(&self) -> Accounts {
        Accounts::new(self.state.clone())
    }

    /// Hosts.
    pub fn hosts(&self) -> Hosts {
        Hosts::new(self.state.access_db.clone())
    }

    /// API keys of teams.
    pub fn keys(&self) -> Keys {
        Keys::new(self.state.clone())
    }

    /// Who may do what: callers by their credentials.
    pub fn access(&self) -> &Access {
        &self.state.access
    }

    /// Signatures of URLs of files.
    pub(crate) fn signatures(&self) -> &Signatures {
        &self.state.signatures
    }

    /// The database, for the tables of an extension: those of the server are no part of this library's interface.
    pub fn database(&self) -> &PgPool {
        &self.state.db
    }

    /// Cancelled when the server stops.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.state.shutdown
    }

    /// State of the server, for what is not offered to extensions: admission, metrics, health.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::sources;

    /// What is HTTP: the surfaces, the listener, and what puts them together.
    const HTTP: [&str; 6] = ["routes/", "serving/", "proxy/", "server.rs", "extension.rs", "testing.rs"];

    #[test]
    fn nothing_below_the_surfaces_knows_http() {
        // In two parts, so that this file does not have them.
        let words = [concat!("ax", "um::"), concat!("Status", "Code")];
        for (file, text) in sources() {
            let below = !HTTP.iter().any(|part| file.starts_with(part));
            let known = words.iter().find(|word| text.contains(**word));
            assert!(!below || known.is_none(), "{file} uses {known:?}");
        }
    }
}
