//! Paths in the state directory.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::users::User;

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

    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// The sockets of PostgreSQL and Redis; only the service user may enter.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.run().join("sockets")
    }

    pub(crate) fn redis_socket(&self) -> PathBuf {
        self.sockets().join("redis.sock")
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
        format!("postgres://wrenn@{}/wrenn", percent(&self.sockets(), false))
    }

    /// URL of the Redis that `wrenn up` runs.
    pub(crate) fn redis_url(&self) -> String {
        format!("unix://{}", percent(&self.redis_socket(), true))
    }

    /// Makes the directories that do not exist.
    pub(crate) fn create(&self, service: &User) -> Result<()> {
        let length = self.sockets().as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "{} is too long for unix sockets below it: use a shorter WRENN_STATE_DIR",
            self.state.display()
        );
        fs::create_dir_all(&self.state)
            .with_context(|| format!("cannot make the state directory {}", self.state.display()))?;
        self.check_reachable(service)?;
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o755))?;
        for dir in [self.pki(), self.agent(), self.logs(), self.run()] {
            make(&dir, 0o755, None)?;
        }
        for dir in [self.postgres(), self.redis(), self.sockets()] {
            make(&dir, 0o700, Some(service))?;
        }
        Ok(())
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

fn make(dir: &Path, mode: u32, owner: Option<&User>) -> Result<()> {
    let failed = || format!("cannot make {}", dir.display());
    fs::create_dir_all(dir).with_context(failed)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).with_context(failed)?;
    let (uid, gid) = owner.map_or((0, 0), |user| (user.uid, user.gid));
    chown(dir, Some(uid), Some(gid)).with_context(failed)
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
        assert_eq!(layout.database_url(), "postgres://wrenn@%2Ftmp%2Fa%20b%2Fs%2Frun%2Fsockets/wrenn");
        assert_eq!(layout.redis_url(), "unix:///tmp/a%20b/s/run/sockets/redis.sock");
    }

    #[test]
    fn a_state_directory_too_long_for_sockets_is_refused() {
        let user = User { name: "x".to_owned(), uid: 1, gid: 1, home: PathBuf::new() };
        let layout = Layout::new(&Path::new("/tmp").join("x".repeat(100)));
        assert!(layout.create(&user).is_err_and(|error| error.to_string().contains("too long")));
    }
}
