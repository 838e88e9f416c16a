// SPDX-License-Identifier: Apache-2.0
//! Recovery at the start of an agent: adopts each sandbox of a journal, keeps it as failed, or removes it.
//! Touches nothing else.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use anyhow::Context;
use wrenn_api::ErrorCode;
use wrenn_memory::BuildId;
use wrenn_network::{MAX_SLOTS, SlotSpec};
use wrenn_vmm::MicroVm;

use crate::{
    cgroup, directory,
    error::AgentError,
    sandbox::{
        actor::{self, Handle, Start},
        boot,
        entry::{Entry, Thing},
        journal::{Found, Journal, NotUnderstood},
        operations::{self, Fail},
        phase::{Memory, Phase},
        record::{Record, Sandbox},
        release,
        shared::Shared,
        spec::Spec,
        summary::{Stage, Summary, Undo},
    },
};

/// Sandbox recorded by a previous agent.
pub(crate) struct Recorded {
    pub(crate) id: String,
    summary: Summary,
    journal: Result<Journal, NotUnderstood>,
}

impl Recorded {
    /// Network slot.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.summary.slot()
    }

    /// Returns whether the sandbox may run, so that its slot must be kept.
    pub(crate) fn may_run(&self) -> bool {
        let stage = self.summary.stage();
        self.journal.is_err()
            || matches!(stage, Stage::Running { .. } | Stage::Pausing { .. } | Stage::Resuming { .. })
    }

    /// Returns whether its disk has data of its user.
    pub(crate) fn keeps_disk(&self) -> bool {
        let kept = matches!(self.summary.stage(), Stage::Paused { .. } | Stage::Failed { .. });
        self.may_run() || kept && self.summary.has_run()
    }

    /// Generation that it needs.
    pub(crate) fn generation(&self) -> Option<BuildId> {
        self.summary.needed()
    }
}

/// Reads all journals and finishes interrupted removals. Fails on an I/O error, so that the resources of an
/// unreadable journal are not treated as unclaimed.
pub(crate) fn read(sandboxes: &Path) -> anyhow::Result<Vec<Recorded>> {
    fs::create_dir_all(sandboxes)?;
    let content = directory::list(sandboxes)?;
    if !content.foreign.is_empty() {
        tracing::warn!(
            dir = %sandboxes.display(), names = ?content.foreign,
            "foreign files in the directory of sandboxes are ignored; move them elsewhere"
        );
    }
    for dir in content.remains {
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::error!(dir = %dir.display(), %error, "cannot remove the remains of a sandbox");
        }
    }
    let mut records = Vec::new();
    for id in content.ids {
        let dir = directory::of(sandboxes, &id);
        match Journal::open(&dir).with_context(|| format!("sandbox {id}"))? {
            Found::Journal(journal) => {
                records.push(Recorded { id, summary: journal.summary().clone(), journal: Ok(journal) });
            }
            Found::Nothing => remove_empty(&id, &dir),
            Found::NotUnderstood(reason) => {
                tracing::error!(id, %reason, "a sandbox's journal is not understood: the sandbox is left as it is");
                records.push(Recorded { id, summary: Summary::presumed(None), journal: Err(reason) });
            }
        }
    }
    Ok(records)
}

