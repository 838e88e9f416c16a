// SPDX-License-Identifier: Apache-2.0
//! Services of a server, for its surfaces, workers and extensions.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    events::Events, hosts::Hosts, keys::Keys, sandboxes::Sandboxes, signatures::Signatures,
    snapshots::Snapshots, state::State,
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

    /// Events of sandboxes.
    pub fn events(&self) -> Events {
        Events::new(self.state.clone())
    }

    /// Hosts.
    pub fn hosts(&self) -> Hosts {
        Hosts::new(self.state.access.clone())
    }

    /// API keys.
    pub fn keys(&self) -> &Keys {
        &self.state.keys
    }

    /// Signatures of URLs of files.
    pub(crate) fn signatures(&self) -> &Signatures {
        &self.state.signatures
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
