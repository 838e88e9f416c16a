// SPDX-License-Identifier: Apache-2.0
//! Faults specific to device-mapper.

use std::fs::File;

use anyhow::ensure;
use wrenn_disk::{Backend, DiskError, StoreConfig};

use super::{MIB, byte_at, image, write_at};
use crate::fixture::{Shared, instance, loops, mapped, run};

async fn prepared(shared: &Shared) -> anyhow::Result<()> {
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    Ok(shared.store.prepare("minimal", &source).await?)
}

pub(super) async fn a_busy_device_stays_whole(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    let volume = store.clone_image("minimal", "sb1", 64, 0).await?;
    write_at(&volume.path, &[9], 5 * MIB)?;
    let holder = File::open(&volume.path)?;
    let name = format!("wr{}-sb1", shared.instance);
    for error in [
        store.remove("sb1").await.err(),
        store.detach("sb1").await.err(),
        store.clone_image("minimal", "sb1", 64, 0).await.err(),
    ] {
        ensure!(
            matches!(&error, Some(DiskError::Busy { device, open_count: 1 }) if *device == name),
            "{error:?}"
        );
    }
    let found = store.reclaim(&[]).await?;
    assert_eq!((found.volumes, found.busy), (vec![], vec!["sb1".to_owned()]));
    assert_eq!((byte_at(&volume.path, 4 * MIB), byte_at(&volume.path, 5 * MIB)), (7, 9));
    assert_eq!(store.list().await?, ["sb1"]);
    // Detach waits until the device is closed.
    let closing = tokio::task::spawn_blocking(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(holder);
    });
    store.detach("sb1").await?;
    closing.await?;
    let path = store.attach("sb1", 0).await?.path;
    assert_eq!((byte_at(&path, 4 * MIB), byte_at(&path, 5 * MIB)), (7, 9));
    Ok(store.remove("sb1").await?)
}

/// A clone that waits for a device that is busy holds up no other clone.
pub(super) async fn a_busy_device_holds_up_no_other_volume(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let volume = shared.store.clone_image("minimal", "sb1", 64, 0).await?;
    let holder = File::open(&volume.path)?;
    let store = shared.store.clone();
    let waiting = tokio::spawn(async move { store.clone_image("minimal", "sb1", 64, 0).await });
    for id in ["sb2", "sb3"] {
        shared.store.clone_image("minimal", id, 64, 0).await?;
    }
    ensure!(!waiting.is_finished(), "the others waited for it");
    drop(holder);
    waiting.await??;
    for id in ["sb1", "sb2", "sb3"] {
        shared.store.remove(id).await?;
    }
    Ok(())
}

/// A volume whose record is broken may read any image.
pub(super) async fn no_image_goes_while_a_record_is_unreadable(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    let volume = store.clone_image("minimal", "sb1", 64, 0).await?;
    let record = shared.dir.join("volumes/sb1.json");
    let text = std::fs::read(&record)?;
    std::fs::write(&record, &text[..text.len() / 2])?;
    let refused = store.remove_image("minimal").await.err();
    ensure!(matches!(&refused, Some(DiskError::Unreadable { volume, .. }) if volume == "sb1"), "{refused:?}");
    // New content under the name leaves the old one to the volume.
    let source = shared.scratch.join("other.img");
    image(&source, 8);
    store.prepare("minimal", &source).await?;
    store.reclaim(&["sb1".to_owned()]).await?;
    std::fs::write(&record, &text)?;
    store.detach("sb1").await?;
    store.attach("sb1", 0).await?;
    assert_eq!(byte_at(&volume.path, 4 * MIB), 7);
    Ok(store.remove("sb1").await?)
}

