// SPDX-License-Identifier: Apache-2.0
//! Recovery at the start of an agent: adopts each sandbox of a journal, keeps it as failed, or removes it.
//! Touches nothing else.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use anyhow::Context;
use wrenn_api::ErrorCode;
use wrenn_network::{MAX_SLOTS, SlotSpec};
use wrenn_vmm::MicroVm;

use crate::{
    error::AgentError,
    present,
    sandbox::{
        actor::{self, Handle, Shared, Start},
        create,
        journal::{Entry, Found, Journal, NotUnderstood},
        remove,
        spec::Spec,
        summary::{Summary, Undo},
    },
};

/// Sandbox recorded by a previous agent.
pub(crate) struct Record {
    pub(crate) id: String,
    summary: Summary,
    journal: Result<Journal, NotUnderstood>,
}

impl Record {
    /// Network slot.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.summary.slot
    }

    /// Returns whether slot and disk must be kept, because the sandbox may run.
    pub(crate) fn is_kept(&self) -> bool {
        self.journal.is_err() || self.summary.adoptable()
    }
}

/// Reads all journals and finishes interrupted removals. Fails on an I/O error, so that the resources of an
/// unreadable journal are not treated as unclaimed.
pub(crate) fn read(sandboxes: &Path) -> anyhow::Result<Vec<Record>> {
    fs::create_dir_all(sandboxes)?;
    let present = present::look(sandboxes)?;
    if !present.foreign.is_empty() {
        tracing::warn!(
            dir = %sandboxes.display(), names = ?present.foreign,
            "foreign files in the directory of sandboxes are ignored; move them elsewhere"
        );
    }
    for dir in present.remains {
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::error!(dir = %dir.display(), %error, "cannot remove the remains of a sandbox");
        }
    }
    let mut records = Vec::new();
    for id in present.ids {
        let dir = actor::directory(sandboxes, &id);
        match Journal::open(&dir).with_context(|| format!("sandbox {id}"))? {
            Found::Journal(journal) => {
                records.push(Record { id, summary: journal.summary().clone(), journal: Ok(journal) });
            }
            Found::Nothing => remove_empty(&id, &dir),
            Found::NotUnderstood(reason) => {
                tracing::error!(id, %reason, "a sandbox's journal is not understood: the sandbox is left as it is");
                records.push(Record { id, summary: Summary::presumed(None), journal: Err(reason) });
            }
        }
    }
    Ok(records)
}

/// Finds the slots of sandboxes whose journals are not understood, from the owner of the VMM's run directory,
/// whose user id contains the slot number. A slot that another journal names is not assigned.
pub(crate) fn presume_slots(sandboxes: &Path, records: &mut [Record], uid_base: u32) {
    let named: Vec<u16> = records.iter().filter_map(Record::slot).collect();
    for record in records.iter_mut().filter(|record| record.journal.is_err()) {
        let owner = fs::metadata(actor::directory(sandboxes, &record.id).join("run")).map(|meta| meta.uid());
        let index = owner.ok().and_then(|owner| u16::try_from(owner.checked_sub(uid_base)?).ok());
        let slot = index.filter(|index| (1..=MAX_SLOTS).contains(index) && !named.contains(index));
        record.summary = Summary::presumed(slot);
    }
}

/// Removes an empty sandbox directory left by a crash before its journal was written. A directory with
/// content is kept.
fn remove_empty(id: &str, dir: &Path) {
    if let Err(error) = fs::remove_dir(dir) {
        tracing::error!(id, %error, "cannot remove an empty directory of a sandbox");
    }
}

