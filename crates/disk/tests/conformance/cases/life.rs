// SPDX-License-Identifier: Apache-2.0
//! Restarts, reclaim and concurrent use of volumes.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use anyhow::ensure;
use tokio::task::JoinSet;
use wrenn_disk::{DiskError, Health, Volumes};

use super::{MIB, byte_at, image, write_at};
use crate::fixture::{Kind, Shared, resources};

async fn prepared(shared: &Shared) -> anyhow::Result<()> {
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    Ok(shared.store.prepare("minimal", &source).await?)
}

pub(super) async fn a_volume_comes_back_with_what_was_written(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    let volume = store.clone_image("minimal", "sb1", 64, 1).await?;
    write_at(&volume.path, &[9], 5 * MIB)?;
    write_at(&volume.path, &[8], 63 * MIB)?;
    let bytes = |path: &Path| (byte_at(path, 4 * MIB), byte_at(path, 5 * MIB), byte_at(path, 63 * MIB));
    // Attaching an attached volume returns the same device.
    assert_eq!(store.attach("sb1", 2).await?, volume);
    for _ in 0..3 {
        store.detach("sb1").await?;
        store.detach("sb1").await?;
        assert_eq!(store.health("sb1").await?, Health::Ok);
        // Another agent can attach it.
        let again = shared.reopened().await.attach("sb1", 3).await?;
        assert_eq!((bytes(&again.path), again.size), ((7, 9, 8), 64 * MIB));
    }
    // A killed agent leaves it attached.
    let again = shared.reopened().await.attach("sb1", 3).await?;
    assert_eq!(bytes(&again.path), (7, 9, 8));
    Ok(store.remove("sb1").await?)
}

pub(super) async fn a_copy_is_equal_and_independent(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    let original = store.clone_image("minimal", "sb1", 64, 1).await?;
    // Not synced: it is in the cache of the volume.
    File::options().write(true).open(&original.path)?.write_all_at(&[9], 5 * MIB)?;
    write_at(&original.path, &[8], 63 * MIB)?;
    store.copy("sb1", "frozen.1").await?;
    write_at(&original.path, &[1], 5 * MIB)?;
    store.remove("sb1").await?;
    let bytes = |path: &Path| (byte_at(path, 4 * MIB), byte_at(path, 5 * MIB), byte_at(path, 63 * MIB));
    // Several at once, and one more of a copy.
    let mut copies = JoinSet::new();
    for id in ["sb2", "sb3", "sb4"] {
        let store = store.clone();
        copies.spawn(async move {
            store.copy("frozen.1", id).await?;
            store.attach(id, 1).await
        });
    }
    let copies = copies.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    for copy in &copies {
        assert_eq!((bytes(&copy.path), copy.size), ((7, 9, 8), 64 * MIB));
    }
    write_at(&copies[0].path, &[2], 4 * MIB)?;
    assert_eq!((byte_at(&copies[0].path, 4 * MIB), byte_at(&copies[1].path, 4 * MIB)), (2, 7));
    assert!(matches!(store.copy("absent", "sb5").await, Err(DiskError::UnknownVolume(_))));
    // It replaces a volume, and is itself one that nobody claims.
    store.copy("frozen.1", "sb2").await?;
    assert_eq!(byte_at(&store.attach("sb2", 1).await?.path, 4 * MIB), 7);
    let keep = ["sb2", "sb3", "sb4"].map(str::to_owned);
    assert_eq!(store.reclaim(&keep).await?.volumes, ["frozen.1"]);
    for id in keep {
        store.remove(&id).await?;
    }
    Ok(())
}

