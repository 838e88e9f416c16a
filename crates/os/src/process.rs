// SPDX-License-Identifier: Apache-2.0
//! Processes as `/proc` shows them: identity, state, owner, arguments.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Room for the content of a `stat`, in bytes: about fifty numbers and a name of at most 64 bytes.
const STAT_MAX: usize = 2048;

/// Identity of a process: the start time distinguishes it from another one with the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// `stat` of a process or of one of its threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Whether it has ended: a zombie, or about to vanish.
    pub ended: bool,
    /// Process id of the parent.
    pub parent: i32,
    /// CPU time in clock ticks.
    pub ticks: u64,
    /// Number of threads.
    pub threads: u64,
    /// Clock ticks since boot at its start.
    pub start_time: u64,
    /// Number of resident pages.
    pub pages: u64,
}

/// Turns an error of reading `/proc` into `None` if the process does not exist. A lack of descriptors or
/// memory in this process is an error instead: it does not show that.
pub fn seen<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(error),
            _ => Ok(None),
        },
    }
}

/// Directory of a process in `/proc`.
pub fn directory(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Lists the ids of all processes. Fails if they cannot be listed.
pub fn all() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Reads `stat` in a directory of `/proc`; `None` if the process does not exist.
pub fn stat(dir: &Path) -> io::Result<Option<Stat>> {
    let read = || {
        // The kernel gives all of it at once to who has room for it.
        let mut content = Vec::with_capacity(STAT_MAX);
        File::open(dir.join("stat"))?.take(STAT_MAX as u64).read_to_end(&mut content)?;
        Ok(content)
    };
    let Some(stat) = seen(read())? else { return Ok(None) };
    Ok(parse(&String::from_utf8_lossy(&stat)))
}

/// Parses the fields after the last `)`, because the command name may contain spaces and parentheses.
fn parse(stat: &str) -> Option<Stat> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        threads: number(17)?,
        start_time: number(19)?,
        pages: number(21)?,
    })
}

/// Returns the identity of a running process; `None` if no process has this pid, or only a zombie. A process
/// whose first thread has ended still runs as long as it has another. Fails if this process lacks descriptors
/// or memory for the check.
pub fn identify(pid: i32) -> io::Result<Option<ProcessId>> {
    let running = stat(&directory(pid))?.filter(|stat| !stat.ended || stat.threads > 1);
    Ok(running.map(|stat| ProcessId { pid, start_time: stat.start_time }))
}

/// Returns whether the process still runs; another one with the same pid does not count. Fails as
/// [`identify`] does.
pub fn is_alive(id: &ProcessId) -> io::Result<bool> {
    Ok(identify(id.pid)?.as_ref() == Some(id))
}

/// Returns the user id of a process; `None` if it does not exist.
pub fn user(pid: i32) -> io::Result<Option<u32>> {
    let status = seen(fs::read(directory(pid).join("status")))?.unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.and_then(|ids| ids.split_whitespace().next()?.parse().ok()))
}

/// Reads the arguments in a directory of `/proc`; none if the process does not exist.
pub fn arguments(dir: &Path) -> io::Result<Vec<String>> {
    let line = seen(fs::read(dir.join("cmdline")))?.unwrap_or_default();
    Ok(line.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_one_with_its_number_is_not() {
        let own = identify(std::process::id() as i32).unwrap().unwrap();
        assert!(is_alive(&own).unwrap());
        assert!(!is_alive(&ProcessId { start_time: own.start_time + 1, ..own.clone() }).unwrap());
        assert!(stat(&directory(own.pid)).unwrap().unwrap().pages > 0);
        assert!(all().unwrap().contains(&own.pid));
        assert!(user(own.pid).unwrap().is_some() && !arguments(&directory(own.pid)).unwrap().is_empty());
        assert_eq!(identify(i32::MAX).unwrap(), None);
    }

    #[test]
    fn the_name_of_a_program_confuses_nobody() {
        let fields = "Z 7 0 0 0 0 0 0 0 0 0 30 12 0 0 0 0 1 0 99 0 5 0";
        let stat = Stat { ended: true, parent: 7, ticks: 42, threads: 1, start_time: 99, pages: 5 };
        for name in ["sh", "a) R 1 (b", "x y)"] {
            assert_eq!(parse(&format!("1 ({name}) {fields}")), Some(stat), "{name}");
        }
        assert_eq!(parse("1 (sh) R 7"), None);
    }

    #[test]
    fn what_cannot_be_seen_is_not_gone() {
        let failed = |code| seen::<()>(Err(io::Error::from_raw_os_error(code)));
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert_eq!(failed(code).unwrap_err().raw_os_error(), Some(code));
        }
        for code in [libc::ENOENT, libc::ESRCH, libc::EACCES] {
            assert!(failed(code).unwrap().is_none());
        }
    }
}
