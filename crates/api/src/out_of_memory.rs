// SPDX-License-Identifier: Apache-2.0
//! Processes that the kernel of a guest killed for want of memory.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process that the kernel of the guest killed for want of memory, as the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"at": "2026-01-31T09:35:00Z", "pid": 412, "command": "python3"}))]
pub struct OutOfMemory {
    /// When it was killed, by the clock of the guest.
    pub at: DateTime<Utc>,
    /// Its process id in the guest; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pid: Option<u32>,
    /// Name of its program, as the kernel has it: at most 15 bytes; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub command: Option<String>,
}