pub(super) async fn reclaim_takes_what_nobody_claims(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    for id in ["kept", "lost", "detached"] {
        let volume = store.clone_image("minimal", id, 64, 0).await?;
        write_at(&volume.path, &[9], 5 * MIB)?;
    }
    store.detach("detached").await?;
    image(&shared.scratch.join("source.img"), 8);
    store.prepare("minimal", &shared.scratch.join("source.img")).await?;
    for path in ["volumes/x.img.partial", "images/minimal/from-x.partial", "images/minimal/y.img.partial"] {
        fs::write(shared.dir.join(path), "unfinished")?;
    }
    let found = shared.reopened().await.reclaim(&["kept".into(), "unknown".into()]).await?;
    assert_eq!((found.volumes, found.busy), (vec!["detached".into(), "lost".into()], vec![]));
    // Three temporary files, and the first content if no volume depends on it.
    assert_eq!(found.images, if store.shares_images() { 3 } else { 4 });
    assert_eq!(store.list().await?, ["kept"]);
    let path = store.attach("kept", 0).await?.path;
    assert_eq!((byte_at(&path, 4 * MIB), byte_at(&path, 5 * MIB)), (7, 9));
    store.remove("kept").await?;
    let found = store.reclaim(&[]).await?;
    assert_eq!(found.images, usize::from(store.shares_images()), "the first content");
    assert_eq!(store.images().await?, ["minimal"]);
    Ok(())
}

pub(super) async fn a_deleted_file_is_noticed(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    store.clone_image("minimal", "sb1", 64, 0).await?;
    assert_eq!(store.health("sb1").await?, Health::Ok);
    let end = if shared.kind == Kind::Dm { "cow" } else { "img" };
    let path = shared.dir.join(format!("volumes/sb1.{end}"));
    fs::remove_file(&path)?;
    for _ in ["attached", "detached"] {
        assert_eq!(store.health("sb1").await?, Health::CowMissing);
        for result in [store.attach("sb1", 0).await.err(), store.flatten("sb1", "x").await.err()] {
            let gone = matches!(result, Some(DiskError::CowMissing(_) | DiskError::UnknownVolume(_)));
            ensure!(gone, "{result:?}");
        }
        store.detach("sb1").await?;
    }
    ensure!(!store.images().await?.contains(&"x".to_owned()));
    Ok(store.remove("sb1").await?)
}

/// Opens the kernel log at its end.
fn messages() -> std::io::Result<File> {
    let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// Lists the messages about I/O errors.
fn complaints(mut log: File) -> Vec<String> {
    let (mut found, mut buffer) = (Vec::new(), [0; 8192]);
    // Each read returns one message; after the last one it would block.
    while let Ok(read) = log.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
        if text.contains("i/o error") || text.contains("invalidating snapshot") {
            found.push(text);
        }
    }
    found
}

async fn round(store: Arc<dyn Volumes>, id: String) -> anyhow::Result<()> {
    let volume = store.clone_image("minimal", &id, 64, 0).await?;
    let path = volume.path.clone();
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let mark = id.as_bytes();
        write_at(&path, mark, 4 * MIB + 100)?;
        let mut bytes = vec![0; mark.len()];
        std::os::unix::fs::FileExt::read_exact_at(&File::open(&path)?, &mut bytes, 4 * MIB + 100)?;
        ensure!(bytes == mark && byte_at(&path, 4 * MIB) == 7, "{id} reads what another wrote");
        // Not synced: the kernel writes it back while the device is removed.
        std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(&path)?, mark, 0)?;
        Ok(())
    })
    .await??;
    Ok(())
}

pub(super) async fn many_come_and_go_at_once(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let total = if shared.kind == Kind::Copy { 80 } else { 500 };
    // One round before, which creates the runtime's threads and the loop device nodes; they stay.
    round(shared.store.clone(), "first".into()).await?;
    shared.store.remove("first").await?;
    let (log, before) = (messages()?, resources(&shared.scratch));
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        let store = shared.store.clone();
        workers.spawn(async move {
            for index in 0..=total / 8 {
                let id = format!("w{worker}-{index}");
                round(store.clone(), id.clone()).await?;
                store.remove(&id).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    assert_eq!(resources(&shared.scratch), before);
    ensure!(shared.store.list().await?.is_empty());
    let complaints = complaints(log);
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}
