// SPDX-License-Identifier: Apache-2.0
//! Images of registries, the accounts with which they are pulled, and images that are uploaded.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HostId;

/// Account of a registry. A token is a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"username": "robot", "password": "a token"}))]
#[serde(deny_unknown_fields)]
pub struct RegistryAccount {
    /// Name of the account: at most 255 characters, and no colon.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\x00-\\x1f\\x7f:]+$")]
    pub username: String,
    /// Its password, or a token: at most 16384 characters.
    #[schema(min_length = 1, max_length = 16_384, pattern = "^[^\\x00-\\x1f\\x7f]+$")]
    pub password: String,
}

// By hand: what is printed must not have the password.
impl fmt::Debug for RegistryAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAccount").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An image that the team has uploaded, or one of a registry that hosts have for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"reference": "uploaded:app:1", "uploaded": true,
    "digest": "sha256:3d868b5eb908155f3784317b3dda2941df87bbbbaa4608f84881de66d9bb297b", "size_mb": 117,
    "hosts": ["host03halx8fdhw2fu3txwbd0kdw0"], "last_used_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Image {
    /// Its whole reference, by which sandboxes and recipes name it.
    pub reference: String,
    /// Whether it was uploaded. It stays until it is deleted; one of a registry goes when nobody uses it.
    pub uploaded: bool,
    /// Digest of the image for the hosts' processor.
    pub digest: String,
    /// Size of the smallest disk of a sandbox from it, in MiB.
    pub size_mb: u64,
    /// Hosts that have it.
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<HostId>,
    /// When something was last created from it, or it was uploaded.
    pub last_used_at: DateTime<Utc>,
}

/// The image of a registry, or the one that was uploaded, that a sandbox was created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"reference": "debian:bookworm", "command": ["bash"],
    "digest": "sha256:3d868b5eb908155f3784317b3dda2941df87bbbbaa4608f84881de66d9bb297b"}))]
pub struct SandboxImage {
    /// The reference, as in the request.
    pub reference: String,
    /// Digest of the image for the host's processor.
    pub digest: String,
    /// What the image runs: its entrypoint with its arguments. It was not started. Empty if the image names none, or one of more
    /// than 64 KiB.
    pub command: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_printed() {
        let (username, password) = ("robot".to_owned(), "hunter2".to_owned());
        let account = RegistryAccount { username, password };
        assert_eq!(format!("{account:?}"), r#"RegistryAccount { username: "robot", .. }"#);
    }
}
