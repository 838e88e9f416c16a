//! The journal of one sandbox: JSON lines, written and synced before each step that creates something
//! outside the process. Calls block on the disk; async callers run them on the blocking pool.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wrenn_vmm::ProcessId;

use super::spec::Spec;

/// The most that a journal may hold; a real one has a few KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The kernel refused.
    #[error("cannot {action} the sandbox's journal: {source}; check the state directory's disk")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A complete line is not an entry.
    #[error("line {line} of the sandbox's journal is not an entry: {reason}; destroy the sandbox")]
    Malformed {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It is larger than any journal the agent writes.
    #[error("the sandbox's journal is larger than {MAX_BYTES} bytes; destroy the sandbox")]
    TooLarge,
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// What was asked for.
    Spec(Spec),
    /// A slot is taken.
    Slot {
        /// Its number.
        index: u16,
    },
    /// The volume is about to be cloned; its id is the sandbox's.
    Volume,
    /// A VMM is about to be started.
    VmmIntent,
    /// The VMM process that was started.
    Vmm {
        /// Which one.
        process: ProcessId,
    },
    /// Code can run in it.
    Running,
    /// It failed; what it had is being taken back, its record stays until it is destroyed.
    Failed {
        /// The code, as in the REST API.
        code: String,
        /// Cause and remedy.
        message: String,
    },
    /// It is being destroyed: from here there is no way back.
    Destroy,
}

/// One thing to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    /// End the VMM; without a process it is looked for by its run directory.
    Vmm(Option<ProcessId>),
    /// Remove the volume.
    Volume,
    /// Give the slot back.
    Slot(u16),
}

/// Whether a sandbox of these entries may be adopted: it ran, did not fail, and no destroy began.
pub(crate) fn adoptable(entries: &[Entry]) -> bool {
    let ended = |entry: &Entry| matches!(entry, Entry::Failed { .. } | Entry::Destroy);
    entries.contains(&Entry::Running) && !entries.iter().any(ended)
}

/// What must be taken back, latest first; each thing once.
pub(crate) fn undo(entries: &[Entry]) -> Vec<Undo> {
    let mut steps: Vec<Undo> = Vec::new();
    for entry in entries {
        let step = match entry {
            Entry::Slot { index } => Undo::Slot(*index),
            Entry::Volume => Undo::Volume,
            Entry::VmmIntent => Undo::Vmm(None),
            Entry::Vmm { process } => {
                steps.retain(|step| *step != Undo::Vmm(None));
                Undo::Vmm(Some(process.clone()))
            }
            Entry::Spec(_) | Entry::Running | Entry::Failed { .. } | Entry::Destroy => continue,
        };
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps.reverse();
    steps
}

/// Forgets what was taken back, so that it is taken back once: a slot's next owner is another sandbox.
pub(crate) fn forget(entries: &mut Vec<Entry>, done: &Undo) {
    entries.retain(|entry| match (entry, done) {
        (Entry::Slot { index }, Undo::Slot(gone)) => index != gone,
        (Entry::Volume, Undo::Volume) | (Entry::VmmIntent | Entry::Vmm { .. }, Undo::Vmm(_)) => false,
        _ => true,
    });
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
}

fn io(action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { action, source }
}

/// How the file of a journal is opened.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn path(dir: &Path) -> PathBuf {
    dir.join("journal.json")
}

impl Journal {
    /// Makes the journal in `dir`, which has none, with its first entries. All of it is on the disk when this
    /// returns.
    pub(crate) fn begin(dir: &Path, entries: &[Entry]) -> Result<Self, JournalError> {
        let mut journal = Self { file: options().create_new(true).open(path(dir)).map_err(io("open"))? };
        journal.append(entries)?;
        // After the file: file systems that write both at once have nothing left to wait for.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))?;
        Ok(journal)
    }

