// SPDX-License-Identifier: Apache-2.0
//! Paths in the state directory.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, openat, statat};

use crate::users::{Services, User};

/// Maximum length of a directory's path for sockets: a unix socket's path has at most 107 bytes, and this is
/// the longest name in it.
const SOCKET_PATH_MAX: usize = 107 - "/.s.PGSQL.5432".len();

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    state: PathBuf,
}

impl Layout {
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.state.join("postgres")
    }

    pub(crate) fn redis(&self) -> PathBuf {
        self.state.join("redis")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.state.join("agent")
    }

    /// Directory of the files that are uploaded for builds; the control plane's user owns it.
    pub(crate) fn contexts(&self) -> PathBuf {
        self.state.join("contexts")
    }

    /// Key file with which the control plane encrypts the secrets of channels; the control plane's user owns it.
    pub(crate) fn channel_key(&self) -> PathBuf {
        self.state.join("channels.key")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Directory of PostgreSQL's socket; accessible to its user and the control plane's group.
    pub(crate) fn postgres_sockets(&self) -> PathBuf {
        self.run().join("postgres")
    }

    /// Directory of Redis's socket; accessible to its user and the control plane's group.
    fn redis_sockets(&self) -> PathBuf {
        self.run().join("redis")
    }

    pub(crate) fn redis_socket(&self) -> PathBuf {
        self.redis_sockets().join("redis.sock")
    }

    /// Path of the pid file of `name`.
    pub(crate) fn pid_file(&self, name: &str) -> PathBuf {
        self.run().join(format!("{name}.pid"))
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.run().join("up.lock")
    }

    pub(crate) fn host_id_file(&self) -> PathBuf {
        self.state.join("host-id")
    }

    /// URL of the PostgreSQL that `wrenn up` runs.
    pub(crate) fn database_url(&self) -> String {
        format!("postgres://wrenn@{}/wrenn", percent(&self.postgres_sockets(), false))
    }

    /// URL of the Redis that `wrenn up` runs.
    pub(crate) fn redis_url(&self) -> String {
        format!("unix://{}", percent(&self.redis_socket(), true))
    }

    /// Creates the missing directories.
    pub(crate) fn create(&self, users: &Services) -> Result<()> {
        let length = self.postgres_sockets().as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "{} is too long for unix sockets below it: use a shorter WRENN_STATE_DIR",
            self.state.display()
        );
        fs::create_dir_all(&self.state)
            .with_context(|| format!("cannot make the state directory {}", self.state.display()))?;
        for user in [&users.postgres, &users.redis, &users.server] {
            self.check_reachable(user)?;
        }
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o755))?;
        for dir in [self.pki(), self.agent(), self.logs(), self.run()] {
            make(&dir, 0o755, None)?;
        }
        let stores = [
            (self.postgres(), self.postgres_sockets(), &users.postgres),
            (self.redis(), self.redis_sockets(), &users.redis),
        ];
        for (data, sockets, user) in stores {
            make(&data, 0o700, None)?;
            give(&data, user)
                .with_context(|| format!("cannot give {} to user {}", data.display(), user.name))?;
            // New files in it get its group: only the control plane may connect.
            make(&sockets, 0o2710, Some((user.uid, users.server.gid)))?;
        }
        make(&self.contexts(), 0o700, Some((users.server.uid, users.server.gid)))
    }

    /// Checks that the service user can traverse the path to its directories.
    fn check_reachable(&self, service: &User) -> Result<()> {
        for dir in self.state.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            let meta = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
            let needed = match () {
                () if meta.uid() == service.uid => 0o100,
                () if meta.gid() == service.gid => 0o010,
                () => 0o001,
            };
            if meta.mode() & needed == 0 {
                bail!(
                    "user {} may not enter {}, which the state directory {} is in: chmod o+x it, or choose \
                     another WRENN_STATE_DIR",
                    service.name,
                    dir.display(),
                    self.state.display()
                );
            }
        }
        Ok(())
    }
}

/// Creates a directory if it is missing; with an `owner` (user and group), changes its owner.
fn make(dir: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let failed = || format!("cannot make {}", dir.display());
    fs::create_dir_all(dir).with_context(failed)?;
    if let Some((user, group)) = owner {
        // Before the mode: a change of owner clears the set-group-ID bit.
        chown(dir, Some(user), Some(group)).with_context(failed)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).with_context(failed)
}

/// Changes the owner of a directory and of its former owner's files in it, without following links, because
/// that owner controlled it until now. The directory itself is changed last, so that an interrupted change is
/// repeated.
fn give(dir: &Path, user: &User) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(dir, flags, Mode::empty())?;
    let former = rustix::fs::fstat(&opened)?.st_uid;
    if former != user.uid {
        give_entries(&opened, former, user)?;
        rustix::fs::fchown(&opened, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    }
    Ok(())
}

fn give_entries(dir: &OwnedFd, former: u32, user: &User) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        // A file of another owner may be a hard link from elsewhere.
        if stat.st_uid != former {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            give_entries(&openat(dir, name, flags, Mode::empty())?, former, user)?;
        }
        chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn percent(path: &Path, keep_slashes: bool) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _};
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut text, &byte| {
        match byte {
            b'/' if keep_slashes => text.push('/'),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => text.push(char::from(byte)),
            // Writing to a String cannot fail.
            byte => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_sockets_are_encoded() {
        let layout = Layout::new(Path::new("/tmp/a b/s"));
        assert_eq!(layout.database_url(), "postgres://wrenn@%2Ftmp%2Fa%20b%2Fs%2Frun%2Fpostgres/wrenn");
        assert_eq!(layout.redis_url(), "unix:///tmp/a%20b/s/run/redis/redis.sock");
    }

    #[test]
    fn a_state_directory_too_long_for_sockets_is_refused() {
        let user = User { name: "x".to_owned(), uid: 1, gid: 1, home: PathBuf::new() };
        let users =
            Services { postgres: user.clone(), redis: user.clone(), server: user, missing: Vec::new() };
        let layout = Layout::new(&Path::new("/tmp").join("x".repeat(100)));
        assert!(layout.create(&users).is_err_and(|error| error.to_string().contains("too long")));
    }

    #[test]
    fn a_cluster_is_given_to_its_new_user_and_nothing_beside_it() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let (data, outside) = (dir.path().join("data"), dir.path().join("outside"));
        fs::create_dir_all(data.join("base"))?;
        for file in [outside.as_path(), &data.join("base/1"), &data.join("foreign")] {
            fs::write(file, "")?;
        }
        std::os::unix::fs::symlink(&outside, data.join("link"))?;
        let user = |uid| User { name: "x".to_owned(), uid, gid: uid, home: PathBuf::new() };
        let owner = |path: &Path| -> Result<u32> { Ok(fs::symlink_metadata(path)?.uid()) };
        give(&data, &user(7))?;
        chown(data.join("foreign"), Some(9), Some(9))?;
        give(&data, &user(8))?;
        for path in ["", "base", "base/1", "link"] {
            assert_eq!(owner(&data.join(path))?, 8, "{path}");
        }
        assert_eq!((owner(&outside)?, owner(&data.join("foreign"))?), (0, 9));
        Ok(())
    }
}
