// SPDX-License-Identifier: Apache-2.0
//! Stores that are almost full.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::ensure;
use wrenn_disk::{BlockDevice, DiskError, Health};

use super::{MIB, byte_at, image};
use crate::fixture::{Kind, Shared};

pub(super) async fn little_room_is_noticed_before_it_is_gone(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await?;

    // An image larger than the free space leaves nothing.
    let big = shared.scratch.join("big.img");
    fs::write(&big, vec![1; 400 * MIB as usize])?;
    let free = store.space().await?.1;
    ensure!(matches!(store.prepare("big", &big).await, Err(DiskError::Full)));
    fs::remove_file(&big)?;
    ensure!(matches!(store.clone_image("big", "sb6", 400, 0).await, Err(DiskError::UnknownImage(_))));
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.space().await?.1 + MIB < free {
        ensure!(Instant::now() < deadline, "the failed image left something");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.images().await?, ["minimal"]);

    // A guest fills a disk that is larger than the store.
    let volume = store.clone_image("minimal", "sb1", 1024, 0).await?;
    let other = store.clone_image("minimal", "sb2", 1024, 0).await?;
    let device = fs::File::options().write(true).open(&volume.path)?;
    let (mut noticed, mut failed) = (None, None);
    for step in 0..1024 {
        match store.health("sb1").await? {
            Health::Low { free, reserve } if noticed.is_none() => {
                ensure!(free < reserve && store.pressure().await?.is_low());
                noticed = Some(step);
                // Running guests continue; nothing new is cloned.
                let refused = store.clone_image("minimal", "sb3", 64, 0).await;
                ensure!(matches!(refused, Err(DiskError::Full)), "{refused:?}");
            }
            Health::Low { .. } | Health::Ok => {}
            other => ensure!(false, "{other:?} at {step} MiB, noticed at {noticed:?}"),
        }
        let written = device.write_all_at(&vec![3; MIB as usize], step * MIB);
        if written.and_then(|()| device.sync_data()).is_err() {
            failed = Some(step);
            break;
        }
    }
    drop(device);
    let (Some(noticed), Some(failed)) = (noticed, failed) else {
        anyhow::bail!("noticed at {noticed:?} MiB, failed at {failed:?} MiB");
    };
    ensure!(noticed + 4 < failed, "noticed at {noticed} MiB, which is too late: it failed at {failed} MiB");
    if shared.kind == Kind::Dm {
        assert_eq!(store.health("sb1").await?, Health::Invalid);
        let refused = [store.attach("sb1", 0).await.err(), store.flatten("sb1", "x").await.err()];
        ensure!(refused.iter().all(|e| matches!(e, Some(DiskError::Invalidated(_)))), "{refused:?}");
        store.detach("sb1").await?;
        assert_eq!(store.health("sb1").await?, Health::Invalid);
        let refused = store.attach("sb1", 0).await;
        ensure!(matches!(refused, Err(DiskError::Invalidated(_))), "{refused:?}");
    }
    // The other volume still reads its data.
    assert_eq!(byte_at(&other.path, 4 * MIB), 7);
    store.remove("sb1").await?;
    // XFS frees the space of a deleted file in the background.
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.health("sb2").await? != Health::Ok {
        ensure!(Instant::now() < deadline, "the room of a removed volume does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(super::write_at(&other.path, &[1], 0).is_ok());
    Ok(store.remove("sb2").await?)
}

/// Clones volume `sb1`, which is larger than the store, and opens it for writing.
async fn large_volume(shared: &Shared) -> anyhow::Result<(BlockDevice, fs::File)> {
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    shared.store.prepare("minimal", &source).await?;
    let volume = shared.store.clone_image("minimal", "sb1", 1024, 0).await?;
    let device = fs::File::options().write(true).open(&volume.path)?;
    Ok((volume, device))
}

/// A flatten that would use up the reserve is cancelled and leaves nothing.
pub(super) async fn a_flatten_leaves_the_reserve(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let (_, device) = large_volume(&shared).await?;
    for step in 0.. {
        let now = store.pressure().await?;
        if now.free < now.reserve + 32 * MIB {
            ensure!(step > 40, "only {step} MiB fit: what is copied would fit too");
            break;
        }
        device.write_all_at(&vec![3; MIB as usize], step * MIB)?;
        device.sync_data()?;
    }
    drop(device);
    let before = store.pressure().await?;
    ensure!(!before.is_low());
    let refused = store.flatten("sb1", "made").await;
    if shared.kind == Kind::Reflink {
        // Sharing extents takes no space, but the volume has no valid file system.
        ensure!(matches!(refused, Err(DiskError::BadFileSystem { .. })), "{refused:?}");
    } else {
        ensure!(matches!(refused, Err(DiskError::Full)), "{refused:?}");
    }
    assert_eq!(store.images().await?, ["minimal"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.pressure().await?.free + MIB < before.free {
        ensure!(Instant::now() < deadline, "the half of the image is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(store.remove("sb1").await?)
}

/// Data in the page cache that is not yet written to the disk counts as used space.
pub(super) async fn what_is_not_written_yet_has_its_room(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let (volume, device) = large_volume(&shared).await?;
    let mut held = None;
    for step in 0..1024 {
        let now = store.pressure().await?;
        // Stop writing at the same threshold as the agent.
        if now.available() < now.reserve / 2 {
            held = Some((step, now));
            break;
        }
        device.write_all_at(&vec![3; MIB as usize], step * MIB)?;
    }
    let Some((step, now)) = held else { anyhow::bail!("1 GiB was written and room is left") };
    device.sync_all()?;
    let health = store.health("sb1").await?;
    ensure!(matches!(health, Health::Low { .. }), "stopped at {step} MiB with {now:?}, and it is {health:?}");
    drop(device);
    assert_eq!(byte_at(&volume.path, (step - 1) * MIB), 3);
    Ok(store.remove("sb1").await?)
}