    /// Opens the journal in `dir`, which exists, and gives the entries so far; none where a crash came before the
    /// first. Makes none: what has no journal is not ours. A last line cut short by a crash was never acted on and is
    /// dropped.
    pub(crate) fn open(dir: &Path) -> Result<Option<(Self, Vec<Entry>)>, JournalError> {
        let mut file = match options().open(path(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io("open"))?,
        };
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(JournalError::TooLarge);
        }
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let entries = parse(&bytes[..whole])?;
        file.set_len(whole as u64).map_err(io("trim"))?;
        file.seek(SeekFrom::End(0)).map_err(io("seek in"))?;
        Ok(Some((Self { file }, entries)))
    }

    /// Writes entries; they are on the disk when this returns. Where it fails, none of them is there.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry).map_err(io::Error::from).map_err(io("encode"))?;
            lines.push(b'\n');
        }
        let before = self.file.stream_position().map_err(io("seek in"))?;
        let written = self.file.write_all(&lines).map_err(io("write"));
        written.and_then(|()| self.file.sync_data().map_err(io("sync"))).inspect_err(|_| {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(before).and_then(|()| self.file.seek(SeekFrom::Start(before)));
        })
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, JournalError> {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_slice(line)
                .map_err(|e| JournalError::Malformed { line: at + 1, reason: e.to_string() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life() -> Vec<Entry> {
        let process = ProcessId { pid: 7, start_time: 9 };
        let spec = Entry::Spec(Spec {
            template: "minimal".into(),
            vcpus: 1,
            memory_mb: 256,
            disk_size_mb: 5120,
            default_user: "wrenn-user".into(),
            created_at_unix_ms: 1,
            access_token: "t".into(),
        });
        let slot = Entry::Slot { index: 3 };
        let vmm = Entry::Vmm { process };
        vec![spec, slot, Entry::Volume, Entry::VmmIntent, vmm, Entry::Running, Entry::Destroy]
    }

    #[test]
    fn every_prefix_undoes_exactly_what_it_lists() {
        let vmm = Undo::Vmm(Some(ProcessId { pid: 7, start_time: 9 }));
        let expected = [
            vec![],
            vec![],
            vec![Undo::Slot(3)],
            vec![Undo::Volume, Undo::Slot(3)],
            vec![Undo::Vmm(None), Undo::Volume, Undo::Slot(3)],
            vec![vmm.clone(), Undo::Volume, Undo::Slot(3)],
            vec![vmm.clone(), Undo::Volume, Undo::Slot(3)],
            vec![vmm, Undo::Volume, Undo::Slot(3)],
        ];
        let life = life();
        for (len, wanted) in expected.iter().enumerate() {
            assert_eq!(&undo(&life[..len]), wanted, "prefix of {len}");
            assert_eq!(adoptable(&life[..len]), len == 6, "prefix of {len}");
        }
    }

    #[test]
    fn what_was_taken_back_is_not_taken_back_again() {
        let mut entries = life();
        for left in (0..3).rev() {
            let steps = undo(&entries);
            forget(&mut entries, &steps[0]);
            assert_eq!(undo(&entries), steps[1..]);
            assert_eq!(steps.len() - 1, left);
        }
        assert!(entries.contains(&Entry::Running) && !adoptable(&entries));
    }

    #[test]
    fn a_journal_cut_at_any_byte_opens_and_takes_entries() {
        let dir = tempfile::tempdir().expect("a directory");
        let life = life();
        assert!(Journal::open(dir.path()).expect("no error").is_none(), "none is made");
        let mut journal = Journal::begin(dir.path(), &[]).expect("begins");
        life.chunks(2).for_each(|some| journal.append(some).expect("appends"));
        let path = dir.path().join("journal.json");
        let bytes = std::fs::read(&path).expect("reads");
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count();
            let (mut journal, entries) = Journal::open(dir.path()).expect("opens").expect("is there");
            assert_eq!(entries, life[..whole]);
            journal.append(&[Entry::Destroy]).expect("appends");
            let (_, again) = Journal::open(dir.path()).expect("opens again").expect("is there");
            assert_eq!(again.len(), whole + 1);
            assert_eq!(again.last(), Some(&Entry::Destroy));
        }
    }
}
