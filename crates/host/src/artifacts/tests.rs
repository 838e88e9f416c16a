// SPDX-License-Identifier: Apache-2.0
//! Tests of exports and imports between two hosts with stores of files.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::stream;
use rustix::process::geteuid;
use tempfile::TempDir;
use tokio::time::sleep;
use wrenn_api::ErrorCode;
use wrenn_disk::{Backend, StoreConfig, Volumes};
use wrenn_memory::{BuildId, Diff, Layout, Origin, Part};
use wrenn_vmm::Diffs;

use super::{
    Artifacts,
    format::{End, Head, Kind, Message, Name, PIECE, Piece, Sums},
    record::Record,
};
use crate::{
    config::Limits,
    error::AgentError,
    images::{self, Image, Images},
    records,
    snapshots::{
        Snapshots,
        named::{self, NamedSnapshot, NamedSnapshots},
        templates::TemplateSnapshots,
    },
};

const MIB: u64 = 1 << 20;
/// Size of the disk of the snapshot in MiB, and of its memory in bytes: both have a piece of zeros in their middle.
const DISK_MB: u64 = 16;
const MEMORY: u64 = 3 * PIECE;
const STATE: &str = "registers and devices";

/// What an agent has of artifacts.
struct Host {
    dir: TempDir,
    volumes: Arc<dyn Volumes>,
    snapshots: Arc<Snapshots>,
    named: Arc<NamedSnapshots>,
    images: Arc<Images>,
    artifacts: Arc<Artifacts>,
}

impl Host {
    async fn new() -> anyhow::Result<Self> {
        Self::start(tempfile::tempdir()?).await
    }

