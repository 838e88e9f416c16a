// SPDX-License-Identifier: Apache-2.0
//! Description of an artifact for the agent that takes it in, as JSON: what is in the records of this agent.

use serde::{Deserialize, Serialize};
use wrenn_api::ErrorCode;
use wrenn_memory::{BLOCK_SIZE, Origin};

use super::format::{Head, Kind, Name, RECORD_MAX, damaged, malformed};
use crate::{config::Limits, error::AgentError, images::Image, snapshots::named::NamedSnapshot};

/// Maximum length of the state of a snapshot's devices, in bytes.
const STATE_MAX: u64 = 256 << 20;
/// Bytes that the file of a memory may have beyond the memory.
const MEMORY_MORE: u64 = 64 << 20;

/// What an artifact is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A named snapshot, and what its memory was made with, if it has one. The generation is that of the host it comes from.
    Snapshot { snapshot: Box<NamedSnapshot>, origin: Option<Origin> },
    /// An image.
    Image(Image),
}

impl Record {
    /// Encodes the record. Fails if no host would take it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, AgentError> {
        let text = serde_json::to_vec(self).map_err(|error| AgentError::fault("exporting", &error))?;
        if text.len() > RECORD_MAX {
            let message = format!("its environment is larger than {RECORD_MAX} bytes, so it cannot be moved");
            return Err(AgentError::new(ErrorCode::ExceedsCapacity, message));
        }
        Ok(text)
    }

    /// Decodes the record of an artifact with this head, and checks that both say the same.
    pub(super) fn decode(text: &[u8], head: &Head) -> Result<Self, AgentError> {
        // The error of the parser may quote what is in the record.
        let parsed = if text.len() > RECORD_MAX { None } else { serde_json::from_slice(text).ok() };
        let record: Self = parsed.ok_or_else(|| damaged(head.kind, "its record cannot be read"))?;
        let has = |name| head.files.contains_key(&name);
        let disk = head.files.get(&Name::Disk).copied().unwrap_or_default();
        let fits = match &record {
            Self::Snapshot { snapshot, origin } => {
                let with_memory = origin.is_some() && has(Name::Memory) && has(Name::State);
                let without = origin.is_none() && !has(Name::Memory) && !has(Name::State);
                head.kind == Kind::Snapshot
                    && snapshot.id == head.id
                    && snapshot.disk_size_mb.checked_mul(1 << 20) == Some(disk)
                    && if snapshot.without_memory { without } else { with_memory }
            }
            Self::Image(image) => {
                head.kind == Kind::Image
                    && image.id == head.id
                    && head.files.len() == 1
                    && image.size_mb >= disk.div_ceil(1 << 20)
            }
        };
        if fits { Ok(record) } else { Err(damaged(head.kind, "its record does not fit its files")) }
    }
}

/// Checks that an artifact has a disk, and that no file of it is larger than this host takes.
pub(super) fn check_sizes(head: &Head, limits: &Limits) -> Result<(), AgentError> {
    if head.files.get(&Name::Disk).is_none_or(|length| *length == 0) {
        return Err(malformed("it has no disk"));
    }
    if head.files.get(&Name::Memory).is_some_and(|length| !length.is_multiple_of(u64::from(BLOCK_SIZE))) {
        return Err(malformed(format!("its memory is no whole blocks of {BLOCK_SIZE} bytes")));
    }
    for (name, length) in &head.files {
        let (most, key) = match name {
            Name::Disk => (limits.disk_size_mb << 20, "agent.max_disk_size_mb"),
            Name::Memory => ((limits.memory_mb << 20) + MEMORY_MORE, "agent.max_memory_mb"),
            Name::State => (STATE_MAX, ""),
        };
        if *length > most {
            let more = if key.is_empty() { String::new() } else { format!(": raise {key} to take it") };
            let message = format!(
                "the {name} of the {} has {length} bytes, and this host takes at most {most}{more}",
                head.kind
            );
            return Err(AgentError::new(ErrorCode::ExceedsCapacity, message));
        }
    }
    Ok(())
}