/// Finds the slots of sandboxes whose journals are not understood, from the owner of the VMM's run directory,
/// whose user id contains the slot number. A slot that another journal names is not assigned.
pub(crate) fn presume_slots(sandboxes: &Path, records: &mut [Recorded], uid_base: u32) {
    let named: Vec<u16> = records.iter().filter_map(Recorded::slot).collect();
    for record in records.iter_mut().filter(|record| record.journal.is_err()) {
        let owner = fs::metadata(directory::of_vmm(sandboxes, &record.id)).map(|meta| meta.uid());
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
/// still runs. `restarted` says whether the machine was, since the last agent.
pub(crate) async fn take_up(
    shared: &Arc<Shared>,
    recorded: Recorded,
    restarted: bool,
) -> anyhow::Result<Option<(String, Handle)>> {
    let Recorded { id, summary, journal } = recorded;
    let shared = shared.clone();
    let (sandbox, start) = match journal {
        Ok(journal) => {
            let spec = Arc::new(summary.spec().cloned().unwrap_or_default());
            let record = Record::open(journal);
            let mut sandbox = Sandbox { id: id.clone(), spec, shared, record };
            match known(&mut sandbox, restarted)
                .await
                .with_context(|| format!("sandbox {id} cannot be adopted"))?
            {
                Some(start) => (sandbox, start),
                None => return Ok(None),
            }
        }
        Err(reason) => {
            let message = format!(
                "the agent does not understand the journal of sandbox {id}, and leaves the sandbox as it is: {reason}; \
                 or delete the sandbox"
            );
            let start = Start::In(Phase::Unknown(AgentError::new(ErrorCode::AgentError, message)));
            let (spec, record) = (Arc::new(Spec::default()), Record::presumed(summary));
            (Sandbox { id: id.clone(), spec, shared, record }, start)
        }
    };
    Ok(Some((id, actor::spawn(sandbox, start))))
}

/// Recovers a sandbox whose journal is understood; returns `None` if nothing of it is left.
async fn known(sandbox: &mut Sandbox, restarted: bool) -> anyhow::Result<Option<Start>> {
    // Left by captures that were interrupted.
    if let Err(error) = release::files(sandbox.captures()).await {
        tracing::error!(id = sandbox.id, %error, "cannot remove what is left of a snapshot");
    }
    match sandbox.record.summary().stage() {
        Stage::Empty => {
            if let Err(error) = release::directory(&sandbox.shared.dir, &sandbox.id).await {
                tracing::error!(id = sandbox.id, %error, "cannot remove the remains of a sandbox");
            }
            Ok(None)
        }
        Stage::Running { slot } => Ok(Some(match find(sandbox, slot).await? {
            Some((vm, slot)) => Start::Adopt(vm, slot),
            None => ended(sandbox, restarted).await?,
        })),
        Stage::Pausing { slot } => Ok(Some(match find(sandbox, slot).await? {
            Some((vm, slot)) => go_on(sandbox, vm, slot).await?,
            None => ended(sandbox, restarted).await?,
        })),
        Stage::Resuming { slot } => Ok(Some(match find(sandbox, slot).await? {
            Some((vm, slot)) => Start::Resume(vm, slot),
            None => ended(sandbox, restarted).await?,
        })),
        Stage::Paused { memory, lost } => {
            undo_without_slot(sandbox, &[Thing::Volume]).await;
            Ok(Some(Start::In(Phase::Paused(Memory::recorded(memory, lost)))))
        }
        Stage::Failed { code, message } => {
            let error = AgentError::new(code.parse().unwrap_or(ErrorCode::AgentError), message);
            let keep = sandbox.record.summary().has_run().then_some(Thing::Volume);
            undo_without_slot(sandbox, keep.as_slice()).await;
            Ok(Some(Start::In(Phase::Failed { error, vm: None })))
        }
        Stage::Creating | Stage::Destroying => {
            tracing::info!(id = sandbox.id, "removing an incomplete sandbox");
            forget_slot(sandbox);
            let Err(error) = operations::take_back(sandbox, &mut None).await else { return Ok(None) };
            tracing::error!(id = sandbox.id, %error, "cannot release all resources of a sandbox");
            let message = "it could not be removed completely; delete it again";
            let error = AgentError::new(ErrorCode::AgentError, message);
            Ok(Some(Start::In(Phase::Failed { error, vm: None })))
        }
    }
}

/// Finds the microVM of a sandbox that ran.
async fn find(sandbox: &Sandbox, index: u16) -> anyhow::Result<Option<(Box<dyn MicroVm>, SlotSpec)>> {
    let Sandbox { id, spec, shared, record } = sandbox;
    let slot = shared.plan.slot(index)?;
    let boot = boot::boot_spec(shared, id, spec, &slot);
    let found = shared.vmm.adopt(&boot, record.summary().process()).await?;
    if found.is_some() {
        tracing::info!(id, "adopted");
    }
    Ok(found.map(|vm| (vm, slot)))
}

/// Lets the guest of a sandbox go on that a former agent was about to pause.
async fn go_on(sandbox: &mut Sandbox, vm: Box<dyn MicroVm>, slot: SlotSpec) -> anyhow::Result<Start> {
    vm.resume().await?;
    let base = sandbox.shared.snapshots.base_after(sandbox.record.summary().base());
    sandbox.record.write(vec![Entry::Vmm { process: vm.process(), base }, Entry::Running]).await?;
    Ok(Start::Adopt(vm, slot))
}

/// Records that the microVM of a sandbox has ended. If the machine was restarted, the sandbox is paused without its
/// memory.
async fn ended(sandbox: &mut Sandbox, restarted: bool) -> anyhow::Result<Start> {
    let remedy = "resume it with memory false, which boots it from its disk";
    if restarted {
        let lost = Some(format!("its memory was lost when its host was restarted; {remedy}"));
        let memory = Memory::recorded(None, lost.clone());
        sandbox.record.write(vec![Entry::Paused { memory: None, lost }]).await?;
        undo_without_slot(sandbox, &[Thing::Volume]).await;
        return Ok(Start::In(Phase::Paused(memory)));
    }
    let (code, how) = match cgroup::out_of_memory(&sandbox.id).await {
        Some(why) => {
            (ErrorCode::OutOfMemory, format!("the microVM was killed {why}, while its agent was away"))
        }
        None => (ErrorCode::AgentError, "the microVM ended while its agent was away".to_owned()),
    };
    let error = AgentError::new(code, format!("{how}. Its disk is kept: {remedy}, or delete it"));
    operations::run(&mut Fail::new(error.clone(), None, true), sandbox).await?;
    Ok(Start::In(Phase::Failed { error, vm: None }))
}

/// Forgets the slot of a sandbox that does not run: the pool keeps only those of sandboxes that may run. It has removed
/// this one, and may have built a new one with its number.
fn forget_slot(sandbox: &mut Sandbox) {
    if let Some(index) = sandbox.record.summary().slot() {
        sandbox.record.forget(&Undo::Slot(index));
    }
}

/// Releases what the record says exists, except `keep` and the slot.
async fn undo_without_slot(sandbox: &mut Sandbox, keep: &[Thing]) {
    forget_slot(sandbox);
    if let Err(error) = operations::undo(sandbox, &mut None, keep).await {
        tracing::error!(id = sandbox.id, %error, "cannot release all resources of a sandbox");
    }
}

/// Kills the VMMs of all sandboxes, whatever their journals say.
pub(crate) async fn end_all(sandboxes: &Path) -> Result<(), AgentError> {
    let failed = |error| AgentError::fault("listing the sandboxes", &error);
    for id in directory::list(sandboxes).map_err(failed)?.ids {
        release::end_vmm(&directory::of_vmm(sandboxes, &id), None).await?;
    }
    Ok(())
}

/// Kills the VMMs of sandboxes that will not be adopted, before their slots and user ids are reused.
pub(crate) async fn end_strays(sandboxes: &Path, records: &[Recorded]) {
    for record in records.iter().filter(|record| !record.may_run()) {
        for step in record.summary.undo() {
            let Undo::Vmm(known) = step else { continue };
            let run_dir = directory::of_vmm(sandboxes, &record.id);
            if let Err(error) = release::end_vmm(&run_dir, known.as_ref()).await {
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
        fs::create_dir_all(directory::of_removed(sandboxes, &removed).join("run"))?;
        let mut records = read(sandboxes)?;
        assert_eq!(fs::read_dir(sandboxes)?.count(), 2);
        assert_eq!(fs::read_to_string(&journal)?, text);
        assert!(records.iter().all(Recorded::keeps_disk), "their disks are kept");
        // Owner of the directory of a VMM in slot 7.
        let owner = fs::metadata(sandboxes.join(&newer).join("run"))?.uid();
        presume_slots(sandboxes, &mut records, owner.wrapping_sub(7));
        let slots: Vec<_> = records.iter().map(Recorded::slot).collect();
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
