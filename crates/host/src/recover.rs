//! The start of an agent after another one: each sandbox in the journal is adopted, kept as a failure, or
//! undone; nothing else is touched.

use std::{fs, path::Path, sync::Arc};

use wrenn_api::ErrorCode;
use wrenn_network::SlotSpec;
use wrenn_vmm::{MicroVm, ProcessId};

use crate::{
    error::AgentError,
    sandbox::{
        actor::{self, Handle, Shared, Start},
        journal::{Entry, Journal, Undo, adoptable, forget, undo},
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

/// Reads every journal. Directories that were being removed are removed; one whose journal cannot be read
/// is reported and left alone.
pub(crate) fn read(sandboxes: &Path) -> std::io::Result<Vec<Record>> {
    fs::create_dir_all(sandboxes)?;
    let mut records = Vec::new();
    for entry in fs::read_dir(sandboxes)? {
        let entry = entry?;
        let Ok(id) = entry.file_name().into_string() else { continue };
        if id.starts_with('.') {
            fs::remove_dir_all(entry.path())?;
            continue;
        }
        match Journal::open(&entry.path()) {
            Ok((journal, entries)) => records.push(Record { id, journal, entries }),
            Err(error) => tracing::error!(id, %error, "a sandbox's journal cannot be used; it is left alone"),
        }
    }
    Ok(records)
}

/// Takes up one sandbox; `None` when nothing of it is left.
pub(crate) async fn take_up(shared: &Arc<Shared>, mut record: Record) -> Option<(String, Handle)> {
    let id = record.id.clone();
    let Some(spec) = record.spec().cloned() else {
        // It had not got far enough to own anything.
        if let Err(error) = actor::remove_record(&shared.dir, &id).await {
            tracing::error!(id, %error, "the remains of a sandbox could not be removed");
        }
        return None;
    };
    let start = match running(shared, &record, &spec).await {
        Some((vm, slot)) => {
            tracing::info!(id, "adopted");
            Start::Adopt(vm, slot)
        }
        None => match record.failure().or_else(|| ended_meanwhile(&mut record)) {
            Some(failure) => {
                undo_all(shared, &mut record).await;
                Start::Failed(failure)
            }
            None => {
                tracing::info!(id, "undone");
                if undo_all(shared, &mut record).await
                    && let Ok(()) = actor::remove_record(&shared.dir, &id).await
                {
                    return None;
                }
                let message = "it could not be removed completely; delete it again";
                Start::Failed(AgentError::new(ErrorCode::AgentError, message))
            }
        },
    };
    let journal = Some((record.journal, record.entries));
    Some((id.clone(), actor::spawn(shared.clone(), id, spec, journal, start)))
}

async fn running(shared: &Shared, record: &Record, spec: &Spec) -> Option<(Box<dyn MicroVm>, SlotSpec)> {
    if !record.adoptable() {
        return None;
    }
    let slot = shared.plan.slot(record.slot()?).ok()?;
    let boot = actor::boot_spec(shared, &record.id, spec, &slot, None);
    match shared.vmm.adopt(&boot, record.process()).await {
        Ok(vm) => Some((vm?, slot)),
        Err(error) => {
            tracing::error!(id = record.id, %error, "a microVM could not be adopted");
            None
        }
    }
}

/// A failure that nobody has noticed yet, for a sandbox that ran. It is written down: its slot is given to
/// others, so no later start may take it for one that runs.
fn ended_meanwhile(record: &mut Record) -> Option<AgentError> {
    if !record.adoptable() {
        return None;
    }
    let message =
        "the microVM ended while its agent was away, as after a restart of the host; delete the sandbox";
    let failure = AgentError::new(ErrorCode::AgentError, message);
    let entry = Entry::Failed { code: failure.code.as_str().to_owned(), message: failure.message.clone() };
    if let Err(error) = record.journal.append(&entry) {
        tracing::error!(id = record.id, %error, "a failure could not be recorded");
    }
    Some(failure)
}

/// Takes back what the sandbox held. The pool of slots keeps only those of sandboxes that may still run; it
/// has removed the others, and may have built new ones under their numbers.
async fn undo_all(shared: &Shared, record: &mut Record) -> bool {
    if let (false, Some(index)) = (record.adoptable(), record.slot()) {
        forget(&mut record.entries, &Undo::Slot(index));
    }
    for step in undo(&record.entries) {
        if let Err(error) = actor::undo_step(shared, &record.id, &step).await {
            tracing::error!(id = record.id, %error, "a sandbox still holds something");
            return false;
        }
        forget(&mut record.entries, &step);
    }
    true
}

/// The sandboxes that have a directory and no journal that can be read.
fn unreadable(sandboxes: &Path, records: &[Record]) -> Vec<String> {
    let mut ids = directories(sandboxes);
    ids.retain(|id| !records.iter().any(|record| record.id == *id));
    ids
}

fn directories(sandboxes: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(sandboxes) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Ends the VMM of every sandbox, whatever its journal says.
pub(crate) async fn end_all(sandboxes: &Path) -> Result<(), AgentError> {
    for id in directories(sandboxes) {
        actor::end_vmm(&actor::directory(sandboxes, &id).join("run"), None).await?;
    }
    Ok(())
}

/// Ends the VMMs of sandboxes that will not be adopted, before their slots, and with them their user ids, go to
/// others. Also of those of which nothing is known but their directory.
pub(crate) async fn end_strays(sandboxes: &Path, records: &[Record]) {
    for id in unreadable(sandboxes, records) {
        if let Err(error) = actor::end_vmm(&actor::directory(sandboxes, &id).join("run"), None).await {
            tracing::error!(id, %error, "a microVM could not be ended");
        }
    }
    for record in records.iter().filter(|record| !record.adoptable()) {
        for step in undo(&record.entries) {
            let Undo::Vmm(known) = step else { continue };
            let run_dir = actor::directory(sandboxes, &record.id).join("run");
            if let Err(error) = actor::end_vmm(&run_dir, known.as_ref()).await {
                tracing::error!(id = record.id, %error, "a microVM could not be ended");
            }
        }
    }
}
