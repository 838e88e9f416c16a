// SPDX-License-Identifier: Apache-2.0
//! Time to unpack the layers of an image, compared with `tar -x` of the same layers.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use wrenn_oci::{Digest, Layer, Rules, unpack};

use crate::{row::Row, slots::run};

const ROUNDS: usize = 9;
/// Directories of the lower layer, and small files in each.
const DIRECTORIES: usize = 400;
const FILES: usize = 40;
/// Large files of the lower layer, and their size.
const LARGE: usize = 16;
const LARGE_BYTES: usize = 4 << 20;
/// How many directories the upper layer changes: of each, one file is another one, and one is removed.
const CHANGED: usize = 200;

/// A layer in a file.
struct Packed {
    path: PathBuf,
    digest: Digest,
    diff_id: Digest,
}

/// Bytes that compress about as programs do: by half.
fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let mut state = seed as u32 | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8 & 0x0f
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Writes the files of both layers.
fn fill(lower: &Path, upper: &Path) -> Result<()> {
    for number in 0..DIRECTORIES {
        let name = format!("usr/{}/{number}", number % 20);
        fs::create_dir_all(lower.join(&name))?;
        for file in 0..FILES {
            let bytes = 1000 + (number * FILES + file) % 7000;
            fs::write(lower.join(&name).join(file.to_string()), content(number * FILES + file, bytes))?;
        }
        if number < CHANGED {
            fs::create_dir_all(upper.join(&name))?;
            fs::write(upper.join(&name).join("0"), content(number, 5000))?;
            // The file 1 is not there any more.
            fs::write(upper.join(&name).join(".wh.1"), "")?;
        }
    }
    for number in 0..LARGE {
        fs::write(lower.join(format!("large{number}")), content(number, LARGE_BYTES))?;
    }
    Ok(())
}

/// Packs a directory as a layer.
fn pack(tree: &Path) -> Result<Packed> {
    let (tree, tar) = (tree.display(), tree.with_extension("tar"));
    run("tar", &format!("-C {tree} --numeric-owner --sort=name -cf {} .", tar.display()))?;
    let diff_id = Digest::of(&fs::read(&tar)?);
    run("gzip", &format!("-6 {}", tar.display()))?;
    let path = tar.with_extension("tar.gz");
    let digest = Digest::of(&fs::read(&path)?);
    Ok(Packed { path, digest, diff_id })
}

/// Unpacks the layers onto an empty directory.
fn ours(layers: &[Packed], to: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let root = File::open(to)?;
    let opened = layers.iter().map(|layer| -> io::Result<_> {
        let input = File::open(&layer.path)?;
        Ok(Layer { digest: layer.digest, diff_id: layer.diff_id, input })
    });
    let opened = opened.collect::<io::Result<Vec<_>>>()?;
    let unpacked = unpack(root.as_fd(), opened.into_iter(), &Rules::default(), &mut |_| {})?;
    let took = begin.elapsed();
    ensure!(unpacked.layers == layers.len() && unpacked.skipped == 0, "{unpacked:?}");
    Ok(took)
}

/// Unpacks them with `tar`, for which a removed file is one with another name.
fn by_hand(layers: &[Packed], to: &Path) -> Result<Duration> {
    let begin = Instant::now();
    for layer in layers {
        let (to, layer) = (to.display(), layer.path.display());
        run("tar", &format!("-C {to} --numeric-owner --same-owner -xpzf {layer}"))?;
    }
    Ok(begin.elapsed())
}

/// Measures both sides alternately. Blocking.
pub(crate) fn against_tar() -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    let [lower, upper, to] = ["lower", "upper", "to"].map(|name| dir.path().join(name));
    fs::create_dir(&lower)?;
    fs::create_dir(&upper)?;
    fill(&lower, &upper)?;
    let layers = [pack(&lower)?, pack(&upper)?];
    let (mut times, mut floor) = (Vec::new(), Vec::new());
    // Round 0 fills caches; then the sides alternate in being first.
    for round in 0..=ROUNDS {
        for side in [round % 2, 1 - round % 2] {
            fs::create_dir(&to)?;
            rustix::fs::sync();
            let took = if side == 0 { ours(&layers, &to)? } else { by_hand(&layers, &to)? };
            fs::remove_dir_all(&to)?;
            if round > 0 {
                (if side == 0 { &mut times } else { &mut floor }).push(took);
            }
        }
    }
    Ok(Row::ratio("unpacking the layers of an image ÷ tar -x of the same layers", &times, &floor, 1.5))
}
