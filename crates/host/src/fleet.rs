// SPDX-License-Identifier: Apache-2.0
//! Fleet check: the agent destroys sandboxes only for control planes of its own fleet with the highest epoch
//! seen.
//!
//! A database that was restored from a backup or replaced does not know the newest sandboxes of a host and
//! would have them destroyed. It has a lower epoch or another fleet id: it may read sandboxes and run
//! commands, but destroys nothing until an operator confirms it by removing the file `fleet`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use wrenn_api::ErrorCode;
use wrenn_os::atomic_file;
use wrenn_rpc::{Foreign, host::v1::Fleet};

use crate::error::{AgentError, of_files};

/// Maximum length of a fleet id in bytes.
const ID_MAX: usize = 64;

/// Fleet of this agent.
#[derive(Debug)]
pub(crate) struct Fleets {
    file: PathBuf,
    seen: Mutex<Option<Seen>>,
}

/// Fleet and epoch as stored on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    id: String,
    epoch: u64,
}

impl Fleets {
    /// Reads the fleet stored by a previous agent of this state directory.
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let file = state_dir.join("fleet");
        let told = || {
            format!(
                "{} does not say which control plane this host belongs to; remove it to accept the next one that asks",
                file.display()
            )
        };
        let seen = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(serde_json::from_slice(&read.with_context(told)?).with_context(told)?),
        };
        Ok(Self { file, seen: Mutex::new(seen) })
    }

    /// Rejects a fleet for which this agent destroys nothing. Accepts the first fleet, and higher epochs of
    /// the same fleet, which are on disk when this returns. Accepts calls without a fleet.
    pub(crate) async fn check(&self, fleet: Option<&Fleet>) -> Result<(), AgentError> {
        let Some(fleet) = fleet.filter(|fleet| !fleet.id.is_empty()) else { return Ok(()) };
        if fleet.id.len() > ID_MAX {
            return Err(AgentError::new(ErrorCode::InvalidRequest, "the fleet's id is too long"));
        }
        let mut seen = self.seen.lock().await;
        if let Some(cause) = seen.as_ref().and_then(|seen| quarantine(seen, fleet)) {
            return Err(AgentError::new(ErrorCode::Conflict, cause));
        }
        if seen.as_ref().is_some_and(|seen| seen.epoch == fleet.epoch) {
            return Ok(());
        }
        let next = Seen { id: fleet.id.clone(), epoch: fleet.epoch };
        let (file, text) = (self.file.clone(), serde_json::to_vec(&next).unwrap_or_default());
        let written =
            tokio::task::spawn_blocking(move || atomic_file::write(&file, &text, 0o600, None)).await;
        written
            .unwrap_or_else(|error| Err(error.into()))
            .map_err(|error| of_files("keeping the control plane's epoch", &error))?;
        if seen.is_none() {
            tracing::info!(fleet = %Foreign(&next.id), "this host belongs to a fleet from now on");
        }
        *seen = Some(next);
        Ok(())
    }
}

/// Returns why this agent destroys nothing for the fleet, if so.
fn quarantine(seen: &Seen, asks: &Fleet) -> Option<String> {
    const WAY_OUT: &str = "nothing is destroyed for it. If it is the right one, remove the file \"fleet\" from the \
                           agent's directory and restart the agent";
    if asks.id != seen.id {
        return Some(format!(
            "the control plane has another database than the one this host belongs to; {WAY_OUT}"
        ));
    }
    let told = format!(
        "the control plane's database is older (epoch {}) than one that this host has seen (epoch {}), as after a \
         restore; {WAY_OUT}",
        asks.epoch, seen.epoch
    );
    (asks.epoch < seen.epoch).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(id: &str, epoch: u64) -> Fleet {
        Fleet { id: id.into(), epoch, ..Default::default() }
    }

    #[tokio::test]
    async fn an_older_or_another_database_is_refused_also_by_the_next_agent() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let fleets = Fleets::open(dir.path())?;
        fleets.check(None).await?;
        fleets.check(Some(&fleet("a", 4))).await?;
        fleets.check(Some(&fleet("a", 7))).await?;
        fleets.check(Some(&fleet("a", 7))).await?;
        for fleets in [fleets, Fleets::open(dir.path())?] {
            for refused in [fleet("a", 6), fleet("b", 7), fleet("b", 8)] {
                let error = fleets.check(Some(&refused)).await.expect_err("refused");
                assert_eq!(error.code, ErrorCode::Conflict);
                assert!(error.message.contains("\"fleet\""), "{error}");
            }
            fleets.check(Some(&fleet("a", 7))).await?;
        }
        fs::remove_file(dir.path().join("fleet"))?;
        Fleets::open(dir.path())?.check(Some(&fleet("b", 1))).await?;
        Ok(())
    }

    #[tokio::test]
    async fn an_epoch_that_cannot_be_kept_is_not_accepted() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let fleets = Fleets::open(dir.path())?;
        fs::create_dir(dir.path().join("fleet"))?;
        let error = fleets.check(Some(&fleet("a", 1))).await.expect_err("not on disk");
        assert_eq!(error.code, ErrorCode::AgentError);
        assert!(Fleets::open(dir.path()).is_err(), "what cannot be read is not guessed");
        fs::remove_dir(dir.path().join("fleet"))?;
        fleets.check(Some(&fleet("a", 1))).await?;
        Ok(())
    }
}