    /// Starts as an agent does that finds this.
    async fn start(dir: TempDir) -> anyhow::Result<Self> {
        let [disks, of_named, of_images] = ["disks", "named", "images"].map(|name| dir.path().join(name));
        let volumes = wrenn_disk::open(StoreConfig::new(&disks, Backend::Copy, "t")).await?;
        let found: Vec<NamedSnapshot> = records::read(&of_named)?;
        let kept: Vec<Image> = records::read(&of_images)?;
        let of_disks: Vec<_> = found.iter().map(|snapshot| named::volume_of(snapshot.build)).collect();
        volumes.reclaim(&of_disks).await?;
        images::remove_incomplete(&kept, &*volumes).await;
        let snapshots =
            Snapshots::open(&disks.join("snapshots"), Origin::default(), Diffs::SinceStart, |_| true)?;
        snapshots.collect(&found.iter().map(|snapshot| snapshot.build).collect())?;
        let captures = dir.path().join("captures");
        let shapes = TemplateSnapshots::open(snapshots.clone(), 64, volumes.clone(), captures)?;
        let images = Images::new(&of_images, kept, volumes.clone(), shapes);
        let named = NamedSnapshots::new(&of_named, found, snapshots.clone(), volumes.clone());
        named.find_left().await?;
        let named = Arc::new(named);
        let limits = Limits { disk_size_mb: 64, memory_mb: 256, ..Limits::default() };
        let (of_volumes, of_snapshots) = (volumes.clone(), snapshots.clone());
        let artifacts = Artifacts::open(
            disks.join("artifacts"),
            limits,
            of_volumes,
            of_snapshots,
            named.clone(),
            images.clone(),
        );
        let artifacts = artifacts.await?;
        Ok(Self { dir, volumes, snapshots, named, images, artifacts })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the disk of a snapshot.
    async fn make_disk(&self, build: BuildId) -> anyhow::Result<()> {
        let disk = File::create(self.file("disk"))?;
        disk.set_len(DISK_MB * MIB)?;
        for (at, byte) in [(0, 1), (PIECE - 50, 2), (3 * PIECE + 100, 3), (DISK_MB * MIB - 100, 4)] {
            disk.write_all_at(&[byte; 100], at)?;
        }
        self.volumes.prepare("minimal", &self.file("disk")).await?;
        let owner = geteuid().as_raw();
        self.volumes.clone_image("minimal", &named::volume_of(build), DISK_MB, owner).await?;
        Ok(())
    }

    /// Makes a generation in which these blocks have this byte.
    fn make_memory(
        &self,
        parent: Option<BuildId>,
        label: &str,
        blocks: &[u64],
        byte: u8,
    ) -> anyhow::Result<BuildId> {
        let (changes, build) = (tempfile::tempfile()?, BuildId::new());
        changes.set_len(MEMORY)?;
        for block in blocks {
            changes.write_all_at(&[byte; 4096], block * 4096)?;
        }
        let layout = if parent.is_some() { Layout::Packed } else { Layout::Flat };
        let (label, origin) = (label.to_owned(), origin());
        let diff = Diff { build, changes: &changes, parent, layout, label, origin };
        let written = self.snapshots.generations.write(diff)?;
        fs::write(written.path(Part::State), STATE)?;
        written.keep()?;
        Ok(build)
    }

    /// Makes a snapshot `s`, whose memory is in two generations.
    async fn make_snapshot(&self) -> anyhow::Result<NamedSnapshot> {
        let template = self.make_memory(None, "template", &[0, 7, 2500], 8)?;
        let build = self.make_memory(Some(template), &named::label("s"), &[7, 3071], 9)?;
        self.make_disk(build).await?;
        self.keep(snapshot(build)).await
    }

    async fn keep(&self, snapshot: NamedSnapshot) -> anyhow::Result<NamedSnapshot> {
        self.named.keep(snapshot.clone()).await?;
        Ok(snapshot)
    }

    /// Makes an image `i`.
    async fn make_image(&self) -> anyhow::Result<Image> {
        let content = File::create(self.file("image"))?;
        content.set_len(2 * PIECE + MIB)?;
        content.write_all_at(b"a file system", 2 * PIECE + 5000)?;
        let name = images::name_of("i");
        self.volumes.prepare(&name, &self.file("image")).await?;
        let made = self.volumes.image(&name).await?;
        let image = Image {
            id: "i".to_owned(),
            default_user: "app".to_owned(),
            size_mb: made.size.div_ceil(MIB),
            sha256: made.hash,
            imported: None,
        };
        Ok((*self.images.keep(image).await?).clone())
    }

    async fn export(&self, kind: Kind, id: &str) -> Result<Vec<Message>, AgentError> {
        let (mut messages, mut all) = (self.artifacts.export(kind, id).await?, Vec::new());
        while let Some(message) = messages.recv().await {
            all.push(message?);
        }
        Ok(all)
    }

    async fn import(&self, messages: Vec<Message>) -> Result<u64, AgentError> {
        self.artifacts.import(stream::iter(messages.into_iter().map(Ok))).await
    }

    /// Content of the disk of a snapshot.
    async fn disk(&self, build: BuildId) -> anyhow::Result<Vec<u8>> {
        let device = self.volumes.attach(&named::volume_of(build), geteuid().as_raw()).await?;
        Ok(fs::read(device.path)?)
    }

    /// First bytes of the blocks of a memory that are not zero.
    async fn memory(&self, build: BuildId) -> anyhow::Result<BTreeMap<u64, u8>> {
        let whole = self.snapshots.open_whole(build).await?;
        whole.verification.run()?;
        let flat = tempfile::tempfile()?;
        whole.memory.write_flat(&flat)?;
        let mut content = vec![0; MEMORY as usize];
        flat.read_exact_at(&mut content, 0)?;
        Ok((0..).zip(content.chunks(4096).map(|block| block[7])).filter(|(_, byte)| *byte != 0).collect())
    }

    /// Checks that there is nothing of an artifact. What is left of an import is removed in the background.
    async fn has_nothing(&self) -> anyhow::Result<()> {
        assert!(self.named.get("s").is_err() && self.images.get("i").is_err());
        assert_eq!(self.volumes.list().await?, [""; 0]);
        assert_eq!(self.volumes.images().await?, [""; 0]);
        self.has_no_remains().await
    }

    async fn has_no_remains(&self) -> anyhow::Result<()> {
        for _ in 0..1000 {
            let partial =
                self.names("snapshots")?.into_iter().filter(|name| name.parse::<BuildId>().is_err());
            if partial.count() == 0 && self.names("artifacts")?.is_empty() {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("files of an import are left")
    }

    /// Lists a directory of the store.
    fn names(&self, dir: &str) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(self.file("disks").join(dir))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

/// What the memory of the snapshot was made with, which is another machine's.
fn origin() -> Origin {
    Origin { vmm: "another 1.2".into(), cpu: "another".into(), ..Origin::default() }
}

fn snapshot(build: BuildId) -> NamedSnapshot {
    NamedSnapshot {
        id: "s".to_owned(),
        build,
        without_memory: false,
        template: "minimal".to_owned(),
        vcpus: 1,
        memory_mb: MEMORY / MIB,
        disk_size_mb: DISK_MB,
        default_user: "app".to_owned(),
        default_workdir: "/srv".to_owned(),
        access_token: "a secret".to_owned(),
        envs: [("NAME".to_owned(), "value".to_owned())].into(),
    }
}

fn pieces(messages: &[Message]) -> Vec<(Name, u64)> {
    let piece = |message: &Message| match message {
        Message::Piece(piece) => Some((piece.file, piece.index)),
        Message::Head(_) | Message::End(_) => None,
    };
    messages.iter().filter_map(piece).collect()
}

/// The same artifact with another end, whose digest is right.
fn with_record(mut messages: Vec<Message>, record: &Record) -> anyhow::Result<Vec<Message>> {
    let Some(Message::Head(head)) = messages.first().cloned() else { anyhow::bail!("no head") };
    let (mut sums, record) = (Sums::default(), record.encode()?);
    for message in &messages {
        if let Message::Piece(piece) = message {
            sums.add(piece);
        }
    }
    let sum = sums.total(&head, &record);
    messages.pop();
    messages.push(Message::End(End { record, sum }));
    Ok(messages)
}

#[tokio::test]
async fn a_snapshot_is_the_same_on_another_host() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    let made = one.make_snapshot().await?;
    let messages = one.export(Kind::Snapshot, "s").await?;
    let (disk, memory, state) = (Name::Disk, Name::Memory, Name::State);
    assert_eq!(
        pieces(&messages),
        [(disk, 0), (disk, 1), (disk, 3), (memory, 0), (memory, 2), (state, 0)],
        "pieces of zeros are left out"
    );
    let mut shuffled = messages.clone();
    let last = shuffled.len() - 1;
    shuffled[1..last].reverse();
    let size = other.import(shuffled).await?;
    assert!(size > 0);
    let kept = other.named.get("s")?;
    assert_ne!(kept.build, made.build);
    assert_eq!(*kept, NamedSnapshot { build: kept.build, ..made.clone() });
    assert!(other.disk(kept.build).await? == one.disk(made.build).await?, "the disks differ");
    assert_eq!(other.memory(kept.build).await?, one.memory(made.build).await?);
    assert_eq!(other.memory(kept.build).await?, BTreeMap::from([(0, 8), (7, 9), (2500, 8), (3071, 9)]));
    let whole = other.snapshots.open_whole(kept.build).await?;
    assert_eq!(whole.origin, origin());
    let state = fs::read_to_string(other.snapshots.generations.path(kept.build, Part::State))?;
    assert_eq!(state, STATE);
    let refused = other.snapshots.load(kept.build).await.map(drop);
    assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::SnapshotIncompatible));
    assert_eq!(other.volumes.images().await?, [""; 0], "no disk depends on it");
    other.has_no_remains().await?;
    // Whoever has it gives the same.
    let again = other.export(Kind::Snapshot, "s").await?;
    assert_eq!(again[..last], messages[..last]);
    // It is there: nothing more is read.
    assert_eq!(other.import(messages[..1].to_vec()).await?, size);
    // The next agent has it, and it goes as a whole, and can come again.
    let Host { dir, artifacts, .. } = other;
    drop(artifacts);
    let other = Host::start(dir).await?;
    assert_eq!(*other.named.get("s")?, *kept);
    other.named.remove("s").await?;
    other.has_nothing().await?;
    assert_eq!(other.snapshots.generations.list()?, []);
    assert_eq!(other.import(messages).await?, size);
    other.named.get("s")?;
    Ok(())
}

#[tokio::test]
async fn a_snapshot_without_memory_has_a_disk_alone() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    let build = BuildId::new();
    one.make_disk(build).await?;
    let made = one.keep(NamedSnapshot { without_memory: true, ..snapshot(build) }).await?;
    let messages = one.export(Kind::Snapshot, "s").await?;
    assert!(pieces(&messages).iter().all(|(name, _)| *name == Name::Disk));
    other.import(messages.clone()).await?;
    let kept = other.named.get("s")?;
    assert!(kept.without_memory && other.disk(kept.build).await? == one.disk(build).await?);
    assert_eq!(other.snapshots.generations.list()?, []);
    // A record that says that there is a memory does not fit.
    let third = Host::new().await?;
    let snapshot = Box::new(NamedSnapshot { without_memory: false, ..made });
    let record = Record::Snapshot { snapshot, origin: None };
    let refused = third.import(with_record(messages, &record)?).await;
    assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::SnapshotDamaged));
    third.has_nothing().await
}