/// Recovers one sandbox; returns `None` if nothing of it is left. Fails if it is unknown whether the sandbox
/// still runs.
pub(crate) async fn take_up(
    shared: &Arc<Shared>,
    record: Record,
) -> anyhow::Result<Option<(String, Handle)>> {
    let Record { id, summary, journal } = record;
    let journal = match journal {
        Ok(journal) => journal,
        Err(reason) => {
            let message = format!(
                "the agent does not understand the journal of sandbox {id}, and leaves the sandbox as it is: {reason}; \
                 or delete the sandbox"
            );
            let start = Start::Unknown(AgentError::new(ErrorCode::AgentError, message));
            let handle = actor::spawn(shared.clone(), id.clone(), Spec::default(), (None, summary), start);
            return Ok(Some((id, handle)));
        }
    };
    let Some(spec) = summary.spec.clone() else {
        // The sandbox has no resources yet.
        if let Err(error) = remove::remove_record(&shared.dir, &id).await {
            tracing::error!(id, %error, "cannot remove the remains of a sandbox");
        }
        return Ok(None);
    };
    let mut known = Known { id: id.clone(), summary, journal };
    let running = known.running(shared, &spec).await;
    let start = match running.with_context(|| format!("sandbox {id} cannot be adopted"))? {
        Some((vm, slot)) => {
            tracing::info!(id, "adopted");
            Start::Adopt(vm, slot)
        }
        None => match known.failure().map(|failure| (failure, true)).or_else(|| known.ended_meanwhile()) {
            Some((failure, told)) => {
                known.undo_all(shared, told).await;
                Start::Failed(failure)
            }
            None => {
                tracing::info!(id, "removing an incomplete sandbox");
                if known.undo_all(shared, true).await
                    && let Ok(()) = remove::remove_record(&shared.dir, &id).await
                {
                    return Ok(None);
                }
                let message = "it could not be removed completely; delete it again";
                Start::Failed(AgentError::new(ErrorCode::AgentError, message))
            }
        },
    };
    let record = (Some(known.journal), known.summary);
    Ok(Some((id.clone(), actor::spawn(shared.clone(), id, spec, record, start))))
}

/// Sandbox whose journal is understood.
struct Known {
    id: String,
    summary: Summary,
    journal: Journal,
}

impl Known {
    fn failure(&self) -> Option<AgentError> {
        let (code, message) = self.summary.failure.as_ref()?;
        Some(AgentError::new(code.parse().unwrap_or(ErrorCode::AgentError), message))
    }

    async fn running(
        &self,
        shared: &Shared,
        spec: &Spec,
    ) -> anyhow::Result<Option<(Box<dyn MicroVm>, SlotSpec)>> {
        let Some(index) = self.summary.slot.filter(|_| self.summary.adoptable()) else { return Ok(None) };
        let slot = shared.plan.slot(index)?;
        let boot = create::boot_spec(shared, &self.id, spec, &slot, None);
        Ok(shared.vmm.adopt(&boot, self.summary.process()).await?.map(|vm| (vm, slot)))
    }

    /// Records the failure of a sandbox that ran but whose VMM has exited. If that cannot be written, the
    /// second value is false, and the slot must stay reserved, because a later start would take it for a
    /// running sandbox's.
    fn ended_meanwhile(&mut self) -> Option<(AgentError, bool)> {
        if !self.summary.adoptable() {
            return None;
        }
        let message =
            "the microVM ended while its agent was away, as after a restart of the host; delete the sandbox";
        let failure = AgentError::new(ErrorCode::AgentError, message);
        let entry =
            Entry::Failed { code: failure.code.as_str().to_owned(), message: failure.message.clone() };
        let told = self.journal.append(&[entry]);
        if let Err(error) = &told {
            tracing::error!(id = self.id, %error, "a failure could not be recorded");
        }
        Some((failure, told.is_ok()))
    }

    /// Releases the sandbox's resources. The pool keeps only the slots of sandboxes that may run; it has
    /// removed others and may have built new ones with their numbers, so those must not be released here. If
    /// `slot_too` is false, a kept slot stays reserved.
    async fn undo_all(&mut self, shared: &Shared, slot_too: bool) -> bool {
        if let Some(index) = self.summary.slot.filter(|_| !self.summary.adoptable() || !slot_too) {
            self.summary.forget(&Undo::Slot(index));
        }
        for step in self.summary.undo() {
            if let Err(error) = remove::undo_step(shared, &self.id, &step).await {
                tracing::error!(id = self.id, %error, "cannot release all resources of a sandbox");
                return false;
            }
            self.summary.forget(&step);
        }
        true
    }
}

