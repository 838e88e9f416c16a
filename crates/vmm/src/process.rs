// SPDX-License-Identifier: Apache-2.0
//! VMM processes, which outlive the caller: identify, find, watch and kill them by pidfd.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use sha2::{Digest, Sha256};
use tokio::io::{Interest, unix::AsyncFd};
use wrenn_os::process::{ProcessId, arguments, directory, identify, is_alive, seen, stat, user};

use wrenn_memory::page_server::COMMAND;

use crate::probe::PROBE_ID;

/// Name of the socket of a page server in the run directory of its VMM.
pub(crate) const PAGES_SOCKET: &str = "pages.sock";

/// A watched process, which may be a child of this process or not.
#[derive(Debug)]
pub struct Watched {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    /// Exit status, if known.
    status: OnceLock<Option<i32>>,
}

/// Directory of `/proc` with the process's details: its first thread's, or, if that has ended, another
/// thread's.
fn shown(pid: i32) -> io::Result<PathBuf> {
    let first = directory(pid);
    if !stat(&first)?.is_some_and(|stat| stat.ended) {
        return Ok(first);
    }
    for task in seen(fs::read_dir(first.join("task")))?.into_iter().flatten() {
        let Some(task) = seen(task)? else { continue };
        if stat(&task.path())?.is_some_and(|stat| !stat.ended) {
            return Ok(task.path());
        }
    }
    Ok(first)
}