#[tokio::test]
async fn an_image_is_the_same_on_another_host() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    let made = one.make_image().await?;
    let messages = one.export(Kind::Image, "i").await?;
    assert_eq!(pieces(&messages), [(Name::Disk, 2)]);
    // Of another content than its record says.
    let record = Record::Image(Image { sha256: "0".repeat(64), ..made.clone() });
    let refused = other.import(with_record(messages.clone(), &record)?).await;
    assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::ImageDamaged));
    other.has_nothing().await?;
    let size = other.import(messages.clone()).await?;
    assert_eq!(*other.images.get("i")?, made);
    assert_eq!(other.volumes.image(&images::name_of("i")).await?.hash, made.sha256);
    assert_eq!(other.export(Kind::Image, "i").await?, messages);
    assert_eq!(other.import(messages[..1].to_vec()).await?, size);
    other.has_no_remains().await?;
    let missing = other.export(Kind::Image, "j").await.map(drop);
    assert_eq!(missing.map_err(|error| error.code), Err(ErrorCode::NotFound));
    let missing = other.export(Kind::Snapshot, "j").await.map(drop);
    assert_eq!(missing.map_err(|error| error.code), Err(ErrorCode::SnapshotMissing));
    Ok(())
}

/// Changes an artifact in one way.
type Damage = fn(&mut Vec<Message>);

