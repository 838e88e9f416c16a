// SPDX-License-Identifier: Apache-2.0
//! Requested properties of a sandbox, the first entry of its journal.

use serde::{Deserialize, Serialize};

/// Everything needed to describe a sandbox and to call its envd after an adoption. Does not contain the
/// environment: envd has it, and a journal should have as few secrets as possible. Fields missing in a
/// journal of an older agent have default values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// Template name.
    pub(crate) template: String,
    /// Number of virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mb: u64,
    /// Disk size in MiB.
    pub(crate) disk_size_mb: u64,
    /// Default user of commands.
    pub(crate) default_user: String,
    /// Time of the request, as Unix time in milliseconds.
    pub(crate) created_at_unix_ms: i64,
    /// Access token of envd.
    pub(crate) access_token: String,
}