/// A short name of a run directory, for processes whose arguments do not contain its path.
pub(crate) fn tag(run_dir: &Path) -> String {
    let hash = Sha256::digest(run_dir.as_os_str().as_encoded_bytes());
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Marks by which the process of a run directory is recognised.
struct Marks {
    /// Prefix of QEMU's argument for the control socket in the directory.
    socket: String,
    /// Suffix of Firecracker's jail id.
    tag: String,
    /// Path of the directory, which a page server's arguments name.
    dir: String,
    /// Owner, device and inode of the directory.
    place: Option<(u32, u64, u64)>,
}

impl Marks {
    fn of(run_dir: &Path) -> io::Result<Self> {
        let place = seen(fs::metadata(run_dir))?.map(|meta| (meta.uid(), meta.dev(), meta.ino()));
        let dir = run_dir.display().to_string();
        Ok(Self { socket: format!("unix:{dir}/"), tag: tag(run_dir), dir, place })
    }

    fn are_on(&self, pid: i32) -> io::Result<bool> {
        let (user, shown) = (user(pid)?, shown(pid)?);
        Ok(self.may_be_of(user) && (self.mentioned_by(&shown)? || self.held_by(user, &shown)?))
    }

    /// Returns whether a process of this user may be one of the directory. One that is being started still runs as root.
    fn may_be_of(&self, user: Option<u32>) -> bool {
        self.place.is_none_or(|(owner, ..)| user == Some(owner) || user == Some(0))
    }

    /// Returns whether the process is the page server of the directory's VMM.
    fn are_on_page_server(&self, pid: i32) -> io::Result<bool> {
        let named = |pair: &[String]| pair[0] == COMMAND && pair[1] == self.dir;
        Ok(self.may_be_of(user(pid)?) && arguments(&shown(pid)?)?.windows(2).any(named))
    }

    /// Returns whether the arguments are a VMM's and name the directory's socket or jail.
    fn mentioned_by(&self, shown: &Path) -> io::Result<bool> {
        Ok(arguments(shown)?.windows(2).any(|pair| match &*pair[0] {
            "--id" => pair[1].ends_with(&self.tag),
            "-qmp" => pair[1].starts_with(&self.socket),
            _ => false,
        }))
    }

    /// Returns whether the process is jailed with the directory at `run`. A guest that took over its VMM can
    /// overwrite the arguments, but not change this. Roots of other users' processes are not examined.
    fn held_by(&self, user: Option<u32>, shown: &Path) -> io::Result<bool> {
        let Some((_, device, inode)) = self.place.filter(|&(owner, ..)| user == Some(owner)) else {
            return Ok(false);
        };
        let place = seen(fs::metadata(shown.join("root/run")))?;
        Ok(place.is_some_and(|meta| (meta.dev(), meta.ino()) == (device, inode)))
    }
}

/// Returns whether the process was started for `run_dir`. Fails as [`identify`] does.
fn belongs_to(id: &ProcessId, run_dir: &Path) -> io::Result<bool> {
    Ok(is_alive(id)? && Marks::of(run_dir)?.are_on(id.pid)?)
}

/// Finds a process that was started for `run_dir`. Fails if any process cannot be checked.
pub fn find(run_dir: &Path) -> io::Result<Option<ProcessId>> {
    let marks = Marks::of(run_dir)?;
    find_by(|pid| marks.are_on(pid))
}

/// Finds the page server of the VMM that was started for `run_dir`, if that was started with one. Fails as [`find`]
/// does.
pub fn page_server(run_dir: &Path) -> io::Result<Option<ProcessId>> {
    if !has_page_server(run_dir) {
        return Ok(None);
    }
    let marks = Marks::of(run_dir)?;
    find_by(|pid| marks.are_on_page_server(pid))
}

/// Returns whether the VMM of `run_dir` was started with a page server.
pub(crate) fn has_page_server(run_dir: &Path) -> bool {
    fs::symlink_metadata(run_dir.join(PAGES_SOCKET)).is_ok()
}

/// Finds another process than this one with these marks.
fn find_by(has_marks: impl Fn(i32) -> io::Result<bool>) -> io::Result<Option<ProcessId>> {
    let own = std::process::id() as i32;
    for pid in wrenn_os::process::all()? {
        // The identity is checked before and after the marks: the pid may be reused meanwhile.
        let Some(id) = identify(pid)?.filter(|_| pid != own) else { continue };
        if has_marks(pid)? && is_alive(&id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Returns whether these are the arguments of a probe's VMM: QEMU's name for it, or the id of Firecracker's
/// jail, which ends with a tag.
fn are_of_probe(arguments: &[String]) -> bool {
    arguments.windows(2).any(|pair| match &*pair[0] {
        "-name" => pair[1] == format!("wrenn-{PROBE_ID}"),
        "--id" => pair[1].strip_prefix(PROBE_ID).is_some_and(|rest| {
            rest.strip_prefix('-')
                .is_some_and(|tag| tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit()))
        }),
        _ => false,
    })
}

/// Finds VMMs of probes whose starter has ended: they should have ended with it. Fails if any process cannot
/// be checked.
pub fn stray_probes() -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for pid in wrenn_os::process::all()? {
        let Some(id) = identify(pid)? else { continue };
        if are_of_probe(&arguments(&directory(pid))?) && !started_by_wrenn(pid)? {
            found.push(id);
        }
    }
    Ok(found)
}

/// Returns whether the parent of the process is a Wrenn, which waits for it.
fn started_by_wrenn(pid: i32) -> io::Result<bool> {
    let Some(stat) = stat(&directory(pid))? else { return Ok(true) };
    let name = seen(fs::read(directory(stat.parent).join("comm")))?.unwrap_or_default();
    Ok(name.trim_ascii_end() == b"wrenn")
}

/// Returns the process of `run_dir`: `known` if it still is that, otherwise one that is found.
pub fn of(run_dir: &Path, known: Option<&ProcessId>) -> io::Result<Option<ProcessId>> {
    match known {
        Some(id) if belongs_to(id, run_dir)? => Ok(Some(id.clone())),
        _ => find(run_dir),
    }
}

impl Watched {
    /// Opens a pidfd of the process; `None` if it has ended.
    pub fn open(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(id.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after the open: from here on the pidfd refers to this process.
        if !is_alive(&id)? {
            return Ok(None);
        }
        // SAFETY: an OwnedFd returns the same descriptor for its whole life.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
        Ok(Some(Self { id, pidfd, status: OnceLock::new() }))
    }

    /// Identity of the process.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Waits for its end. The status is known for children only.
    pub async fn exited(&self) -> Option<i32> {
        // An error here means that the runtime is shutting down: no task waits any more.
        let _ = self.pidfd.readable().await;
        // The kernel reports the status once.
        *self.status.get_or_init(|| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let status = waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options).ok().flatten()?;
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            status.exit_status().or(signal)
        })
    }

    /// Sends SIGKILL; no error if the process has ended.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends a signal; no error if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens a pidfd of a child, through which it is reaped; `None` if it has ended, and is reaped then.
pub(crate) fn watch_child(pid: u32) -> io::Result<Option<Watched>> {
    let watched = identify(pid as i32)?.map(Watched::open).transpose()?.flatten();
    if watched.is_none() {
        // It is our child and nothing else refers to it: until it is reaped, its pid is not reused.
        reap(pid as i32);
    }
    Ok(watched)
}

/// Reaps a child that has ended; does nothing otherwise.
fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// CPU time in clock ticks, and number of resident pages, of a process.
pub fn usage(id: &ProcessId) -> io::Result<(u64, u64)> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    if !is_alive(id)? {
        return Err(gone());
    }
    let stat = stat(&directory(id.pid))?.ok_or_else(gone)?;
    Ok((stat.ticks, stat.pages))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_child_is_identified_watched_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let jail = format!("name-{}", tag(dir.path()));
        let mut child = Command::new("sh").args(["-c", "sleep 100; :", "--id", &jail]).spawn().unwrap();
        let id = identify(child.id() as i32).unwrap().unwrap();
        // The arguments are there once the child has executed its program.
        while !belongs_to(&id, dir.path()).unwrap() {
            tokio::task::yield_now().await;
        }
        assert_eq!(find(dir.path()).unwrap(), Some(id.clone()));
        assert!(!is_alive(&ProcessId { start_time: id.start_time + 1, ..id.clone() }).unwrap());
        let watched = Watched::open(id.clone()).unwrap().unwrap();
        watched.kill().unwrap();
        assert_eq!(watched.exited().await, Some(137));
        assert!(!is_alive(&id).unwrap());
        watched.kill().unwrap();
        assert!(child.wait().is_err(), "already reaped");
    }

    #[test]
    fn a_probe_is_known_by_its_arguments_and_a_stray_by_its_parent() {
        for (arguments, probe) in [
            (["-name", "wrenn-probe"], true),
            (["-name", "wrenn-sb1"], false),
            (["--id", "probe-0123456789abcdef"], true),
            (["--id", "probe-x"], false),
            (["--id", "prober-0123456789abcdef"], false),
        ] {
            assert_eq!(are_of_probe(&arguments.map(str::to_owned)), probe, "{arguments:?}");
        }
        // Its parent is this test, which is no Wrenn.
        let mut child =
            Command::new("sh").args(["-c", "sleep 100; :", "-name", "wrenn-probe"]).spawn().unwrap();
        let id = identify(child.id() as i32).unwrap().unwrap();
        while !stray_probes().unwrap().contains(&id) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Programs that a person runs on a sandbox's files are not its VMM.
    #[test]
    fn who_only_reads_its_files_is_not_the_vmm() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        fs::write(&log, "").unwrap();
        let mut reader = Command::new("tail").arg("-f").arg(&log).spawn().unwrap();
        let read = || fs::read(format!("/proc/{}/cmdline", reader.id())).unwrap();
        while !String::from_utf8_lossy(&read()).contains("console.log") {
            std::thread::yield_now();
        }
        assert_eq!(find(dir.path()).unwrap(), None);
        reader.kill().unwrap();
        reader.wait().unwrap();
    }

    /// A hostile VMM's trick: its first thread ends, and another one continues.
    #[tokio::test]
    async fn one_that_lives_on_in_another_thread_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "import ctypes, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
ctypes.CDLL(None).syscall({}, 0)",
            libc::SYS_exit
        );
        let jail = format!("name-{}", tag(dir.path()));
        let mut child = Command::new("python3").args(["-c", &script, "--id", &jail]).spawn().unwrap();
        let proc = directory(child.id() as i32);
        while !stat(&proc).unwrap().is_some_and(|stat| stat.ended) {
            tokio::task::yield_now().await;
        }
        let id = find(dir.path()).unwrap().unwrap();
        assert_eq!(id.pid, child.id() as i32);
        let watched = Watched::open(id.clone()).unwrap().unwrap();
        watched.kill().unwrap();
        assert_eq!(watched.exited().await, Some(137));
        assert_eq!(watched.exited().await, Some(137), "also to who asks later");
        assert!(!is_alive(&id).unwrap());
        assert!(child.wait().is_err(), "already reaped");
    }

    #[test]
    fn our_own_usage_is_not_zero() {
        let id = identify(std::process::id() as i32).unwrap().unwrap();
        assert!(usage(&id).unwrap().1 > 0);
    }
}
