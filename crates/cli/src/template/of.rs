// SPDX-License-Identifier: Apache-2.0
//! Whose templates a command is about: the team's, or the platform's.

use wrenn_client::Client;

/// Arguments of commands that are about templates of the team or of the platform.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Of {
    /// Of the platform, whose templates all teams can use; the API key must be that of an administrator
    #[arg(long)]
    pub(super) platform: bool,
}

impl Of {
    /// Returns the client for them.
    pub(super) fn client(self, client: &Client) -> Client {
        if self.platform { client.for_platform() } else { client.clone() }
    }
}

/// What a command that is shown needs to be about the same builds as this client.
pub(super) fn flag(client: &Client) -> &'static str {
    if client.is_of_platform() { " --platform" } else { "" }
}
