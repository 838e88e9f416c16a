// SPDX-License-Identifier: Apache-2.0
//! Unpacks the layers of an image, one over the other, onto a directory.
//!
//! What a layer says is done as Docker and containerd do it: entries replace what is there, directories are merged, symbolic
//! links of lower layers are followed (within the directory), whiteouts remove what lower layers have. Of extended attributes,
//! `user.*`, `security.capability` and POSIX access lists are set; `trusted.*` is refused, because it means something to file
//! systems of the host, such as overlayfs; others, such as labels of SELinux, are left out. What is left out is told.
//!
//! The directory belongs to the image until this returns: nobody else changes it, and whoever gets an error throws it away.

pub(crate) mod error;
mod layer;
mod name;
mod tree;

use std::{io::Read, os::fd::BorrowedFd};

use crate::{digest::Digest, unpack::error::UnpackError};

/// Maximum number of entries that were left out and are named; further ones are counted only.
const SKIPPED_MAX: usize = 100;

/// A layer.
pub struct Layer<R> {
    /// Digest of the blob, for messages.
    pub digest: Digest,
    /// Digest of the uncompressed content, which is compared with what is read.
    pub diff_id: Digest,
    /// The blob: a tar archive, plain or compressed with gzip or zstd.
    pub input: R,
}

/// Limits of an image. What is over one is refused as early as it is seen.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Number of layers. Docker makes at most 127. 512 by default.
    pub layers: usize,
    /// Bytes of all layers when they are uncompressed, whatever they are compressed to. 64 GiB by default.
    pub bytes: u64,
    /// Size of a file, its holes included. 256 GiB by default.
    pub file_bytes: u64,
    /// Number of entries of all layers. 2 000 000 by default. Up to 80 bytes of memory are needed for each.
    pub entries: u64,
    /// Length of a name or a link in bytes. 4096 by default.
    pub name_bytes: u64,
    /// Number of directories within each other. 256 by default.
    pub depth: usize,
    /// Bytes of the extended attributes of an entry, with its other attributes. 128 KiB by default.
    pub attribute_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 512,
            bytes: 64 << 30,
            file_bytes: 256 << 30,
            entries: 2_000_000,
            name_bytes: 4096,
            depth: 256,
            attribute_bytes: 128 << 10,
        }
    }
}

/// How an image is unpacked.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Limits.
    pub limits: Limits,
    /// Whether devices are made. Else they are left out.
    pub devices: bool,
}

/// How far it is. Told at the begin of each layer, and after every few thousand entries or some MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of the layer, from 1 on.
    pub layer: usize,
    /// Number of entries so far, of all layers.
    pub entries: u64,
    /// Bytes of files so far, of all layers.
    pub bytes: u64,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of layers.
    pub layers: usize,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of files, without holes. What an upper layer replaces counts, too.
    pub bytes: u64,
    /// Number of entries and attributes that were left out.
    pub skipped: u64,
    /// The first 100 of them.
    pub first_skipped: Vec<Skipped>,
}

/// What was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Name of the entry, escaped.
    pub entry: String,
    /// Why it, or what of it, was left out.
    pub cause: &'static str,
}

impl Unpacked {
    fn skip(&mut self, entry: &[u8], cause: &'static str) {
        self.skipped += 1;
        if self.first_skipped.len() < SKIPPED_MAX {
            self.first_skipped.push(Skipped { entry: crate::text::shown(entry), cause });
        }
    }
}

/// Unpacks layers, the lowest first, onto a directory that is empty, or has what was unpacked before. Must run as root.
pub fn unpack<R: Read>(
    root: BorrowedFd<'_>,
    layers: impl Iterator<Item = Layer<R>>,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, UnpackError> {
    let mut work = layer::Work::new(root, rules, progress);
    for layer in layers {
        work.apply(layer)?;
    }
    work.finish()
}
