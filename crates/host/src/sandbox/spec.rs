//! What a sandbox was asked to be. It is the first entry of its journal.

use serde::{Deserialize, Serialize};

/// Enough to describe a sandbox and to speak to its envd after an adoption. The environment is not part of
/// it: envd holds it, and a journal needs no more secrets than it must have. Fields that a former
/// agent did not write have their default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// The template.
    pub(crate) template: String,
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mb: u64,
    /// Disk in MiB.
    pub(crate) disk_size_mb: u64,
    /// The user that commands run as unless they say another.
    pub(crate) default_user: String,
    /// When it was asked for.
    pub(crate) created_at_unix_ms: i64,
    /// envd's access token.
    pub(crate) access_token: String,
}
