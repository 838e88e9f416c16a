// SPDX-License-Identifier: Apache-2.0
//! Time to clone a large image compared with a small one: with shared extents the size must not matter.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use wrenn_disk::{Backend, StoreConfig, Volumes, loopfs};

use crate::row::Row;

const MIB: u64 = 1 << 20;
const SMALL: u64 = 300;
const LARGE: u64 = 5120;
const ROUNDS: usize = 60;

/// Writes an image without zeros.
fn write_image(path: &Path, mib: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0_u8; MIB as usize];
    for index in 0..mib {
        block.fill((index % 251) as u8 + 1);
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

async fn clone(store: &dyn Volumes, image: &str, id: &str) -> Result<Duration> {
    let begin = Instant::now();
    store.clone_image(image, id, LARGE + 1, 0).await?;
    let took = begin.elapsed();
    store.remove(id).await?;
    Ok(took)
}

async fn rounds(dir: &Path, store_dir: &Path, backend: Backend, what: &'static str) -> Result<Row> {
    let store = wrenn_disk::open(StoreConfig::new(store_dir, backend, "bench")).await?;
    for (name, mib) in [("small", SMALL), ("large", LARGE)] {
        let source = dir.join(name);
        write_image(&source, mib)?;
        store.prepare(name, &source).await?;
        std::fs::remove_file(source)?;
    }
    let (mut large, mut small) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        small.push(clone(&*store, "small", &format!("s{round}")).await?);
        large.push(clone(&*store, "large", &format!("l{round}")).await?);
    }
    Ok(Row::ratio(what, &large, &small, 1.2))
}

/// Measures clones with shared extents on a new XFS.
pub(crate) async fn large_against_small() -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    let (file, mount) = (dir.path().join("store.xfs"), dir.path().join("store"));
    loopfs::mount_store(&file, &mount, 20 << 30)
        .context("the bench needs root, mkfs.xfs and a loop device")?;
    let what = "clone a 5 GiB image ÷ a 300 MiB one (reflink)";
    let row = rounds(dir.path(), &mount, Backend::Reflink, what).await;
    loopfs::unmount_store(&mount)?;
    row
}

/// Measures dm-snapshots; `None` if this machine has no device-mapper.
pub(crate) async fn snapshots() -> Result<Option<Row>> {
    // A directory that is large enough for the images and not in memory.
    let place = if std::env::var_os("IN_LAB").is_some() { "/var/lib/wrenn" } else { "/var/tmp" };
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in(place)?;
    let store = dir.path().join("store");
    if let Err(error) = wrenn_disk::open(StoreConfig::new(&store, Backend::Dm, "bench")).await {
        eprintln!("bench: no row for dm-snapshot here: {error}");
        return Ok(None);
    }
    let what = "clone a 5 GiB image ÷ a 300 MiB one (dm-snapshot)";
    rounds(dir.path(), &store, Backend::Dm, what).await.map(Some)
}
