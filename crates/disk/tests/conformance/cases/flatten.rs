// SPDX-License-Identifier: Apache-2.0
//! Flattening of volumes with valid and corrupt file systems.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use anyhow::{Context, ensure};
use wrenn_disk::DiskError;

use super::MIB;
use crate::fixture::{Shared, run};

/// Creates an ext4 of `mib` MiB with some files.
fn file_system(shared: &Shared, mib: u64) -> anyhow::Result<std::path::PathBuf> {
    let (tree, path) = (shared.scratch.join("tree"), shared.scratch.join("root.ext4"));
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(tree.join("etc/hello"), "hello\n")?;
    fs::write(tree.join("secret"), "the secret words ".repeat(3000))?;
    fs::write(tree.join("large"), vec![b'x'; 2 * MIB as usize])?;
    for index in 0..200 {
        fs::write(tree.join(format!("etc/file{index}")), format!("{index}\n"))?;
    }
    File::create(&path)?.set_len(mib * MIB)?;
    let (tree, target) = (tree.to_str().context("path")?, path.to_str().context("path")?);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree, target])?;
    Ok(path)
}

fn debugfs(path: &Path, command: &str) -> anyhow::Result<String> {
    run("debugfs", &["-w", "-R", command, path.to_str().context("path")?])
}

/// Fails unless the file system is valid.
fn check(path: &Path) -> anyhow::Result<()> {
    run("e2fsck", &["-f", "-n", path.to_str().context("path")?]).map(drop)
}

/// Path of the content of image `name`.
fn content(shared: &Shared, name: &str, hash: &str) -> std::path::PathBuf {
    shared.dir.join("images").join(name).join(format!("{hash}.img"))
}

pub(super) async fn a_flattened_volume_is_an_image_with_the_same_files(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    store.prepare("root", &file_system(&shared, 32)?).await?;
    let volume = store.clone_image("root", "sb1", 200, 0).await?;
    // Actions of a guest: grow the file system, add and remove files.
    run("resize2fs", &["-f", volume.path.to_str().context("path")?])?;
    let added = shared.scratch.join("added");
    fs::write(&added, "added words")?;
    debugfs(&volume.path, &format!("write {} /etc/added", added.display()))?;
    debugfs(&volume.path, "rm /secret")?;
    debugfs(&volume.path, "rm /etc/file7")?;

    for round in 0..2 {
        if round == 1 {
            // Also while the volume is detached.
            store.detach("sb1").await?;
        }
        let image = store.flatten("sb1", "made").await?;
        ensure!(image.name == "made" && image.size < 40 * MIB, "it did not shrink: {image:?}");
        let path = content(&shared, "made", &image.hash);
        let meta = fs::metadata(&path)?;
        assert_eq!((meta.len(), meta.uid(), meta.mode() & 0o777), (image.size, 0, 0o400));
        check(&path)?;
        let bytes = fs::read(&path)?;
        let secret = bytes.windows(17).any(|window| window == b"the secret words ");
        ensure!(!secret, "a removed file's content is in the image");
    }
    assert_eq!(store.images().await?, ["made", "root"]);

    let clone = store.clone_image("made", "sb2", 100, 0).await?;
    check(&clone.path)?;
    assert_eq!(debugfs(&clone.path, "cat /etc/hello")?, "hello\n");
    assert_eq!(debugfs(&clone.path, "cat /etc/added")?, "added words");
    assert_eq!(debugfs(&clone.path, "cat /etc/file199")?, "199\n");
    assert_eq!(debugfs(&clone.path, "cat /large")?, "x".repeat(2 * MIB as usize));
    assert_eq!(debugfs(&clone.path, "cat /secret")?, "");
    // A clone can be grown.
    run("resize2fs", &[clone.path.to_str().context("path")?])?;
    check(&clone.path)?;
    let said = run("dumpe2fs", &["-h", clone.path.to_str().context("path")?])?;
    let blocks = said.lines().find_map(|line| line.strip_prefix("Block count:")).context("dumpe2fs")?;
    let size = said.lines().find_map(|line| line.strip_prefix("Block size:")).context("dumpe2fs")?;
    assert_eq!(blocks.trim().parse::<u64>()? * size.trim().parse::<u64>()?, 100 * MIB);
    store.remove("sb1").await?;
    store.remove("sb2").await?;

    // An invalid file system is reported.
    let volume = store.clone_image("root", "sb3", 32, 0).await?;
    super::write_at(&volume.path, &vec![0; MIB as usize], 0)?;
    let refused = store.flatten("sb3", "bad").await;
    ensure!(matches!(refused, Err(DiskError::BadFileSystem { .. })), "{refused:?}");
    ensure!(!store.images().await?.contains(&"bad".to_owned()));
    Ok(store.remove("sb3").await?)
}

/// Pseudorandom generator with the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Overwrites file system metadata with random bytes, as a guest could.
fn corrupt(bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut bytes, mut random) = (bytes.to_vec(), Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    let length = bytes.len() as u64;
    for _ in 0..=random.next(40) {
        // Sometimes the superblock, but rarely, because most tools stop there; mostly the groups, bitmaps and
        // inodes after it; else anything.
        let (from, to) = match random.next(4) {
            0 if seed.is_multiple_of(5) => (1024, 2048),
            0..=2 => (2048, 1 << 20),
            _ => (2048, length),
        };
        let at = (from + random.next(to - from)) as usize;
        for byte in bytes.iter_mut().skip(at).take(1 + random.next(64) as usize) {
            *byte = random.next(256) as u8;
        }
    }
    bytes
}

fn unfinished(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(unfinished(&path));
        } else if path.extension().is_some_and(|end| end == "partial") {
            found.push(path);
        }
    }
    found
}

pub(super) async fn corrupt_file_systems_are_refused_or_repaired(shared: Shared) -> anyhow::Result<()> {
    let store = &shared.store;
    let sound = file_system(&shared, 8)?;
    store.prepare("root", &sound).await?;
    let bytes = fs::read(&sound)?;
    let volume = store.clone_image("root", "sb1", 9, 0).await?;
    let (mut repaired, mut refused) = (0, 0);
    // Fewer in the emulated lab; the tools are the same.
    let seeds = if std::env::var_os("IN_LAB").is_some() { 12 } else { 50 };
    for seed in 1..=seeds {
        let device = File::options().write(true).open(&volume.path)?;
        device.write_all_at(&corrupt(&bytes, seed), 0)?;
        drop(device);
        match store.flatten("sb1", "made").await {
            Ok(image) => {
                let path = content(&shared, "made", &image.hash);
                check(&path).with_context(|| format!("seed {seed}"))?;
                repaired += 1;
            }
            Err(DiskError::BadFileSystem { reason, .. }) => {
                ensure!(reason.len() < 4096, "seed {seed}");
                refused += 1;
            }
            Err(error) => return Err(error).with_context(|| format!("seed {seed}")),
        }
        assert_eq!(unfinished(&shared.dir), Vec::<std::path::PathBuf>::new(), "seed {seed}");
    }
    eprintln!("corrupt file systems: {repaired} repaired, {refused} refused");
    ensure!(repaired > 0 && refused > 0, "the corruption is too weak or too strong to show anything");
    Ok(store.remove("sb1").await?)
}
