// SPDX-License-Identifier: Apache-2.0
//! Images, clones and invalid arguments.

use std::{
    fs, io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::PathBuf,
};

use anyhow::ensure;
use wrenn_disk::DiskError;

use super::{MIB, byte_at, image, length, write_at};
use crate::fixture::Shared;

pub(super) async fn clones_are_equal_and_independent(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await?;
    store.prepare("minimal", &source).await?;
    assert_eq!(store.images().await?, ["minimal"]);

    let one = store.clone_image("minimal", "sb1", 64, 4242).await?;
    let two = store.clone_image("minimal", "sb2", 64, 4242).await?;
    let meta = fs::metadata(&one.path)?;
    assert_eq!(
        (one.size, length(&one.path), meta.uid(), meta.mode() & 0o777),
        (64 * MIB, 64 * MIB, 4242, 0o600)
    );
    assert_eq!(one.numbers.is_some(), meta.file_type().is_block_device());
    assert_eq!((byte_at(&one.path, 4 * MIB), byte_at(&one.path, 60 * MIB)), (7, 0));
    ensure!(store.usage("sb1").await? <= 2 * MIB, "the clone is not sparse");

    // Writes to a clone change neither the other clone nor the image, also after the image's end.
    write_at(&one.path, &[9], 4 * MIB)?;
    write_at(&one.path, &[5], 60 * MIB)?;
    assert_eq!((byte_at(&one.path, 4 * MIB), byte_at(&two.path, 4 * MIB)), (9, 7));
    assert_eq!((byte_at(&one.path, 60 * MIB), byte_at(&two.path, 60 * MIB)), (5, 0));
    let three = store.clone_image("minimal", "sb3", 16, 0).await?;
    assert_eq!(byte_at(&three.path, 4 * MIB), 7);

    // New content under the same name affects only later clones.
    image(&source, 8);
    store.prepare("minimal", &source).await?;
    let four = store.clone_image("minimal", "sb4", 16, 0).await?;
    assert_eq!((byte_at(&four.path, 4 * MIB), byte_at(&two.path, 4 * MIB)), (8, 7));

    // Cloning an existing id replaces the volume.
    let again = store.clone_image("minimal", "sb1", 32, 1).await?;
    assert_eq!((byte_at(&again.path, 4 * MIB), length(&again.path)), (8, 32 * MIB));

    assert_eq!(store.list().await?, ["sb1", "sb2", "sb3", "sb4"]);
    for id in ["sb1", "sb2", "sb3", "sb4", "sb4", "never"] {
        store.remove(id).await?;
    }
    ensure!(store.list().await?.is_empty());
    ensure!(!one.path.exists(), "the removed volume's path is there");
    Ok(())
}

pub(super) async fn a_file_becomes_an_image_without_a_copy(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.dir.join("received");
    image(&source, 7);
    let node = fs::metadata(&source)?.ino();
    let taken = store.take_image("moved", &source).await?;
    ensure!(!source.exists(), "it is at its former place, too");
    assert_eq!(store.image("moved").await?, taken);
    let opened = store.open_image("moved").await?;
    assert_eq!((opened.metadata()?.ino(), taken.size), (node, 16 * MIB));
    let clone = store.clone_image("moved", "sb1", 64, 0).await?;
    assert_eq!((byte_at(&clone.path, 4 * MIB), length(&clone.path)), (7, 64 * MIB));
    store.remove("sb1").await?;
    store.remove_image("moved").await?;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, 4 * MIB)?;
    assert_eq!(byte, [7], "what is open stays");
    let gone = store.open_image("moved").await;
    ensure!(matches!(gone, Err(DiskError::UnknownImage(_))), "{gone:?}");

    // Its hash is that of its content there, whatever the length of the file: another store gets that.
    fs::write(&source, [7; 5000])?;
    let taken = store.take_image("moved", &source).await?;
    io::copy(&mut store.open_image("moved").await?, &mut fs::File::create(&source)?)?;
    let again = store.take_image("again", &source).await?;
    assert_eq!((again.hash, again.size), (taken.hash, taken.size));
    store.remove_image("moved").await?;
    store.remove_image("again").await?;
    Ok(())
}

