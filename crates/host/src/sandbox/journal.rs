// SPDX-License-Identifier: Apache-2.0
//! Journal of one sandbox: JSON lines, written before each step that creates something outside the process.
//! Calls block on the disk; asynchronous callers use the blocking pool.
//!
//! A line that was written survives the agent. Only entries with [`Entry::must_survive_power_failure`] are
//! synced to the disk, with all before them: what the others are about is in the kernel and ends with it, or is
//! a file that a start finds without its journal.
//!
//! The first line has the version of the format. If an agent does not understand a journal, it changes
//! nothing of the sandbox, because the agent may be too old.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{entry::Entry, summary::Summary};
use crate::error::{AgentError, of_files};

/// Version that is written. Version 1 has no header line and can be read.
const VERSION: u32 = 2;
/// Maximum size of a journal in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Size in bytes at which a journal is rewritten with only its summary.
const CHECKPOINT: u64 = 64 << 10;

/// Error of reading or writing a journal.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the sandbox's journal: {source}; check the state directory's disk")]
pub(crate) struct JournalError {
    /// Failed action.
    pub(crate) action: &'static str,
    /// Cause.
    #[source]
    pub(crate) source: io::Error,
}

impl From<JournalError> for AgentError {
    fn from(error: JournalError) -> Self {
        of_files("writing the sandbox's journal", &error.source)
    }
}

/// Reason why a journal is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotUnderstood {
    /// It was written by a newer agent.
    #[error(
        "it was written by a newer agent ({agent}, journal version {version}): upgrade this host's agent"
    )]
    Newer {
        /// Version of that agent.
        agent: String,
        /// Version of the format.
        version: u32,
    },
    /// A complete line is not a known entry.
    #[error(
        "its line {line} is none that this agent knows: upgrade this host's agent if a newer one wrote it"
    )]
    Malformed {
        /// Line number, from 1.
        line: usize,
    },
    /// It is larger than any journal of an agent.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is missing, but the directory has other files.
    #[error("it is missing")]
    Missing,
}

/// Header line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    journal: u32,
    /// Version of the agent that wrote it.
    #[serde(default)]
    agent: String,
}

/// Mark of an entry that an agent may skip if it does not know it.
#[derive(Debug, Deserialize)]
struct Skippable {
    optional: bool,
}

/// Result of opening a journal.
#[derive(Debug)]
pub(crate) enum Found {
    /// The directory is empty.
    Nothing,
    /// Valid journal.
    Journal(Journal),
    /// Journal that this agent must not change.
    NotUnderstood(NotUnderstood),
}

/// Open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    file: File,
    /// In a box, so that values of this type are small.
    summary: Box<Summary>,
    /// Whether the header line has the current version.
    versioned: bool,
    /// Whether the file's name is on the disk.
    named: bool,
}

fn io(action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError { action, source }
}

/// Options for opening the file of a journal.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn path(dir: &Path) -> PathBuf {
    dir.join("journal.json")
}

fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))
}

fn put(lines: &mut Vec<u8>, line: &impl Serialize) -> Result<(), JournalError> {
    serde_json::to_writer(&mut *lines, line).map_err(io::Error::from).map_err(io("encode"))?;
    lines.push(b'\n');
    Ok(())
}

impl Journal {
    /// Creates the journal in `dir`, which must have none, with its first entries.
    pub(crate) fn begin(dir: &Path, entries: &[Entry]) -> Result<Self, JournalError> {
        let file = options().create_new(true).open(path(dir)).map_err(io("open"))?;
        let summary = Box::new(Summary::of(entries));
        let mut journal = Self { dir: dir.to_owned(), file, summary, versioned: true, named: false };
        let mut lines = header()?;
        entries.iter().try_for_each(|entry| put(&mut lines, entry))?;
        journal.write(&lines, entries.iter().any(Entry::must_survive_power_failure))?;
        Ok(journal)
    }