/// Kills the VMMs of all sandboxes, whatever their journals say.
pub(crate) async fn end_all(sandboxes: &Path) -> Result<(), AgentError> {
    for id in present::look(sandboxes).map(|present| present.ids).unwrap_or_default() {
        remove::end_vmm(&actor::directory(sandboxes, &id).join("run"), None).await?;
    }
    Ok(())
}

/// Kills the VMMs of sandboxes that will not be adopted, before their slots and user ids are reused.
pub(crate) async fn end_strays(sandboxes: &Path, records: &[Record]) {
    for record in records.iter().filter(|record| !record.is_kept()) {
        for step in record.summary.undo() {
            let Undo::Vmm(known) = step else { continue };
            let run_dir = actor::directory(sandboxes, &record.id).join("run");
            if let Err(error) = remove::end_vmm(&run_dir, known.as_ref()).await {
                tracing::error!(id = record.id, %error, "cannot kill a microVM");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_api::SandboxId;

    use super::*;

    fn begin(sandboxes: &Path) -> anyhow::Result<String> {
        let id = SandboxId::new().to_string();
        fs::create_dir(sandboxes.join(&id))?;
        Journal::begin(&sandboxes.join(&id), &[Entry::Volume])?;
        Ok(id)
    }

    #[test]
    fn what_others_have_put_there_survives_a_start_and_does_not_block_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let sandboxes = dir.path();
        let id = begin(sandboxes)?;
        let files = ["lost+found/inode", "notes.txt", ".snapshot/copy"].map(|name| sandboxes.join(name));
        for file in &files {
            fs::create_dir_all(file.parent().unwrap_or(sandboxes))?;
            fs::write(file, "theirs")?;
        }
        let records = read(sandboxes)?;
        assert_eq!(records.iter().map(|record| &record.id).collect::<Vec<_>>(), [&id]);
        for file in &files {
            assert_eq!(fs::read_to_string(file)?, "theirs", "{}", file.display());
        }
        assert_eq!(fs::read_dir(sandboxes.join("lost+found"))?.count(), 1, "nothing was added");
        Ok(())
    }

    #[test]
    fn remains_and_empty_directories_go_and_what_is_not_understood_stays_with_its_slot() -> anyhow::Result<()>
    {
        let dir = tempfile::tempdir()?;
        let sandboxes = dir.path();
        let [empty, without, newer, removed] = [(); 4].map(|()| SandboxId::new().to_string());
        for id in [&empty, &without, &newer] {
            fs::create_dir(sandboxes.join(id))?;
        }
        fs::create_dir(sandboxes.join(&without).join("run"))?;
        fs::create_dir(sandboxes.join(&newer).join("run"))?;
        let journal = sandboxes.join(&newer).join("journal.json");
        let text = "{\"journal\":3,\"agent\":\"9.1.0\"}\n";
        fs::write(&journal, text)?;
        fs::create_dir_all(present::remains_of(sandboxes, &removed).join("run"))?;
        let mut records = read(sandboxes)?;
        assert_eq!(fs::read_dir(sandboxes)?.count(), 2);
        assert_eq!(fs::read_to_string(&journal)?, text);
        assert!(records.iter().all(Record::is_kept), "their disks are kept");
        // Owner of the directory of a VMM in slot 7.
        let owner = fs::metadata(sandboxes.join(&newer).join("run"))?.uid();
        presume_slots(sandboxes, &mut records, owner.wrapping_sub(7));
        let slots: Vec<_> = records.iter().map(Record::slot).collect();
        if owner >= 7 {
            assert_eq!(slots, [Some(7), Some(7)]);
        }
        presume_slots(sandboxes, &mut records, owner);
        assert!(records.iter().all(|record| record.slot().is_none()), "slot 0 is none");
        assert!(
            !records.iter().any(|record| record.summary.undo().is_empty()),
            "a destroy looks for what there is"
        );
        Ok(())
    }
}