fn piece(messages: &mut [Message], number: usize) -> &mut Piece {
    let mut pieces = messages.iter_mut().filter_map(|message| match message {
        Message::Piece(piece) => Some(piece),
        Message::Head(_) | Message::End(_) => None,
    });
    pieces.nth(number).expect("a piece")
}

fn head(messages: &mut [Message]) -> &mut Head {
    match messages.first_mut() {
        Some(Message::Head(head)) => head,
        other => panic!("{other:?}"),
    }
}

fn end(messages: &mut [Message]) -> &mut End {
    match messages.last_mut() {
        Some(Message::End(end)) => end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_damaged_or_too_large_leaves_nothing() -> anyhow::Result<()> {
    use ErrorCode::{ExceedsCapacity, InvalidRequest, SnapshotDamaged};
    let (one, other) = (Host::new().await?, Host::new().await?);
    one.make_snapshot().await?;
    let messages = one.export(Kind::Snapshot, "s").await?;
    let damages: [(&str, ErrorCode, Damage); 16] = [
        ("a flipped byte", SnapshotDamaged, |all| piece(all, 0).data[3] ^= 0x10),
        ("a flipped digest", SnapshotDamaged, |all| piece(all, 5).sum[31] ^= 1),
        ("a missing piece", SnapshotDamaged, |all| drop(all.remove(3))),
        ("a doubled piece", SnapshotDamaged, |all| all.insert(2, all[1].clone())),
        ("a piece at another place", SnapshotDamaged, |all| piece(all, 2).index = 2),
        ("another end", SnapshotDamaged, |all| end(all).sum[0] ^= 1),
        ("another record", SnapshotDamaged, |all| end(all).record.push(b' ')),
        ("no pieces", SnapshotDamaged, |all| drop(all.drain(1..7))),
        ("a larger disk", SnapshotDamaged, |all| *head(all).files.entry(Name::Disk).or_default() += PIECE),
        ("no end", InvalidRequest, |all| drop(all.pop())),
        ("no head", InvalidRequest, |all| drop(all.remove(0))),
        ("two heads", InvalidRequest, |all| all.insert(1, all[0].clone())),
        ("a piece beyond the end", InvalidRequest, |all| piece(all, 0).index = 4),
        ("a piece of another length", InvalidRequest, |all| piece(all, 0).length -= 1),
        ("an id that is a path", InvalidRequest, |all| "../s".clone_into(&mut head(all).id)),
        ("more than the host takes", ExceedsCapacity, |all| {
            head(all).files.insert(Name::Disk, 65 * MIB);
        }),
    ];
    for (what, code, damage) in damages {
        let mut damaged = messages.clone();
        damage(&mut damaged);
        assert_ne!(damaged, messages, "{what}");
        let refused = other.import(damaged).await;
        assert_eq!(refused.map_err(|error| error.code), Err(code), "{what}");
        other.has_nothing().await?;
        assert_eq!(other.snapshots.generations.list()?, [], "{what}");
    }
    // A stream that broke off.
    let broken = || AgentError::new(ErrorCode::ServiceUnavailable, "it broke off");
    let cut = messages[..4].iter().cloned().map(Ok).chain([Err(broken())]);
    assert_eq!(other.artifacts.import(stream::iter(cut)).await, Err(broken()));
    other.has_nothing().await?;
    other.import(messages).await?;
    Ok(())
}

#[tokio::test]
async fn damage_of_a_memory_is_not_exported_as_a_whole() -> anyhow::Result<()> {
    let host = Host::new().await?;
    let made = host.make_snapshot().await?;
    let data = File::options().write(true).open(host.snapshots.generations.path(made.build, Part::Data))?;
    data.write_all_at(&[1], 4096)?;
    let mut messages = host.artifacts.export(Kind::Snapshot, "s").await?;
    let mut last = None;
    while let Some(message) = messages.recv().await {
        assert!(!matches!(message, Ok(Message::End(_))), "it ended as if it were sound");
        last = Some(message);
    }
    let error = last.and_then(Result::err).map(|error| error.code);
    assert_eq!(error, Some(ErrorCode::SnapshotDamaged));
    Ok(())
}

#[tokio::test]
async fn imports_of_one_artifact_at_once_make_one() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    one.make_snapshot().await?;
    let messages = one.export(Kind::Snapshot, "s").await?;
    let import = || other.import(messages.clone());
    let (a, b, c) = tokio::join!(import(), import(), import());
    assert!(a.is_ok() && a == b && b == c, "{a:?} {b:?} {c:?}");
    assert_eq!(other.snapshots.generations.list()?.len(), 1);
    assert_eq!(other.volumes.list().await?.len(), 1);
    Ok(())
}

/// An agent that was killed while it took an artifact in, with and without all pieces.
#[tokio::test]
async fn the_next_start_removes_half_an_import() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    one.make_snapshot().await?;
    let mut messages = one.export(Kind::Snapshot, "s").await?;
    let receiving = other.artifacts.begin(head(&mut messages).clone()).await?;
    // As after a crash.
    std::mem::forget(receiving);
    // The disk was made, and the record was not written.
    let build = BuildId::new();
    other.make_disk(build).await?;
    other.volumes.take_image(&named::volume_of(build), &other.file("disk")).await?;
    let Host { dir, volumes, .. } = other;
    volumes.remove_image("minimal").await?;
    let next = Host::start(dir).await?;
    next.named.drop_left().await;
    next.has_nothing().await?;
    next.import(messages).await?;
    Ok(())
}

#[tokio::test]
async fn who_gives_up_leaves_nothing() -> anyhow::Result<()> {
    let (one, other) = (Host::new().await?, Host::new().await?);
    one.make_snapshot().await?;
    let messages = one.export(Kind::Snapshot, "s").await?;
    let begun = stream::iter(messages[..4].iter().cloned().map(Ok));
    let silent = futures::StreamExt::chain(begun, stream::pending());
    let importing = other.artifacts.import(silent);
    assert!(tokio::time::timeout(Duration::from_millis(500), importing).await.is_err());
    other.has_nothing().await?;
    other.import(messages).await?;
    Ok(())
}
