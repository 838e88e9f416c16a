// SPDX-License-Identifier: Apache-2.0
//! The user of an image's program, found in `/etc/passwd` and `/etc/group` of the unpacked image.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::BorrowedFd,
};

use rustix::{fs::OFlags, io::Errno};

use crate::{beneath, text::shown};

/// Maximum size of either file in bytes.
const FILE_MAX: u64 = 4 << 20;
/// Maximum number of further groups, that of Linux.
const GROUPS_MAX: usize = 65_536;
/// Largest number of a user or a group, as in Docker.
const ID_MAX: u32 = i32::MAX as u32;

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name, `None` if the number has none.
    pub name: Option<String>,
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Numbers of further groups, sorted. Empty if the image names a group.
    pub groups: Vec<u32>,
    /// Home directory, `/` if none is known.
    pub home: String,
}

/// Why the user is not known.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user or group.
    #[error(
        "the image runs as `{user}`, but has no {what} of that name; add it in the image, or use a number"
    )]
    Unknown {
        /// User as the image says it.
        user: String,
        /// User or group.
        what: &'static str,
    },
    /// The file is larger than it may be, or no file.
    #[error("/etc/{name} of the image is no file, or larger than 4 MiB")]
    Unusable {
        /// Name of the file.
        name: &'static str,
    },
    /// The file could not be read.
    #[error("/etc/{name} of the image could not be read: {source}")]
    Files {
        /// Name of the file.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Finds the user that an image names: `name`, `number`, `name:group` or `number:number`; nothing is root. Reads the files
/// below `root` without leaving it.
pub fn resolve_user(root: BorrowedFd<'_>, user: &str) -> Result<User, UserError> {
    resolved(&read(root, "passwd")?, &read(root, "group")?, user)
}

fn read(root: BorrowedFd<'_>, name: &'static str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Files { name, source };
    // A pipe or a device must not keep the opening waiting.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match beneath::open(root, format!("etc/{name}").as_bytes(), flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        // Links in a circle, a name that is too long, or a device.
        Err(Errno::LOOP | Errno::NAMETOOLONG | Errno::ACCESS | Errno::NXIO) => {
            return Err(UserError::Unusable { name });
        }
        opened => File::from(opened.map_err(|error| failed(error.into()))?),
    };
    let mut bytes = Vec::new();
    if file.metadata().map_err(failed)?.is_file() {
        (&file).take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 <= FILE_MAX {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Err(UserError::Unusable { name })
}

fn resolved(passwd: &str, group: &str, wanted: &str) -> Result<User, UserError> {
    let unknown = |what| UserError::Unknown { user: shown(wanted.as_bytes()), what };
    let (user, group_wanted) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    // Names count more than numbers: some are digits only.
    let all = || passwd.lines().filter_map(account);
    let found = all()
        .find(|account| account.name == user)
        .or_else(|| all().find(|account| Some(account.uid) == id(user)));
    let (uid, own_group) = match (&found, id(user)) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(unknown("user")),
    };
    let name = found.as_ref().map(|account| account.name);
    let (gid, groups) = if group_wanted.is_empty() {
        (own_group, name.map(|name| further(group, name, own_group)).unwrap_or_default())
    } else {
        let named = group.lines().filter_map(members).find(|(name, ..)| *name == group_wanted);
        let gid = named.map(|(_, gid, _)| gid).or_else(|| id(group_wanted));
        (gid.ok_or_else(|| unknown("group"))?, Vec::new())
    };
    let home = found.as_ref().map(|account| account.home).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(User { name: name.map(str::to_owned), uid, gid, groups, home: home.to_owned() })
}

/// A line of `passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    // A number that has no home is an account, too.
    let home = fields.nth(1).unwrap_or_default();
    (!name.is_empty()).then_some(Account { name, uid: id(uid)?, gid: id(gid)?, home })
}

/// Reads name, number and members of a line of `group`.
fn members(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
    Some((name, id(gid)?, fields.next().unwrap_or_default()))
}

