// SPDX-License-Identifier: Apache-2.0
//! Imports: an artifact is written beside what is there, checked, and kept as a whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use rustix::process::geteuid;
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_memory::{BuildId, Generations, Incoming, Origin, Part};
use wrenn_os::sparse_file;

use super::{
    Artifacts,
    format::{End, Head, Kind, Message, Name, PIECE, Piece, Sums, damaged, malformed, piece_length},
    record::{Record, check_sizes},
};
use crate::{
    error::{AgentError, full, of_files},
    records::check_id,
    snapshots::{
        lacks_room,
        named::{self, NamedSnapshot},
    },
};

/// Number of pieces of an import that are written at once.
const WRITERS: usize = 2;
/// Number of pieces after which the free space is looked at: 64 MiB.
const LOOK: usize = 16;
/// Time limit for the sender to send something.
const SILENCE: Duration = Duration::from_secs(120);
/// What is not done when this fails.
const IMPORTING: &str = "taking in the template";

/// An artifact of which pieces are being written. What was written is removed when it is dropped.
pub(super) struct Receiving {
    head: Head,
    files: BTreeMap<Name, Arc<File>>,
    sums: Sums,
    work: Work,
}

/// Files of an artifact that is no artifact yet.
struct Work {
    /// Directory of its own, with the disk.
    dir: PathBuf,
    /// Memory and state, if it has them.
    incoming: Option<Incoming>,
}

/// A piece that is checked and written.
struct Writing {
    kind: Kind,
    piece: Piece,
    file: Arc<File>,
}

impl Artifacts {
    /// Takes an artifact in, unless it is here; returns the bytes that it occupies. Another import of it is waited for. Nothing
    /// is left if it fails, or if the caller gives up before the end of the stream.
    pub(crate) async fn import(
        self: &Arc<Self>,
        mut messages: impl Stream<Item = Result<Message, AgentError>> + Send + Unpin,
    ) -> Result<u64, AgentError> {
        let Some(Message::Head(head)) = next(&mut messages).await? else {
            return Err(malformed("the first message must carry `head`"));
        };
        let what = match head.kind {
            Kind::Snapshot => "a snapshot",
            Kind::Image => "an image",
        };
        check_id(what, &head.id)?;
        check_sizes(&head, &self.limits)?;
        let alone = self.lock_of(&head).lock_owned().await;
        if let Some(present) = self.occupied(head.kind, &head.id).await? {
            return Ok(present);
        }
        let turn = self.imports.clone().acquire_owned().await;
        let turn = turn.map_err(|error| AgentError::fault(IMPORTING, &error))?;
        self.check_room().await?;
        if head.kind == Kind::Snapshot {
            self.named.forget_removal(&head.id);
        }
        tracing::info!(kind = %head.kind, id = head.id, "taking in what another host has made");
        let mut receiving = self.begin(head).await?;
        let end = self.receive(&mut receiving, &mut messages).await?;
        let all = self.clone();
        let finishing = async move {
            let _held = (alone, turn);
            all.finish(receiving, &end).await
        };
        // It goes on without its caller: what is complete is kept.
        let finished = tokio::spawn(finishing.in_current_span()).await;
        finished.unwrap_or_else(|error| Err(AgentError::fault(IMPORTING, &error)))
    }

    async fn check_room(&self) -> Result<(), AgentError> {
        if lacks_room(&*self.volumes).await? { Err(full()) } else { Ok(()) }
    }

    /// Makes the files of an artifact.
    pub(super) async fn begin(self: &Arc<Self>, head: Head) -> Result<Receiving, AgentError> {
        let all = self.clone();
        let begun = spawn_blocking(move || Receiving::new(&all.dir, &all.snapshots.generations, head));
        begun.await.map_err(|error| AgentError::fault(IMPORTING, &error))?
    }

    /// Writes all pieces; returns what the end says.
    async fn receive(
        &self,
        receiving: &mut Receiving,
        messages: &mut (impl Stream<Item = Result<Message, AgentError>> + Send + Unpin),
    ) -> Result<End, AgentError> {
        let mut writing: FuturesUnordered<JoinHandle<Result<(), AgentError>>> = FuturesUnordered::new();
        let mut number = 0_usize;
        loop {
            match next(messages).await? {
                Some(Message::Piece(piece)) => {
                    let piece = receiving.accept(piece)?;
                    number += 1;
                    if number.is_multiple_of(LOOK) {
                        self.check_room().await?;
                    }
                    if writing.len() >= WRITERS {
                        written(writing.next().await)?;
                    }
                    writing.push(spawn_blocking(move || piece.run()));
                }
                Some(Message::End(end)) => {
                    while let Some(done) = writing.next().await {
                        written(Some(done))?;
                    }
                    return Ok(end);
                }
                Some(Message::Head(_)) => return Err(malformed("`head` is there twice")),
                None => return Err(malformed("it ended without `end`; nothing of it was kept")),
            }
        }
    }

    /// Keeps what was written, if it is all of it.
    async fn finish(&self, receiving: Receiving, end: &End) -> Result<u64, AgentError> {
        let Receiving { head, files, sums, work } = receiving;
        drop(files);
        if sums.total(&head, &end.record) != end.sum {
            return Err(damaged(head.kind, "some of it is missing, or its record is another one"));
        }
        match Record::decode(&end.record, &head)? {
            Record::Image(image) => self.images.take(image, &work.disk()).await.map(drop)?,
            Record::Snapshot { snapshot, origin } => self.keep_snapshot(work, *snapshot, origin).await?,
        }
        let occupied = self.occupied(head.kind, &head.id).await?;
        occupied.ok_or_else(|| {
            AgentError::new(
                ErrorCode::Conflict,
                format!("the {} was deleted while it was taken in", head.kind),
            )
        })
    }