pub(super) async fn foreign_devices_are_not_touched(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    // Another agent on this machine, and a foreign device with a similar name.
    let (dir, other) = (shared.scratch.join("other"), instance());
    let second = wrenn_disk::open(StoreConfig::new(&dir, Backend::Dm, &other)).await?;
    second.prepare("minimal", &shared.scratch.join("source.img")).await?;
    let theirs = second.clone_image("minimal", "sb1", 64, 0).await?;
    let foreign = format!("wr{}x-sb1", shared.instance);
    run("dmsetup", &["create", &foreign, "--table", "0 2048 zero"])?;
    shared.store.clone_image("minimal", "sb1", 64, 0).await?;

    let found = shared.store.reclaim(&[]).await?;
    assert_eq!(found.volumes, ["sb1"]);
    assert_eq!((mapped(&foreign), mapped(&format!("wr{other}-"))), (1, 2));
    assert_eq!(byte_at(&theirs.path, 4 * MIB), 7);

    // Cleaning up one agent does not affect the other.
    shared.store.clone_image("minimal", "sb2", 64, 0).await?;
    wrenn_disk::cleanup(&shared.dir, &shared.instance, &["sb2".into()]).await?;
    assert_eq!(mapped(&format!("wr{}-", shared.instance)), 0);
    ensure!(shared.store.list().await?.is_empty());
    assert_eq!((mapped(&foreign), mapped(&format!("wr{other}-"))), (1, 2));
    run("dmsetup", &["remove", &foreign])?;
    second.remove("sb1").await?;
    assert_eq!(mapped(&format!("wr{other}-")), 0);
    Ok(())
}

pub(super) async fn interrupted_mappings_are_made_again(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    let (snapshot, base) = (format!("wr{}-sb1", shared.instance), format!("wr{}-sb1+base", shared.instance));
    // A killed agent can leave any of these.
    let remains: [&[&str]; 3] = [&[&base], &[&base, &snapshot], &[&snapshot]];
    for names in remains {
        let volume = store.clone_image("minimal", "sb1", 64, 0).await?;
        write_at(&volume.path, &[9], 5 * MIB)?;
        store.detach("sb1").await?;
        for name in names {
            run("dmsetup", &["create", name, "--notable"])?;
        }
        let path = shared.reopened().await.attach("sb1", 0).await?.path;
        assert_eq!((byte_at(&path, 4 * MIB), byte_at(&path, 5 * MIB)), (7, 9));
        store.remove("sb1").await?;
        for name in names {
            run("dmsetup", &["create", name, "--notable"])?;
        }
        assert_eq!(store.reclaim(&[]).await?.volumes, ["sb1"]);
        assert_eq!(mapped(&format!("wr{}-", shared.instance)), 0);
    }
    Ok(())
}

pub(super) async fn images_have_one_loop_device_while_they_are_used(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    let store = &shared.store;
    for id in ["sb1", "sb2", "sb3"] {
        store.clone_image("minimal", id, 64, 0).await?;
    }
    let images = shared.dir.join("images");
    assert_eq!((loops(&images), loops(&shared.dir)), (1, 4));
    // Also for an agent that does not know the previous agent's devices.
    shared.reopened().await.clone_image("minimal", "sb4", 64, 0).await?;
    assert_eq!((loops(&images), loops(&shared.dir)), (1, 5));
    for id in ["sb1", "sb2", "sb3"] {
        store.remove(id).await?;
    }
    assert_eq!((loops(&images), loops(&shared.dir)), (1, 2));
    store.remove("sb4").await?;
    assert_eq!(loops(&shared.dir), 0);
    Ok(())
}

pub(super) async fn a_table_has_a_tail_of_zeros(shared: Shared) -> anyhow::Result<()> {
    prepared(&shared).await?;
    shared.store.clone_image("minimal", "sb1", 64, 0).await?;
    let base = run("dmsetup", &["table", &format!("wr{}-sb1+base", shared.instance)])?;
    let lines: Vec<&str> = base.lines().map(str::trim).collect();
    ensure!(lines[0].starts_with("0 32768 linear 7:") && lines[1] == "32768 98304 zero", "{base}");
    let status = run("dmsetup", &["status", &format!("wr{}-sb1", shared.instance)])?;
    ensure!(status.starts_with("0 131072 snapshot ") && status.contains('/'), "{status}");
    Ok(shared.store.remove("sb1").await?)
}