/// Lists the further groups that a user is a member of.
fn further(group: &str, user: &str, own: u32) -> Vec<u32> {
    let has_user = |(_, _, members): &(&str, u32, &str)| members.split(',').any(|member| member == user);
    let found = group.lines().filter_map(members).filter(has_user).map(|(_, gid, _)| gid);
    let mut all: Vec<u32> = found.filter(|gid| *gid != own).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(GROUPS_MAX);
    all
}

fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= ID_MAX)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd as _, os::unix::fs::symlink};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\napp:x:1000:1001::/srv/app:/bin/sh\n5:x:7:8::/five:\nodd:x:9:9";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nstaff:x:50:app,other\naudio:x:29:app\nbroken:x:\n12:x:13:";

    fn user(name: Option<&str>, uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        let (name, home) = (name.map(str::to_owned), home.to_owned());
        User { name, uid, gid, groups: groups.to_vec(), home }
    }

    #[test]
    fn users_are_names_or_numbers_with_or_without_a_group() {
        for (wanted, expected) in [
            ("", user(Some("root"), 0, 0, &[], "/root")),
            ("app", user(Some("app"), 1000, 1001, &[29, 50], "/srv/app")),
            ("1000", user(Some("app"), 1000, 1001, &[29, 50], "/srv/app")),
            ("app:staff", user(Some("app"), 1000, 50, &[], "/srv/app")),
            ("app:77", user(Some("app"), 1000, 77, &[], "/srv/app")),
            ("app:", user(Some("app"), 1000, 1001, &[29, 50], "/srv/app")),
            ("2345:2346", user(None, 2345, 2346, &[], "/")),
            ("2345", user(None, 2345, 0, &[], "/")),
            ("5", user(Some("5"), 7, 8, &[], "/five")),
            ("odd:12", user(Some("odd"), 9, 13, &[], "/")),
            (":staff", user(Some("root"), 0, 50, &[], "/root")),
        ] {
            assert_eq!(resolved(PASSWD, GROUP, wanted).unwrap(), expected, "{wanted}");
        }
        for wanted in ["nobody", "app:nogroup", "4294967295", "-1", "app:4294967295", "broken", "app:broken"]
        {
            let error = resolved(PASSWD, GROUP, wanted).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(resolved("", "", "").unwrap(), user(None, 0, 0, &[], "/"));
    }

    #[test]
    fn files_are_read_within_the_image_only() {
        let home = tempfile::tempdir().unwrap();
        let (outside, root) = (home.path().join("passwd"), home.path().join("root"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(&outside, PASSWD).unwrap();
        let open = fs::File::open(&root).unwrap();
        assert_eq!(resolve_user(open.as_fd(), "3").unwrap(), user(None, 3, 0, &[], "/"));
        symlink(&outside, root.join("etc/passwd")).unwrap();
        assert!(matches!(resolve_user(open.as_fd(), "app"), Err(UserError::Unknown { .. })));
        fs::write(root.join("passwd"), PASSWD).unwrap();
        fs::remove_file(root.join("etc/passwd")).unwrap();
        symlink("../../../passwd", root.join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(open.as_fd(), "app").unwrap().uid, 1000);
        fs::remove_file(root.join("etc/passwd")).unwrap();
        fs::create_dir(root.join("etc/passwd")).unwrap();
        assert!(matches!(resolve_user(open.as_fd(), "app"), Err(UserError::Unusable { name: "passwd" })));
        fs::remove_dir(root.join("etc/passwd")).unwrap();
        // What is wrong with the image is no failure of the host: links in a circle, or a name that is too long.
        for target in ["passwd".to_owned(), "x".repeat(300)] {
            symlink(target, root.join("etc/passwd")).unwrap();
            assert!(matches!(resolve_user(open.as_fd(), "app"), Err(UserError::Unusable { name: "passwd" })));
            fs::remove_file(root.join("etc/passwd")).unwrap();
        }
        let large = fs::File::create(root.join("etc/passwd")).unwrap();
        large.set_len(FILE_MAX + 1).unwrap();
        assert!(matches!(resolve_user(open.as_fd(), "app"), Err(UserError::Unusable { .. })));
    }
}
