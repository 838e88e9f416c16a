// SPDX-License-Identifier: Apache-2.0
//! Providers of accounts with which users sign in.

pub(crate) mod github;

use wrenn_api::ErrorCode;

use self::github::GitHub;
use crate::{config::OAuthSettings, error::Fault};

/// Providers of accounts that a server knows.
pub(crate) struct Providers {
    github: Option<GitHub>,
}

impl Providers {
    /// Creates them. Fails if the settings do not fit together.
    pub(crate) fn new(settings: &OAuthSettings, public_url: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self { github: GitHub::new(settings, public_url)? })
    }

    /// Returns the provider with this name. Fails with `not_found` if there is none.
    pub(crate) fn find(&self, name: &str) -> Result<&GitHub, Fault> {
        let github = self.github.as_ref().filter(|_| name == github::NAME);
        github.ok_or_else(|| {
            let message = "this server has no such provider: sign in by password, or ask its operator to configure GitHub \
                           (server.github_client_id)";
            Fault::new(ErrorCode::NotFound, message)
        })
    }
}
