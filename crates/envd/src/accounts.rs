// SPDX-License-Identifier: Apache-2.0
//! Creation of a user account, also by `POST /users` (extension): lines in passwd, group and shadow, a home directory, and
//! sudo without a password; and of the group that a user is to have. Written here because an image may lack the programs
//! that do it.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown},
    path::Path,
    sync::{Mutex, PoisonError},
};

use axum::{
    body::Bytes,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use crate::{regular, respond::error, users};

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
/// Held while a user is created: two at a time would get one id.
static CREATING: Mutex<()> = Mutex::new(());

/// Request body of `POST /users`.
#[derive(Deserialize)]
struct NewUser {
    name: String,
}

/// Creates a user if there is none of this name. The caller's token has been checked.
pub(crate) async fn post(body: Bytes) -> Response {
    let NewUser { name } = match serde_json::from_slice(&body) {
        Ok(new) => new,
        Err(cause) => {
            return error(StatusCode::BAD_REQUEST, format!("the body is not valid JSON for /users: {cause}"));
        }
    };
    let ensured = tokio::task::spawn_blocking(move || {
        ensure(Path::new("/"), &name).map_err(|cause| refused(&name, &cause))
    });
    match ensured.await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(response)) => response,
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()),
    }
}

/// Response for a user who cannot be created.
fn refused(name: &str, cause: &io::Error) -> Response {
    use io::ErrorKind as K;
    let status = match cause.kind() {
        K::InvalidInput => StatusCode::BAD_REQUEST,
        K::PermissionDenied | K::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        K::StorageFull | K::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let shown: String = name.chars().take(NAME_MAX).collect();
    error(status, format!("the user {shown:?} cannot be created: {cause}"))
}

/// Creates a user if there is none of this name; a number is a user without an account. The group after a colon, if one
/// is named, is created as well. `root` is the root of the file system.
pub(crate) fn ensure(root: &Path, name: &str) -> io::Result<()> {
    let _one = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
    let (user, group) = users::parts(name);
    if let Some(group) = group {
        ensure_group(root, group)?;
    }
    ensure_user(root, user)
}

/// Creates a group if there is none of this name; a number is a group without an entry.
fn ensure_group(root: &Path, name: &str) -> io::Result<()> {
    let group = text(&root.join(GROUP))?;
    if users::number(name).is_some() || field(&group, 0).any(|known| known == name) {
        return Ok(());
    }
    check("group", name)?;
    let id = free_id(&text(&root.join(PASSWD))?, &group)?;
    append(&root.join(GROUP), &group, &format!("{name}:x:{id}:"), 0o644)
}

fn ensure_user(root: &Path, name: &str) -> io::Result<()> {
    if users::number(name).is_some() {
        return Ok(());
    }
    let passwd = text(&root.join(PASSWD))?;
    if name == "root" || field(&passwd, 0).any(|known| known == name) {
        return Ok(());
    }
    check("user", name)?;
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

/// Fails unless the name of a user or a group is one that useradd(8) takes, which the files can hold.
fn check(what: &str, name: &str) -> io::Result<()> {
    let first = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if first && name.len() <= NAME_MAX && name.bytes().all(rest) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{shown:?} is not a valid name of a {what}")))
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
            for name in ["user", "ann", "1000", "4242"] {
                ensure(root, name).unwrap();
            }
        }
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read(PASSWD), format!("{line}\nuser:x:1002:1002::/home/user:/bin/sh\n"));
        assert!(read(GROUP).ends_with("users:x:1001:\nuser:x:1002:\n"));
        assert!(read(SHADOW).ends_with("\nuser:*:19000:0:99999:7:::\n"));
        assert_eq!(read("etc/sudoers.d/user"), "user ALL=(ALL) NOPASSWD:ALL\n");
        assert_eq!(read("home/user/.profile"), "umask 022\n");
    }

    #[test]
    fn the_group_of_a_user_is_created_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join(GROUP), "root:x:0:\nusers:x:1000:\n").unwrap();
        for name in ["app:web", "app:users", "app:web", "root:1234", "4242:app"] {
            ensure(root, name).unwrap();
        }
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read(GROUP), "root:x:0:\nusers:x:1000:\nweb:x:1001:\napp:x:1002:\n");
        assert_eq!(
            read(PASSWD),
            "app:*:1002:1002::/home/app:/bin/sh\n",
            "it has a group of its own all the same"
        );
        let error = ensure(root, "other:We b").unwrap_err();
        assert!(error.to_string().contains("name of a group"), "{error}");
        assert!(!read(PASSWD).contains("other"), "nothing is done by halves");
    }

    #[test]
    fn users_that_are_created_at_once_get_ids_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        std::thread::scope(|scope| {
            for user in 0..8 {
                let root = dir.path();
                scope.spawn(move || ensure(root, &format!("user{user}")).unwrap());
            }
        });
        let passwd = fs::read_to_string(dir.path().join(PASSWD)).unwrap();
        let mut ids: Vec<_> = field(&passwd, 2).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007"]);
    }

    #[test]
    fn names_that_the_files_cannot_hold_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for name in ["", "a:b:c", "a\nb", "../x", "A", "1a", &"x".repeat(33)] {
            let error = ensure(dir.path(), name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(!dir.path().join(PASSWD).exists());
    }
}