    /// Opens the journal in the existing directory `dir`. Drops an incomplete last line of a crash, which was
    /// never acted on. Does not change a journal that is not understood.
    pub(crate) fn open(dir: &Path) -> Result<Found, JournalError> {
        let mut file = match options().open(path(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let empty = fs::read_dir(dir).map_err(io("look for"))?.next().is_none();
                return Ok(if empty { Found::Nothing } else { Found::NotUnderstood(NotUnderstood::Missing) });
            }
            opened => opened.map_err(io("open"))?,
        };
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Ok(Found::NotUnderstood(NotUnderstood::TooLarge));
        }
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let (versioned, entries) = match parse(&bytes[..whole]) {
            Ok(parsed) => parsed,
            Err(reason) => return Ok(Found::NotUnderstood(reason)),
        };
        file.set_len(whole as u64).map_err(io("trim"))?;
        file.seek(SeekFrom::End(0)).map_err(io("seek in"))?;
        let summary = Box::new(Summary::of(&entries));
        Ok(Found::Journal(Self { dir: dir.to_owned(), file, summary, versioned, named: false }))
    }

    /// Summary of the entries.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Appends entries. If it fails, none of them is written.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut sum = Summary::clone(&self.summary);
        entries.iter().for_each(|entry| sum.add(entry));
        let mut lines = Vec::new();
        entries.iter().try_for_each(|entry| put(&mut lines, entry))?;
        let size = self.file.stream_position().map_err(io("seek in"))? + lines.len() as u64;
        if !self.versioned || size > CHECKPOINT {
            self.rewrite(&sum)?;
        } else {
            self.write(&lines, entries.iter().any(Entry::must_survive_power_failure))?;
        }
        *self.summary = sum;
        Ok(())
    }

    fn write(&mut self, lines: &[u8], sync: bool) -> Result<(), JournalError> {
        let before = self.file.stream_position().map_err(io("seek in"))?;
        let written = self.file.write_all(lines).map_err(io("write"));
        written.and_then(|()| if sync { self.sync() } else { Ok(()) }).inspect_err(|_| {
            // Remove a partial line, which would corrupt the next one.
            let _ = self.file.set_len(before).and_then(|()| self.file.seek(SeekFrom::Start(before)));
        })
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(io("sync"))?;
        if !self.named {
            // After the file: file systems that write both at once do not wait a second time.
            sync_dir(&self.dir)?;
            self.named = true;
        }
        Ok(())
    }

    /// Replaces the journal with one that has only this summary.
    fn rewrite(&mut self, sum: &Summary) -> Result<(), JournalError> {
        let mut lines = header()?;
        sum.entries().iter().try_for_each(|entry| put(&mut lines, entry))?;
        let beside = self.dir.join("journal.new");
        let mut file = options().create(true).truncate(true).open(&beside).map_err(io("open a new"))?;
        let written = file.write_all(&lines).and_then(|()| file.sync_all()).map_err(io("write"));
        let replaced = written.and_then(|()| fs::rename(&beside, path(&self.dir)).map_err(io("replace")));
        replaced.inspect_err(|_| drop(fs::remove_file(&beside)))?;
        (self.file, self.versioned) = (file, true);
        sync_dir(&self.dir)?;
        self.named = true;
        Ok(())
    }
}

fn header() -> Result<Vec<u8>, JournalError> {
    let mut lines = Vec::new();
    put(&mut lines, &Header { journal: VERSION, agent: env!("CARGO_PKG_VERSION").to_owned() })?;
    Ok(lines)
}

/// Parses a journal; returns whether it has a header line, and the entries.
fn parse(bytes: &[u8]) -> Result<(bool, Vec<Entry>), NotUnderstood> {
    let mut lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).enumerate().peekable();
    let header = lines.peek().and_then(|(_, line)| serde_json::from_slice::<Header>(line).ok());
    let versioned = header.is_some();
    if let Some(Header { journal: version, agent }) = header {
        if version > VERSION {
            return Err(NotUnderstood::Newer { agent, version });
        }
        lines.next();
    }
    Ok((versioned, lines.filter_map(parse_entry).collect::<Result<_, _>>()?))
}

