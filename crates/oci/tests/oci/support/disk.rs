// SPDX-License-Identifier: Apache-2.0
//! Layers unpacked onto a directory, and what is there then.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use wrenn_oci::{Digest, Layer, Rules, UnpackError, Unpacked, unpack};

/// Unpacks layers that are not compressed.
pub(crate) fn unpacked(directory: &Path, layers: &[Vec<u8>], rules: &Rules) -> Result<Unpacked, UnpackError> {
    let layers = layers.iter().map(|layer| {
        let digest = Digest::of(layer);
        Layer { digest, diff_id: digest, input: layer.as_slice() }
    });
    let root = File::open(directory).expect("a directory");
    unpack(root.as_fd(), layers, rules, &mut |_| {})
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    /// Number of names; 0 for directories.
    pub(crate) names: u64,
    pub(crate) link: Option<PathBuf>,
    pub(crate) content: Vec<u8>,
    pub(crate) device: u64,
}

/// Lists everything below a directory by path.
pub(crate) fn tree(directory: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut all, mut open) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(directory.join(&at)).expect("a directory") {
            let path = at.join(entry.expect("an entry").file_name());
            let full = directory.join(&path);
            let meta = fs::symlink_metadata(&full).expect("metadata");
            let seen = Seen {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                names: if meta.is_dir() { 0 } else { meta.nlink() },
                link: fs::read_link(&full).ok(),
                content: if meta.is_file() { fs::read(&full).expect("content") } else { Vec::new() },
                device: meta.rdev(),
            };
            if meta.is_dir() {
                open.push(path.clone());
            }
            all.insert(path, seen);
        }
    }
    all
}

/// Lists the paths below a directory.
pub(crate) fn paths(directory: &Path) -> Vec<String> {
    tree(directory).into_keys().map(|path| path.to_string_lossy().into_owned()).collect()
}
