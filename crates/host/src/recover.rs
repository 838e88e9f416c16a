//! The start of an agent after another one: each sandbox in the journal is adopted, kept as a failure, or
//! undone; nothing else is touched.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use wrenn_api::ErrorCode;
use wrenn_network::SlotSpec;
use wrenn_vmm::{MicroVm, ProcessId};

use crate::{
    error::AgentError,
    present,
    sandbox::{
        actor::{self, Handle, Shared, Start},
        create,
        journal::{Entry, Journal, JournalError, Undo, adoptable, forget, undo},
        remove,
        spec::Spec,
    },
};

/// One sandbox that a former agent wrote down.
pub(crate) struct Record {
    pub(crate) id: String,
    journal: Journal,
    entries: Vec<Entry>,
}

impl Record {
    fn spec(&self) -> Option<&Spec> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Spec(spec) => Some(spec),
            _ => None,
        })
    }

    fn failure(&self) -> Option<AgentError> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Failed { code, message } => {
                Some(AgentError::new(code.parse().unwrap_or(ErrorCode::AgentError), message))
            }
            _ => None,
        })
    }

    /// Its network slot.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Slot { index } => Some(*index),
            _ => None,
        })
    }

    fn process(&self) -> Option<&ProcessId> {
        // The last: a guest that did not come up was booted once more.
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Vmm { process } => Some(process),
            _ => None,
        })
    }

    /// Whether it may still run.
    pub(crate) fn adoptable(&self) -> bool {
        self.spec().is_some() && self.slot().is_some() && adoptable(&self.entries)
    }
}

/// Reads every journal. Directories that were being removed are removed; one whose journal makes no sense is
/// reported. Fails where the kernel does not give one: what it holds must not be taken for nobody's.
pub(crate) fn read(sandboxes: &Path) -> anyhow::Result<Vec<Record>> {
    fs::create_dir_all(sandboxes)?;
    let present = present::look(sandboxes)?;
    if !present.foreign.is_empty() {
        tracing::warn!(
            dir = %sandboxes.display(), names = ?present.foreign,
            "what is no sandbox's is left alone; keep it elsewhere"
        );
    }
    for dir in present.remains {
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::error!(dir = %dir.display(), %error, "the remains of a sandbox could not be removed");
        }
    }
    let mut records = Vec::new();
    for id in present.ids {
        let dir = actor::directory(sandboxes, &id);
        match Journal::open(&dir) {
            Ok(Some((journal, entries))) => records.push(Record { id, journal, entries }),
            Ok(None) => remove_empty(&id, &dir),
            Err(error @ JournalError::Io { .. }) => return Err(error).context(format!("sandbox {id}")),
            Err(error) => tracing::error!(id, %error, "a sandbox's journal cannot be used; it is left alone"),
        }
    }
    Ok(records)
}

/// Removes a directory in which a crash came before its journal. Whatever is in one without a journal, the agent has not
/// put it there.
fn remove_empty(id: &str, dir: &Path) {
    if let Err(error) = fs::remove_dir(dir) {
        tracing::error!(id, %error, "a sandbox's directory has no journal; it is left alone");
    }
}

/// Takes up one sandbox; `None` when nothing of it is left. Fails where it cannot be known whether it still runs.
pub(crate) async fn take_up(
    shared: &Arc<Shared>,
    mut record: Record,
) -> anyhow::Result<Option<(String, Handle)>> {
    let id = record.id.clone();
    let Some(spec) = record.spec().cloned() else {
        // It had not got far enough to own anything.
        if let Err(error) = remove::remove_record(&shared.dir, &id).await {
            tracing::error!(id, %error, "the remains of a sandbox could not be removed");
        }
        return Ok(None);
    };
    let running = running(shared, &record, &spec).await;
    let start = match running.with_context(|| format!("sandbox {id} cannot be adopted"))? {
        Some((vm, slot)) => {
            tracing::info!(id, "adopted");
            Start::Adopt(vm, slot)
        }
        None => {
            match record.failure().map(|failure| (failure, true)).or_else(|| ended_meanwhile(&mut record)) {
                Some((failure, told)) => {
                    undo_all(shared, &mut record, told).await;
                    Start::Failed(failure)
                }
                None => {
                    tracing::info!(id, "undone");
                    if undo_all(shared, &mut record, true).await
                        && let Ok(()) = remove::remove_record(&shared.dir, &id).await
                    {
                        return Ok(None);
                    }
                    let message = "it could not be removed completely; delete it again";
                    Start::Failed(AgentError::new(ErrorCode::AgentError, message))
                }
            }
        }
    };
    let journal = Some((record.journal, record.entries));
    Ok(Some((id.clone(), actor::spawn(shared.clone(), id, spec, journal, start))))
}

