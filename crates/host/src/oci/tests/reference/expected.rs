// SPDX-License-Identifier: Apache-2.0
//! Entries of a directory tree, as its file system has them.

use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};

use rustix::{
    fs::{lgetxattr, llistxattr, major, minor},
    io::Errno,
};

use super::*;

/// Maximum size of names, and of values, of extended attributes.
const ATTRIBUTES_MAX: usize = 64 << 10;

/// Lists a tree.
pub(super) fn tree(root: &Path) -> anyhow::Result<Tree> {
    let (mut all, mut names) = (Tree::new(), HashMap::<u64, BTreeSet<String>>::new());
    let (mut inodes, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path)?;
        let name = escaped(path.strip_prefix(root)?.as_os_str().as_bytes());
        let content = if meta.is_symlink() {
            escaped(fs::read_link(&path)?.as_os_str().as_bytes())
        } else if meta.is_file() {
            Digest::of(&fs::read(&path)?).to_string()
        } else {
            String::new()
        };
        let is_special = !(meta.is_symlink() || meta.is_file() || meta.is_dir());
        let entry = Entry {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: meta.mtime(),
            size: if meta.is_file() { meta.len() } else { 0 },
            content,
            device: if is_special { (major(meta.rdev()), minor(meta.rdev())) } else { (0, 0) },
            attributes: attributes(&path)?,
            names: BTreeSet::new(),
        };
        if meta.is_dir() {
            for below in fs::read_dir(&path)? {
                open.push(below?.path());
            }
        } else {
            names.entry(meta.ino()).or_default().insert(name.clone());
            inodes.insert(name.clone(), meta.ino());
        }
        all.insert(name, entry);
    }
    for (name, inode) in inodes {
        let entry = all.get_mut(&name).context("an entry is lost")?;
        entry.names = names.get(&inode).cloned().unwrap_or_default();
    }
    Ok(all)
}

/// Reads the extended attributes that images may have; a host may have others, such as labels.
fn attributes(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut buffer = vec![0; ATTRIBUTES_MAX];
    let length = match llistxattr(path, &mut buffer[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let names = buffer[..length].split(|byte| *byte == 0);
    let is_kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
    names.filter(is_kept).map(|name| attribute(path, name)).collect()
}

fn attribute(path: &Path, name: &[u8]) -> anyhow::Result<(String, String)> {
    let mut value = vec![0; ATTRIBUTES_MAX];
    let length = lgetxattr(path, name, &mut value[..])?;
    Ok((escaped(name), escaped(&value[..length])))
}
