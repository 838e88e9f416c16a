// SPDX-License-Identifier: Apache-2.0
//! Creation of a user account: lines in passwd, group and shadow, a home directory, and sudo without a password. Written
//! here because an image may lack the programs that do it.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown},
    path::Path,
};

use crate::regular;

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";
const SHADOW: &str = "etc/shadow";
const SUDOERS: &str = "etc/sudoers.d";
/// Files that each new home directory gets.
const SKELETON: &str = "etc/skel";
/// Maximum number of bytes read of each of these files.
const MOST: u64 = 4 << 20;
/// Ids of ordinary users, as in login.defs(5).
const IDS: std::ops::Range<u32> = 1000..60_000;
const NAME_MAX: usize = 32;

/// Creates a user if there is none of this name. `root` is the root of the file system.
pub(crate) fn ensure(root: &Path, name: &str) -> io::Result<()> {
    let passwd = text(&root.join(PASSWD))?;
    if name == "root" || field(&passwd, 0).any(|known| known == name) {
        return Ok(());
    }
    check(name)?;
    let group = text(&root.join(GROUP))?;
    let id = free_id(&passwd, &group)?;
    let gid = match group.lines().find(|line| line.split(':').next() == Some(name)) {
        Some(line) => line.split(':').nth(2).and_then(|gid| gid.parse().ok()).unwrap_or(id),
        None => {
            append(&root.join(GROUP), &group, &format!("{name}:x:{id}:"), 0o644)?;
            id
        }
    };
    let home = format!("home/{name}");
    make_home(root, &root.join(&home), id, gid)?;
    let shadow = root.join(SHADOW);
    if shadow.exists() {
        let known = text(&shadow)?;
        // No password is accepted, and none expires.
        append(&shadow, &known, &format!("{name}:*:19000:0:99999:7:::"), 0o640)?;
    }
    let sudoers = root.join(SUDOERS);
    if sudoers.is_dir() {
        regular::write_text(&sudoers.join(name), &format!("{name} ALL=(ALL) NOPASSWD:ALL\n"), 0o440)?;
    }
    let shell = if root.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    // At last: a user that is there is complete.
    let password = if shadow.exists() { "x" } else { "*" };
    append(&root.join(PASSWD), &passwd, &format!("{name}:{password}:{id}:{gid}::/{home}:{shell}"), 0o644)
}

/// Fails unless the name is one that useradd(8) takes, which the files can hold.
fn check(name: &str) -> io::Result<()> {
    let first = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if first && name.len() <= NAME_MAX && name.bytes().all(rest) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{shown:?} is not a valid name of a user")))
}

/// Returns the smallest id that neither a user nor a group has.
fn free_id(passwd: &str, group: &str) -> io::Result<u32> {
    let taken: Vec<u32> = field(passwd, 2).chain(field(group, 2)).filter_map(|id| id.parse().ok()).collect();
    let free = IDS.into_iter().find(|id| !taken.contains(id));
    free.ok_or_else(|| io::Error::new(io::ErrorKind::StorageFull, "all ids of users are taken"))
}

fn field(file: &str, at: usize) -> impl Iterator<Item = &str> {
    file.lines().filter_map(move |line| line.split(':').nth(at))
}

/// Reads a file; empty if there is none.
fn text(path: &Path) -> io::Result<String> {
    match regular::read_text(path, MOST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// Appends a line to a file with this content.
fn append(path: &Path, content: &str, line: &str, mode: u32) -> io::Result<()> {
    let separator = if content.is_empty() || content.ends_with('\n') { "" } else { "\n" };
    regular::append_text(path, &format!("{separator}{line}\n"), mode)
}

/// Creates a home directory with the files of the skeleton; one that is there stays as it is.
fn make_home(root: &Path, home: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if let Some(parent) = home.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o755).create(home) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        created => created?,
    }
    for entry in fs::read_dir(root.join(SKELETON)).into_iter().flatten() {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let file = home.join(entry.file_name());
        let mut options = fs::OpenOptions::new();
        let mut new = options.write(true).create_new(true).mode(0o644).open(&file)?;
        io::copy(&mut regular::open(&entry.path())?.take(MOST), &mut new)?;
        chown(&file, Some(uid), Some(gid))?;
    }
    chown(home, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_created_once_with_all_that_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join(SUDOERS)).unwrap();
        fs::create_dir_all(root.join(SKELETON)).unwrap();
        fs::write(root.join(SKELETON).join(".profile"), "umask 022\n").unwrap();
        let line = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh";
        fs::write(root.join(PASSWD), line).unwrap();
        fs::write(root.join(GROUP), "root:x:0:\nann:x:1000:\nusers:x:1001:\n").unwrap();
        fs::write(root.join(SHADOW), "root:*:19000:0:99999:7:::\n").unwrap();
        for _ in 0..2 {
            ensure(root, "user").unwrap();
            ensure(root, "ann").unwrap();
        }
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read(PASSWD), format!("{line}\nuser:x:1002:1002::/home/user:/bin/sh\n"));
        assert!(read(GROUP).ends_with("users:x:1001:\nuser:x:1002:\n"));
        assert!(read(SHADOW).ends_with("\nuser:*:19000:0:99999:7:::\n"));
        assert_eq!(read("etc/sudoers.d/user"), "user ALL=(ALL) NOPASSWD:ALL\n");
        assert_eq!(read("home/user/.profile"), "umask 022\n");
    }

    #[test]
    fn names_that_the_files_cannot_hold_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for name in ["", "a:b", "a\nb", "../x", "A", "1a", &"x".repeat(33)] {
            let error = ensure(dir.path(), name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(!dir.path().join(PASSWD).exists());
    }
}