pub(super) async fn refusals_leave_nothing(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await?;
    let small = store.clone_image("minimal", "sb5", 1, 0).await;
    ensure!(matches!(small, Err(DiskError::TooSmall { asked_mb: 1, image_mb: 16 })), "{small:?}");
    let unknown = store.clone_image("other", "sb5", 64, 0).await;
    ensure!(matches!(unknown, Err(DiskError::UnknownImage(_))), "{unknown:?}");
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "ä", "a+base", &"x".repeat(65)] {
        let refused = [
            store.clone_image(name, "sb5", 64, 0).await.err(),
            store.clone_image("minimal", name, 64, 0).await.err(),
            store.attach(name, 0).await.err(),
            store.detach(name).await.err(),
            store.flatten(name, "minimal").await.err(),
            store.usage(name).await.err(),
            store.prepare(name, &source).await.err(),
            store.remove_image(name).await.err(),
            store.remove(name).await.err(),
        ];
        for (index, error) in refused.iter().enumerate() {
            ensure!(matches!(error, Some(DiskError::InvalidName(_))), "{index} {name:?}: {error:?}");
        }
    }
    for id in ["never", "sb5"] {
        let unknown = store.attach(id, 0).await;
        ensure!(matches!(unknown, Err(DiskError::UnknownVolume(_))), "{unknown:?}");
        let unknown = store.flatten(id, "minimal").await;
        ensure!(matches!(unknown, Err(DiskError::UnknownVolume(_))), "{unknown:?}");
        store.detach(id).await?;
    }
    ensure!(store.list().await?.is_empty(), "a refused clone left something");
    let (total, free) = store.space().await?;
    ensure!(total >= free && free > 0);
    Ok(())
}

/// Path of the content of image `name`.
fn content(shared: &Shared, name: &str) -> PathBuf {
    let files = fs::read_dir(shared.dir.join("images").join(name)).unwrap().flatten();
    files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "img")).unwrap()
}

pub(super) async fn images_do_not_change(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await?;
    let path = content(&shared, "minimal");
    assert_eq!(fs::metadata(&path)?.mode() & 0o777, 0o400);
    let volume = store.clone_image("minimal", "sb1", 16, 0).await?;
    write_at(&volume.path, &vec![1; 8 * MIB as usize], 0)?;
    ensure!(fs::read(&path)? == fs::read(&source)?, "a volume wrote to its image");
    store.remove("sb1").await?;

    // Only root can modify the content. The change is detected, and a new import repairs it.
    write_at(&path, b"changed", 0)?;
    let changed = store.clone_image("minimal", "sb1", 16, 0).await;
    ensure!(matches!(changed, Err(DiskError::ImageChanged(_))), "{changed:?}");
    store.prepare("minimal", &source).await?;
    let volume = store.clone_image("minimal", "sb1", 16, 0).await?;
    assert_eq!((byte_at(&volume.path, 0), byte_at(&volume.path, 4 * MIB)), (0, 7));
    Ok(store.remove("sb1").await?)
}

pub(super) async fn images_go_when_nothing_needs_them(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let source = shared.scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await?;
    let volume = store.clone_image("minimal", "sb1", 16, 0).await?;
    store.detach("sb1").await?;
    let refused = store.remove_image("minimal").await;
    if store.shares_images() {
        ensure!(matches!(refused, Err(DiskError::ImageInUse { volumes: 1, .. })), "{refused:?}");
    } else {
        refused?;
    }
    let path = store.attach("sb1", 0).await?.path;
    assert_eq!((byte_at(&path, 4 * MIB), path), (7, volume.path));
    store.remove("sb1").await?;
    store.remove_image("minimal").await?;
    store.remove_image("minimal").await?;
    ensure!(store.images().await?.is_empty());
    let gone = store.clone_image("minimal", "sb1", 16, 0).await;
    ensure!(matches!(gone, Err(DiskError::UnknownImage(_))), "{gone:?}");
    Ok(())
}
