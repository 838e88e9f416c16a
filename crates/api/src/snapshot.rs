// SPDX-License-Identifier: Apache-2.0
//! Named snapshots of sandboxes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SandboxId;

/// The snapshot to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0", "name": "after-setup"}))]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The sandbox, which runs or is paused.
    #[schema(value_type = String, pattern = "^sb[0-9a-e][0-9a-z]{24}$")]
    pub sandbox_id: SandboxId,
    /// Name of the snapshot, which no template has, nor a snapshot of the team that stays. Default: `template-` and 8 digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$")]
    pub name: Option<String>,
}

/// A named snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "after-setup", "template": "minimal", "vcpus": 1, "memory_mb": 512, "disk_size_mb": 5120,
    "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Template of its sandbox.
    pub template: String,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Size of the disk in MiB.
    pub disk_size_mb: u32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}