async fn running(
    shared: &Shared,
    record: &Record,
    spec: &Spec,
) -> anyhow::Result<Option<(Box<dyn MicroVm>, SlotSpec)>> {
    let Some(index) = record.slot().filter(|_| record.adoptable()) else { return Ok(None) };
    let slot = shared.plan.slot(index)?;
    let boot = create::boot_spec(shared, &record.id, spec, &slot, None);
    Ok(shared.vmm.adopt(&boot, record.process()).await?.map(|vm| (vm, slot)))
}

/// A failure that nobody has noticed yet, for a sandbox that ran. It is written down, or else the second value is
/// false: its slot must not be given to others then, since a later start would take it for one that runs.
fn ended_meanwhile(record: &mut Record) -> Option<(AgentError, bool)> {
    if !record.adoptable() {
        return None;
    }
    let message =
        "the microVM ended while its agent was away, as after a restart of the host; delete the sandbox";
    let failure = AgentError::new(ErrorCode::AgentError, message);
    let entry = Entry::Failed { code: failure.code.as_str().to_owned(), message: failure.message.clone() };
    let told = record.journal.append(&[entry]);
    if let Err(error) = &told {
        tracing::error!(id = record.id, %error, "a failure could not be recorded");
    }
    Some((failure, told.is_ok()))
}

/// Takes back what the sandbox held. The pool of slots keeps only those of sandboxes that may still run; it
/// has removed the others, and may have built new ones under their numbers. One that it keeps stays where `slot_too`
/// is false.
async fn undo_all(shared: &Shared, record: &mut Record, slot_too: bool) -> bool {
    if let Some(index) = record.slot().filter(|_| !record.adoptable() || !slot_too) {
        forget(&mut record.entries, &Undo::Slot(index));
    }
    for step in undo(&record.entries) {
        if let Err(error) = remove::undo_step(shared, &record.id, &step).await {
            tracing::error!(id = record.id, %error, "a sandbox still holds something");
            return false;
        }
        forget(&mut record.entries, &step);
    }
    true
}

/// The sandboxes that have a directory and no journal that can be read.
pub(crate) fn unreadable(sandboxes: &Path, records: &[Record]) -> Vec<String> {
    let mut ids = directories(sandboxes);
    ids.retain(|id| !records.iter().any(|record| record.id == *id));
    ids
}

fn directories(sandboxes: &Path) -> Vec<String> {
    present::look(sandboxes).map(|present| present.ids).unwrap_or_default()
}

/// Ends the VMM of every sandbox, whatever its journal says.
pub(crate) async fn end_all(sandboxes: &Path) -> Result<(), AgentError> {
    for id in directories(sandboxes) {
        remove::end_vmm(&actor::directory(sandboxes, &id).join("run"), None).await?;
    }
    Ok(())
}

/// Ends the VMMs of sandboxes that will not be adopted, before their slots, and with them their user ids, go to
/// others. Also of those of which nothing is known but their directory.
pub(crate) async fn end_strays(sandboxes: &Path, records: &[Record]) {
    for id in unreadable(sandboxes, records) {
        if let Err(error) = remove::end_vmm(&actor::directory(sandboxes, &id).join("run"), None).await {
            tracing::error!(id, %error, "a microVM could not be ended");
        }
    }
    for record in records.iter().filter(|record| !record.adoptable()) {
        for step in undo(&record.entries) {
            let Undo::Vmm(known) = step else { continue };
            let run_dir = actor::directory(sandboxes, &record.id).join("run");
            if let Err(error) = remove::end_vmm(&run_dir, known.as_ref()).await {
                tracing::error!(id = record.id, %error, "a microVM could not be ended");
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
        assert!(unreadable(sandboxes, &records).is_empty(), "clean-up is told of sandboxes only");
        for file in &files {
            assert_eq!(fs::read_to_string(file)?, "theirs", "{}", file.display());
        }
        assert_eq!(fs::read_dir(sandboxes.join("lost+found"))?.count(), 1, "nothing was added");
        Ok(())
    }

    #[test]
    fn remains_and_directories_of_before_the_journal_go_and_others_stay() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let sandboxes = dir.path();
        let [empty, full, removed] = [(); 3].map(|()| SandboxId::new().to_string());
        fs::create_dir(sandboxes.join(&empty))?;
        fs::create_dir(sandboxes.join(&full))?;
        fs::write(sandboxes.join(&full).join("backup"), "theirs")?;
        fs::create_dir_all(present::remains_of(sandboxes, &removed).join("run"))?;
        let records = read(sandboxes)?;
        assert!(records.is_empty());
        assert_eq!(unreadable(sandboxes, &records), std::slice::from_ref(&full));
        assert_eq!(fs::read_dir(sandboxes)?.count(), 1);
        assert_eq!(fs::read_to_string(sandboxes.join(full).join("backup"))?, "theirs");
        Ok(())
    }
}
