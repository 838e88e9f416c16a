// SPDX-License-Identifier: Apache-2.0
//! SSH channel that runs commands in a lab: one multiplexed connection, with keys generated per lab.

use std::{
    fs::{self, DirBuilder},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    child_process::{self, ChildProcess},
    files,
};
use anyhow::{Context as _, Result, ensure};

/// Time limit of one TCP connection attempt.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Time limit of an SSH login, which is slow in an emulated machine on a busy one.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// SSH keys of one lab and the directory of its control socket.
#[derive(Debug)]
pub(super) struct Keys {
    dir: PathBuf,
    name: String,
}

impl Drop for Keys {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Keys {
    pub(super) fn make(name: &str) -> Result<Self> {
        // Short, because the path of a socket is limited; the same for each name, so that the directory of a
        // killed run is found and removed.
        let mut hasher = DefaultHasher::new();
        (files::base(), name).hash(&mut hasher);
        let dir = PathBuf::from(format!("/tmp/wrenn-lab-{:016x}", hasher.finish()));
        drop(fs::remove_dir_all(&dir));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {} for the lab's keys", dir.display()))?;
        let keys = Self { dir, name: name.to_owned() };
        for file in [keys.host(), keys.client()] {
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                .arg(&file)
                .output()
                .context("cannot run ssh-keygen: install openssh-client")?;
            ensure!(
                output.status.success(),
                "ssh-keygen: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let public = keys.host().with_extension("pub");
        let host = fs::read_to_string(&public).context("ssh-keygen made no public key")?;
        fs::write(keys.path("known_hosts"), format!("{name} {host}")).context("cannot write known_hosts")?;
        Ok(keys)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn client(&self) -> PathBuf {
        self.path("key")
    }

    /// Private host key of the lab.
    pub(super) fn host(&self) -> PathBuf {
        self.path("host")
    }

    /// Public key that may log in.
    pub(super) fn authorized(&self) -> PathBuf {
        self.client().with_extension("pub")
    }

    fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = vec!["-F".into(), "none".into()];
        let mut set =
            |name: &str, value: String| options.extend(["-o".to_owned(), format!("{name}={value}")]);
        set("IdentityFile", self.client().display().to_string());
        set("IdentitiesOnly", "yes".into());
        set("UserKnownHostsFile", self.path("known_hosts").display().to_string());
        set("HostKeyAlias", self.name.clone());
        set("StrictHostKeyChecking", "yes".into());
        set("BatchMode", "yes".into());
        set("LogLevel", "ERROR".into());
        set("ControlPath", self.socket().display().to_string());
        set("ConnectTimeout", LOGIN_LIMIT.as_secs().to_string());
        // An emulated machine under load answers slowly. Its exit is noticed without these keep-alives.
        set("ServerAliveInterval", "30".into());
        set("ServerAliveCountMax", "4".into());
        options
    }

    fn socket(&self) -> PathBuf {
        self.path("control")
    }
}

/// SSH process that holds the connection. It is killed when the lab's machine exits, so that no command waits
/// for a machine that is gone.
pub(super) type Master = Arc<Mutex<Option<ChildProcess>>>;

/// Kills the SSH process and waits for it.
pub(super) fn end(master: &Master) {
    drop(master.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Channel to one lab.
#[derive(Debug)]
pub(super) struct Channel {
    keys: Keys,
    address: Ipv4Addr,
    limit: Duration,
    master: Master,
}

impl Channel {
    pub(super) fn new(keys: Keys, address: Ipv4Addr, limit: Duration) -> Self {
        Self { keys, address, limit, master: Master::default() }
    }

    pub(super) fn master(&self) -> Master {
        self.master.clone()
    }

    /// Tries once to connect; returns `false` if the lab is not ready yet.
    pub(super) fn open(&mut self, log: &Path) -> Result<bool> {
        let address = SocketAddr::from((self.address, 22));
        if TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_err() {
            return Ok(false);
        }
        let mut command = child_process::command("ssh");
        command.args(["-M", "-N"]).args(self.keys.options()).arg(self.target());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(files::create(log)?);
        let master = ChildProcess::start(command, self.limit, || ())?;
        let start = Instant::now();
        while !self.keys.socket().exists() {
            if master.ended().is_some() || start.elapsed() > LOGIN_LIMIT {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.master.lock().unwrap_or_else(PoisonError::into_inner) = Some(master);
        Ok(true)
    }

    fn target(&self) -> String {
        format!("root@{}", self.address)
    }

    pub(super) fn command<S: AsRef<str>>(&self, args: &[S], terminal: bool) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.keys.options());
        command.arg(if terminal { "-t" } else { "-T" }).arg(self.target());
        if !args.is_empty() {
            command.arg("--").arg(quoted(args));
        }
        command
    }

    pub(super) fn put(&self, local: &Path, remote: &str) -> Command {
        let mut command = self.scp();
        command.arg(local).arg(format!("{}:{remote}", self.target()));
        command
    }

    pub(super) fn get(&self, remote: &str, local: &Path) -> Command {
        let mut command = self.scp();
        command.arg(format!("{}:{remote}", self.target())).arg(local);
        command
    }

    fn scp(&self) -> Command {
        let mut command = Command::new("scp");
        command.args(self.keys.options()).args(["-q", "-p", "-r", "--"]).stdin(Stdio::null());
        command
    }

    pub(super) fn close(self) {
        end(&self.master);
    }
}

/// Quotes words for the lab's shell.
pub(super) fn quoted<S: AsRef<str>>(args: &[S]) -> String {
    let words = args.iter().map(|word| format!("'{}'", word.as_ref().replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_a_shell_as_they_are() {
        let words = ["printf", "%s|", "it's", "$HOME", "a  b", "", "*", "\\n"];
        let output = Command::new("sh").arg("-c").arg(quoted(&words)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's|$HOME|a  b||*|\\n|");
    }
}