    /// Keeps a snapshot: memory, disk, and at last the record, with which it exists.
    async fn keep_snapshot(
        &self,
        mut work: Work,
        snapshot: NamedSnapshot,
        origin: Option<Origin>,
    ) -> Result<(), AgentError> {
        let incoming = work.incoming.take();
        // It never has the identity of another one, not even of one that was here before.
        let build = incoming.as_ref().map_or_else(BuildId::new, Incoming::build);
        let label = named::label(&snapshot.id);
        let keep = async {
            if let (Some(incoming), Some(origin)) = (incoming, origin) {
                self.snapshots.keep_incoming(incoming, &label, origin).await?;
            }
            self.keep_disk(&work.disk(), build, snapshot.disk_size_mb).await?;
            self.named.keep(NamedSnapshot { build, ..snapshot }).await
        };
        let kept = keep.await;
        if kept.is_err() {
            self.named.drop_parts(build).await;
        }
        kept
    }

    /// Makes the disk of a snapshot of a file with its content. Where volumes depend on images, that file stays as one.
    async fn keep_disk(&self, file: &Path, build: BuildId, size_mb: u64) -> Result<(), AgentError> {
        let name = named::volume_of(build);
        self.volumes.take_image(&name, file).await?;
        self.volumes.clone_image(&name, &name, size_mb, geteuid().as_raw()).await?;
        self.volumes.detach(&name).await?;
        if !self.volumes.shares_images() {
            self.volumes.remove_image(&name).await?;
        }
        Ok(())
    }
}

impl Receiving {
    /// Makes the files of an artifact: its disk in a new directory below `dir`, its memory and state as a generation that is
    /// not complete. Blocks.
    fn new(dir: &Path, generations: &Generations, head: Head) -> Result<Self, AgentError> {
        let failed = |error: io::Error| of_files(IMPORTING, &error);
        let build = BuildId::new();
        let mut work = Work { dir: dir.join(build.to_string()), incoming: None };
        fs::DirBuilder::new().mode(0o700).create(&work.dir).map_err(failed)?;
        if let Some(length) = head.files.get(&Name::Memory) {
            work.incoming = Some(generations.receive(build, *length)?);
        }
        let mut files = BTreeMap::new();
        for (name, length) in &head.files {
            let file = match (name, &work.incoming) {
                (Name::Disk, _) => create(&work.disk(), *length).map_err(failed)?,
                (Name::Memory, Some(incoming)) => incoming.memory().clone(),
                (Name::State, Some(incoming)) => {
                    create(&incoming.path(Part::State), *length).map_err(failed)?
                }
                (Name::Memory | Name::State, None) => return Err(malformed("it has a state and no memory")),
            };
            files.insert(*name, file);
        }
        Ok(Self { head, files, sums: Sums::default(), work })
    }

    /// Takes a piece, which is to be written, if it can be one of this artifact.
    fn accept(&mut self, piece: Piece) -> Result<Writing, AgentError> {
        let kind = self.head.kind;
        let of = self.head.files.get(&piece.file).copied().zip(self.files.get(&piece.file));
        let (length, file) =
            of.ok_or_else(|| malformed(format!("it has a piece of the {}, and no such file", piece.file)))?;
        if piece_length(length, piece.index) != Some(u64::from(piece.length)) {
            return Err(malformed(format!("{piece:?} is no piece of {length} bytes")));
        }
        if !self.sums.add(&piece) {
            return Err(damaged(kind, format!("{piece:?}, came twice")));
        }
        Ok(Writing { kind, piece, file: file.clone() })
    }
}

impl Work {
    fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let (dir, incoming) = (std::mem::take(&mut self.dir), self.incoming.take());
        let remove = move || {
            drop(incoming);
            if let Err(error) = fs::remove_dir_all(dir) {
                tracing::warn!(%error, "cannot remove what is left of an import; the next start removes it");
            }
        };
        // The files may be large.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Writing {
    /// Writes the piece, without its blocks of zeros. Blocks.
    fn run(self) -> Result<(), AgentError> {
        let Self { kind, piece, file } = self;
        let (at, shown) = (piece.index * PIECE, format!("{piece:?}"));
        let content = piece.content();
        let content = content.ok_or_else(|| damaged(kind, format!("{shown}, is not what was read")))?;
        for (run, zero) in sparse_file::runs(&content) {
            if !zero {
                let written = file.write_all_at(&content[run.clone()], at + run.start as u64);
                written.map_err(|error| of_files(IMPORTING, &error))?;
            }
        }
        Ok(())
    }
}

/// Makes a file of this length that has zeros only.
fn create(path: &Path, length: u64) -> io::Result<Arc<File>> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(length)?;
    Ok(Arc::new(file))
}

/// Waits for the next message.
async fn next(
    messages: &mut (impl Stream<Item = Result<Message, AgentError>> + Send + Unpin),
) -> Result<Option<Message>, AgentError> {
    let silent = |_| {
        let message = format!("nothing was sent for {} seconds; nothing was kept", SILENCE.as_secs());
        AgentError::new(ErrorCode::Timeout, message)
    };
    timeout(SILENCE, messages.next()).await.map_err(silent)?.transpose()
}

/// Result of a writer.
fn written(done: Option<Result<Result<(), AgentError>, tokio::task::JoinError>>) -> Result<(), AgentError> {
    done.map_or(Ok(()), |done| done.unwrap_or_else(|error| Err(AgentError::fault(IMPORTING, &error))))
}
