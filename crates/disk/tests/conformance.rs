//! What every kind of volume must do, on both kinds. Needs root: the reflink one mounts an XFS.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use wrenn_disk::{Backend, DiskError, Store, Volumes, loopfs};

const MIB: usize = 1 << 20;

fn image(path: &Path, fill: u8) {
    let file = File::create(path).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&vec![fill; MIB], 4 << 20).unwrap();
}

fn byte_at(path: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

async fn suite(store: &dyn Volumes, scratch: &Path) {
    let source = scratch.join("source.img");
    image(&source, 7);
    store.prepare("minimal", &source).await.unwrap();
    store.prepare("minimal", &source).await.unwrap();
    assert_eq!(store.images().await.unwrap(), ["minimal"]);

    let one = store.clone_image("minimal", "sb1", 64, 4242).await.unwrap();
    let two = store.clone_image("minimal", "sb2", 64, 4242).await.unwrap();
    let meta = fs::metadata(&one.path).unwrap();
    assert_eq!((one.size, meta.len(), meta.uid(), meta.mode() & 0o777), (64 << 20, 64 << 20, 4242, 0o600));
    assert_eq!((byte_at(&one.path, 4 << 20), byte_at(&one.path, 60 << 20)), (7, 0));
    assert!(store.usage("sb1").await.unwrap() <= 2 << 20, "the clone is not sparse");

    // What one writes, neither the other nor the image sees.
    File::options().write(true).open(&one.path).unwrap().write_all_at(&[9], 4 << 20).unwrap();
    assert_eq!((byte_at(&one.path, 4 << 20), byte_at(&two.path, 4 << 20)), (9, 7));
    let three = store.clone_image("minimal", "sb3", 16, 0).await.unwrap();
    assert_eq!(byte_at(&three.path, 4 << 20), 7);

    // Other content under the same name is for later clones only.
    image(&source, 8);
    store.prepare("minimal", &source).await.unwrap();
    let four = store.clone_image("minimal", "sb4", 16, 0).await.unwrap();
    assert_eq!((byte_at(&four.path, 4 << 20), byte_at(&two.path, 4 << 20)), (8, 7));

    assert_eq!(store.list().await.unwrap(), ["sb1", "sb2", "sb3", "sb4"]);
    for id in ["sb1", "sb2", "sb3", "sb4", "sb4", "never"] {
        store.remove(id).await.unwrap();
    }
    assert!(store.list().await.unwrap().is_empty());

    let small = store.clone_image("minimal", "sb5", 1, 0).await;
    assert!(matches!(small, Err(DiskError::TooSmall { asked_mb: 1, image_mb: 16 })), "{small:?}");
    let unknown = store.clone_image("other", "sb5", 64, 0).await;
    assert!(matches!(unknown, Err(DiskError::UnknownImage(_))), "{unknown:?}");
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "ä", &"x".repeat(65)] {
        assert!(
            matches!(store.clone_image(name, "sb5", 64, 0).await, Err(DiskError::InvalidName(_))),
            "{name:?}"
        );
        assert!(matches!(store.clone_image("minimal", name, 64, 0).await, Err(DiskError::InvalidName(_))));
        assert!(matches!(store.prepare(name, &source).await, Err(DiskError::InvalidName(_))));
        assert!(matches!(store.remove(name).await, Err(DiskError::InvalidName(_))));
    }
    assert!(store.list().await.unwrap().is_empty(), "a refused clone left something");
    let (total, free) = store.space().await.unwrap();
    assert!(total >= free && free > 0);
}

#[tokio::test]
async fn copies_conform() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Backend::Copy).await.unwrap();
    assert_eq!(store.backend(), "copy");
    suite(&store, dir.path()).await;
}

/// Loop devices that are backed by a file below `dir`.
fn loops(dir: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let backing = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    devices.filter_map(backing).filter(|file| Path::new(file.trim()).starts_with(dir)).count()
}

#[tokio::test]
async fn reflinks_conform_and_a_full_disk_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (file, mounted) = (dir.path().join("volumes.xfs"), dir.path().join("store"));
    loopfs::mount_store(&file, &mounted, 320 << 20).unwrap();
    loopfs::mount_store(&file, &mounted, 320 << 20).unwrap();
    assert_eq!(loops(dir.path()), 1);
    let store = Store::open(&mounted, Backend::Auto).await.unwrap();
    assert_eq!(store.backend(), "reflink");
    suite(&store, dir.path()).await;

    // More than there is room for: nothing of it stays.
    let big = dir.path().join("big.img");
    fs::write(&big, vec![1; 400 * MIB]).unwrap();
    let free = store.space().await.unwrap().1;
    assert!(matches!(store.prepare("big", &big).await, Err(DiskError::Full)));
    assert!(matches!(store.clone_image("big", "sb6", 400, 0).await, Err(DiskError::UnknownImage(_))));
    assert!(store.space().await.unwrap().1 + (1 << 20) >= free, "the failed image left something");

    loopfs::unmount_store(&mounted).unwrap();
    loopfs::unmount_store(&mounted).unwrap();
    assert_eq!(loops(dir.path()), 0);
}
