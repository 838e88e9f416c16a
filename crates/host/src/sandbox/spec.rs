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
    /// Directory of commands that name none; empty for the user's home.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) default_workdir: String,
    /// Time of the request, as Unix time in milliseconds.
    pub(crate) created_at_unix_ms: i64,
    /// Access token of envd.
    pub(crate) access_token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agents before this field wrote and read journals without it.
    #[test]
    fn a_journal_has_a_working_directory_only_if_there_is_one() -> anyhow::Result<()> {
        for workdir in ["", "/app"] {
            let spec = Spec { default_workdir: workdir.to_owned(), ..Spec::default() };
            let text = serde_json::to_string(&spec)?;
            assert_eq!(text.contains("workdir"), !workdir.is_empty(), "{text}");
            assert_eq!(serde_json::from_str::<Spec>(&text)?, spec);
        }
        Ok(())
    }
}