/// Parses a line; `None` if it is an entry that this agent does not know and may skip.
fn parse_entry((at, line): (usize, &[u8])) -> Option<Result<Entry, NotUnderstood>> {
    let error = match serde_json::from_slice(line) {
        Ok(entry) => return Some(Ok(entry)),
        Err(error) => error,
    };
    if serde_json::from_slice::<Skippable>(line).is_ok_and(|line| line.optional) {
        tracing::info!(line = at + 1, %error, "an optional entry of a journal is skipped");
        return None;
    }
    tracing::error!(line = at + 1, %error, "a line of a journal is not understood");
    Some(Err(NotUnderstood::Malformed { line: at + 1 }))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};
    use wrenn_memory::BuildId;
    use wrenn_testkit::fuzz;
    use wrenn_vmm::ProcessId;

    use super::{
        super::{
            entry::Thing,
            spec::Spec,
            summary::{Stage, Undo},
        },
        *,
    };
    use crate::snapshots::Base;

    pub(crate) fn life() -> Vec<Entry> {
        let process = ProcessId { pid: 7, start_time: 9 };
        let spec = Entry::Spec(Spec {
            template: "minimal".into(),
            vcpus: 1,
            memory_mb: 256,
            disk_size_mb: 5120,
            default_user: "wrenn-user".into(),
            default_workdir: String::new(),
            created_at_unix_ms: 1,
            access_token: "t".into(),
        });
        let slot = Entry::Slot { index: 3 };
        let vmm = Entry::Vmm { process, base: Base::Zero };
        vec![spec, slot, Entry::Volume, Entry::VmmIntent, vmm, Entry::Running, Entry::Destroy]
    }

    fn opened(dir: &Path) -> anyhow::Result<Journal> {
        match Journal::open(dir)? {
            Found::Journal(journal) => Ok(journal),
            other => anyhow::bail!("{other:?}"),
        }
    }

    #[test]
    fn a_journal_cut_at_any_byte_opens_and_takes_entries() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let life = life();
        assert!(matches!(Journal::open(dir.path())?, Found::Nothing), "none is made");
        let mut journal = Journal::begin(dir.path(), &[])?;
        for some in life.chunks(2) {
            journal.append(some)?;
        }
        let path = dir.path().join("journal.json");
        let bytes = fs::read(&path)?;
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut])?;
            let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count().saturating_sub(1);
            let mut journal = opened(dir.path())?;
            let mut sum = Summary::of(&life[..whole]);
            assert_eq!(journal.summary(), &sum);
            journal.append(&[Entry::Destroy])?;
            sum.add(&Entry::Destroy);
            assert_eq!(opened(dir.path())?.summary(), &sum);
            let text = fs::read_to_string(&path)?;
            assert!(text.starts_with(r#"{"journal":2,"#), "{text}");
        }
        Ok(())
    }

    /// A damaged line may be read as another entry, but never panics or is trimmed.
    #[test]
    fn a_journal_with_any_damaged_byte_is_read_or_left_alone() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("journal.json");
        drop(Journal::begin(dir.path(), &life())?);
        let whole = fs::read(&path)?;
        for at in 0..whole.len() - 1 {
            for byte in *b"\0\n\"{}9\xff" {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                fs::write(&path, &damaged)?;
                let found = Journal::open(dir.path())?;
                assert!(!matches!(found, Found::Nothing), "byte {at}");
                assert_eq!(fs::read(&path)?, damaged, "byte {at}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_journal_stays_small_however_long_its_sandbox_lives() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut journal = Journal::begin(dir.path(), &life()[..6])?;
        let path = dir.path().join("journal.json");
        for pid in 0..2000 {
            let process = ProcessId { pid, start_time: 1 };
            journal.append(&[
                Entry::Released { thing: Thing::Vmm },
                Entry::Released { thing: Thing::Slot },
                Entry::Slot { index: pid as u16 },
                Entry::Vmm { process, base: Base::Zero },
            ])?;
            assert!(fs::metadata(&path)?.len() <= CHECKPOINT);
        }
        assert_eq!(opened(dir.path())?.summary(), journal.summary());
        assert_eq!(journal.summary().slot(), Some(1999));
        assert_eq!(journal.summary().spec(), Summary::of(&life()).spec());
        Ok(())
    }

    /// Journals of all versions with the stage and the resources that they give. Files of older versions stay.
    #[test]
    fn journals_of_all_versions_are_understood_or_left_alone() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("journal.json");
        let vmm = |pid, start_time| Undo::Vmm(Some(ProcessId { pid, start_time }));
        let all = || vec![vmm(7, 9), Undo::Volume, Undo::Slot(3)];
        let running = |slot| Stage::Running { slot };
        let paused = || Stage::Paused {
            memory: Some(BuildId::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057)),
            lost: None,
        };
        let failed = || Stage::Failed {
            code: "agent_error".into(),
            message: "the microVM ended by itself. Delete the sandbox".into(),
        };
        for (name, stage, resources) in [
            ("1-creating", Stage::Creating, vec![Undo::Vmm(None), Undo::Volume, Undo::Slot(3)]),
            ("1-running", running(3), all()),
            ("1-without-later-fields", running(3), all()),
            ("1-failed", failed(), all()),
            ("1-destroying", Stage::Destroying, all()),
            ("2-creating", Stage::Creating, vec![Undo::Vmm(None), Undo::Volume, Undo::Slot(3)]),
            ("2-running", running(3), all()),
            ("2-resumed", running(5), vec![vmm(8, 10), Undo::Volume, Undo::Slot(5)]),
            ("2-released", Stage::Paused { memory: None, lost: None }, vec![Undo::Volume]),
            ("2-paused", paused(), vec![Undo::Volume]),
            ("2-pausing", Stage::Pausing { slot: 3 }, all()),
            ("2-resuming", Stage::Resuming { slot: 5 }, vec![vmm(8, 10), Undo::Volume, Undo::Slot(5)]),
            ("2-failed", failed(), vec![Undo::Volume]),
            ("2-destroying", Stage::Destroying, vec![Undo::Volume]),
            ("2-optional", running(3), all()),
        ] {
            fs::copy(golden(name), &path)?;
            let journal = opened(dir.path())?;
            let summary = journal.summary();
            assert_eq!((summary.stage(), summary.undo()), (stage, resources), "{name}");
            let spec = summary.spec().cloned().unwrap_or_default();
            let expected = match name {
                "1-without-later-fields" => Spec { template: "minimal".into(), ..Spec::default() },
                _ => Summary::of(&life()).spec().cloned().unwrap_or_default(),
            };
            assert_eq!(spec, expected, "{name}");
        }
        let newer = NotUnderstood::Newer { agent: "9.1.0".into(), version: 3 };
        for (name, reason) in [
            ("3-newer", newer),
            ("2-unknown-step", NotUnderstood::Malformed { line: 8 }),
            ("damaged", NotUnderstood::Malformed { line: 1 }),
        ] {
            fs::copy(golden(name), &path)?;
            let before = fs::read(&path)?;
            let found = Journal::open(dir.path())?;
            assert!(matches!(&found, Found::NotUnderstood(seen) if *seen == reason), "{name}: {found:?}");
            assert_eq!(fs::read(&path)?, before, "{name} is left as it is");
        }
        fs::write(&path, vec![b'\n'; MAX_BYTES as usize + 1])?;
        assert!(matches!(Journal::open(dir.path())?, Found::NotUnderstood(NotUnderstood::TooLarge)));
        fs::rename(&path, dir.path().join("other"))?;
        assert!(matches!(Journal::open(dir.path())?, Found::NotUnderstood(NotUnderstood::Missing)));
        Ok(())
    }

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/journals/{name}.jsonl"))
    }

    const JOURNALS: &[&str] = &[
        include_str!("../../tests/journals/1-running.jsonl"),
        include_str!("../../tests/journals/1-without-later-fields.jsonl"),
        include_str!("../../tests/journals/2-destroying.jsonl"),
        include_str!("../../tests/journals/2-failed.jsonl"),
        include_str!("../../tests/journals/2-optional.jsonl"),
        include_str!("../../tests/journals/2-paused.jsonl"),
        include_str!("../../tests/journals/2-released.jsonl"),
        include_str!("../../tests/journals/2-resuming.jsonl"),
        include_str!("../../tests/journals/2-unknown-step.jsonl"),
        include_str!("../../tests/journals/3-newer.jsonl"),
    ];

    proptest! {
        #![proptest_config(fuzz::config())]

        /// No line is skipped that does not allow it, and what is understood means the same after it was rewritten.
        #[test]
        fn whatever_a_journal_has_is_understood_or_left_alone(bytes in fuzz::damaged(JOURNALS)) {
            let Ok((versioned, entries)) = parse(&bytes) else { return Ok(()) };
            let needed = |line: &&[u8]| {
                !line.is_empty() && !serde_json::from_slice::<Skippable>(line).is_ok_and(|line| line.optional)
            };
            let needed = bytes.split(|byte| *byte == b'\n').filter(needed).count();
            prop_assert!(entries.len() + usize::from(versioned) >= needed);
            let summary = Summary::of(&entries);
            let mut lines = header().unwrap();
            summary.entries().iter().try_for_each(|entry| put(&mut lines, entry)).unwrap();
            let (versioned, again) = parse(&lines).unwrap();
            prop_assert!(versioned);
            prop_assert_eq!(Summary::of(&again), summary);
        }
    }
}
