// SPDX-License-Identifier: Apache-2.0
//! Exports: an artifact is opened, and read piece by piece while it is sent.

use std::{fs::File, time::Duration};

use rustix::process::geteuid;
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking, time::timeout};
use wrenn_disk::DiskError;
use wrenn_memory::{BuildId, Verification};

use super::{
    Artifacts,
    format::{End, Head, Kind, Message, Name, Sums},
    record::Record,
    source::{Copied, Source},
};
use crate::{
    error::{AgentError, of_files},
    images,
    snapshots::named,
};

/// Number of messages that wait to be sent.
const PENDING: usize = 2;
/// Time limit for the reader to take a message.
const STALLED: Duration = Duration::from_secs(120);
/// First part of the ids of volumes that are read.
const PREFIX: &str = "export.";
/// What is not done when this fails.
const EXPORTING: &str = "reading the template";

/// An artifact that is open. What is open can be read to its end, whatever happens to the artifact.
struct Export {
    head: Head,
    record: Vec<u8>,
    sources: Vec<Source>,
    verification: Option<Verification>,
    /// The volume that is read, unless it is that of the artifact. Dropped after the files.
    _copied: Option<Copied>,
}

impl Artifacts {
    /// Exports an artifact. Refusals come before the first message.
    pub(crate) async fn export(
        &self,
        kind: Kind,
        id: &str,
    ) -> Result<mpsc::Receiver<Result<Message, AgentError>>, AgentError> {
        let turn = self.exports.clone().acquire_owned().await;
        let turn = turn.map_err(|error| AgentError::fault(EXPORTING, &error))?;
        let export = match kind {
            Kind::Snapshot => self.open_snapshot(id).await?,
            Kind::Image => self.open_image(id).await?,
        };
        let (sender, receiver) = mpsc::channel(PENDING);
        spawn_blocking(move || {
            let _turn = turn;
            if let Err(error) = export.run(&sender) {
                tracing::warn!(%error, "an export ended before its end");
                send(&sender, Err(error));
            }
        });
        Ok(receiver)
    }

    async fn open_image(&self, id: &str) -> Result<Export, AgentError> {
        let image = self.images.get(id)?;
        let file = self.volumes.open_image(&images::name_of(id)).await.map_err(|error| match error {
            DiskError::UnknownImage(_) => images::missing(),
            other => other.into(),
        })?;
        let disk = Source::file(Name::Disk, file).map_err(|error| of_files(EXPORTING, &error))?;
        let record = Record::Image((*image).clone()).encode()?;
        Ok(Export::new(Kind::Image, id, record, vec![disk], None, None))
    }

    async fn open_snapshot(&self, id: &str) -> Result<Export, AgentError> {
        let snapshot = self.named.get(id)?;
        let (disk, copied) = self.open_disk(&named::volume_of(snapshot.build)).await?;
        let mut sources = vec![disk];
        let (mut origin, mut verification) = (None, None);
        if !snapshot.without_memory {
            let whole = self.snapshots.open_whole(snapshot.build).await?;
            let state = Source::file(Name::State, whole.state);
            let state = state.map_err(|error| of_files(EXPORTING, &error))?;
            sources.extend([Source::memory(whole.memory), state]);
            (origin, verification) = (Some(whole.origin), Some(whole.verification));
        }
        let record = Record::Snapshot { snapshot: Box::new((*snapshot).clone()), origin }.encode()?;
        Ok(Export::new(Kind::Snapshot, id, record, sources, verification, copied))
    }

    /// Opens the disk of a snapshot. One that is a device is copied before: others copy it meanwhile, and it may go.
    async fn open_disk(&self, volume: &str) -> Result<(Source, Option<Copied>), AgentError> {
        let missing = |error| match error {
            DiskError::UnknownVolume(_) => named::missing(),
            other => AgentError::from(other),
        };
        let mut copied = None;
        let mut id = volume.to_owned();
        if self.volumes.shares_images() {
            id = format!("{PREFIX}{}", BuildId::new());
            copied = Some(Copied::of(self.volumes.clone(), volume, id.clone()).await.map_err(missing)?);
        }
        let device = self.volumes.attach(&id, geteuid().as_raw()).await.map_err(missing)?;
        let (path, is_device) = (device.path, device.numbers.is_some());
        let file = spawn_blocking(move || File::open(path)).await;
        let file = file.unwrap_or_else(|error| Err(error.into()));
        let file = file.map_err(|error| of_files(EXPORTING, &error))?;
        Ok((Source::volume(file, device.size, is_device), copied))
    }
}

impl Export {
    fn new(
        kind: Kind,
        id: &str,
        record: Vec<u8>,
        sources: Vec<Source>,
        verification: Option<Verification>,
        copied: Option<Copied>,
    ) -> Self {
        let files = sources.iter().map(|source| (source.name, source.length)).collect();
        let head = Head { kind, id: id.to_owned(), files };
        Self { head, record, sources, verification, _copied: copied }
    }

    /// Sends everything, or until nobody takes it. Blocks.
    fn run(&self, sender: &mpsc::Sender<Result<Message, AgentError>>) -> Result<(), AgentError> {
        let failed = |error: std::io::Error| of_files(EXPORTING, &error);
        let mut sums = Sums::default();
        if !send(sender, Ok(Message::Head(self.head.clone()))) {
            return Ok(());
        }
        for source in &self.sources {
            for index in source.pieces().map_err(failed)? {
                let Some(piece) = source.piece(index).map_err(failed)? else { continue };
                sums.add(&piece);
                if !send(sender, Ok(Message::Piece(piece))) {
                    return Ok(());
                }
            }
        }
        // What was read is in memory now. A host that took damage for a memory would sum it as that.
        if let Some(verification) = &self.verification {
            verification.run()?;
        }
        let sum = sums.total(&self.head, &self.record);
        send(sender, Ok(Message::End(End { record: self.record.clone(), sum })));
        Ok(())
    }
}

/// Sends a message; returns false if nobody takes it. Blocks.
fn send(sender: &mpsc::Sender<Result<Message, AgentError>>, message: Result<Message, AgentError>) -> bool {
    let sent = Handle::current().block_on(async { timeout(STALLED, sender.send(message)).await });
    matches!(sent, Ok(Ok(())))
}
