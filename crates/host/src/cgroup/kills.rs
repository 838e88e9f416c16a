// SPDX-License-Identifier: Apache-2.0
//! What the kernel killed in a control group for want of memory, and whether the group had used up its own: `memory.events` of cgroup
//! version 2, `memory.oom_control` and `memory.failcnt` of version 1.

use std::{fmt, fs, io, path::Path};

/// Why the kernel killed a process of a group for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    /// The group had reached its limit of so many MiB.
    Limit(u64),
    /// The group had not: its host had no memory left.
    Host,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(mib) => write!(f, "because its memory limit of {mib} MiB on the host was reached"),
            Self::Host => f.write_str("because its host had no memory left"),
        }
    }
}

/// Reads why a process was killed in the group with these directories of versions 2 and 1, of which one exists or none; `None` if none
/// was killed. Blocking.
pub(super) fn read(version_2: &Path, version_1: &Path) -> io::Result<Option<OutOfMemory>> {
    let text = |dir: &Path, file: &str| match fs::read_to_string(dir.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    if let Some(events) = text(version_2, "memory.events")? {
        let limit = text(version_2, "memory.max")?.unwrap_or_default();
        return Ok(cause(number(&events, "oom_kill"), number(&events, "oom"), &limit));
    }
    let Some(control) = text(version_1, "memory.oom_control")? else { return Ok(None) };
    let [failures, limit] = ["memory.failcnt", "memory.limit_in_bytes"].map(|file| text(version_1, file));
    let failures = failures?.unwrap_or_default().trim().parse().unwrap_or_default();
    Ok(cause(number(&control, "oom_kill"), failures, &limit?.unwrap_or_default()))
}

/// Returns the cause of so many kills in a group that has wanted more than its limit so many times. Kills for want of memory of the whole
/// host are counted in the group, too.
fn cause(kills: u64, beyond: u64, limit: &str) -> Option<OutOfMemory> {
    match limit.trim().parse::<u64>() {
        _ if kills == 0 => None,
        Ok(bytes) if beyond > 0 => Some(OutOfMemory::Limit(bytes >> 20)),
        _ => Some(OutOfMemory::Host),
    }
}

/// Returns the number after this name, in lines of names and numbers; 0 if there is none.
fn number(lines: &str, name: &str) -> u64 {
    let found =
        lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes files of a group into a new directory.
    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            fs::write(dir.path().join(name), content).expect("written");
        }
        dir
    }

    fn of_version_2(events: &str, max: &str) -> Option<OutOfMemory> {
        let dir = group(&[("memory.events", events), ("memory.max", max)]);
        read(dir.path(), Path::new("/none")).expect("read")
    }

    fn of_version_1(control: &str, failures: &str, limit: &str) -> Option<OutOfMemory> {
        let files =
            [("memory.oom_control", control), ("memory.failcnt", failures), ("memory.limit_in_bytes", limit)];
        read(Path::new("/none"), group(&files).path()).expect("read")
    }

    #[test]
    fn a_kill_is_told_with_the_limit_that_was_reached() {
        let limit = Some(OutOfMemory::Limit(700));
        let killed = "low 0\nhigh 0\nmax 41\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(of_version_2(killed, "734003200\n"), limit);
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        assert_eq!(of_version_1(control, "12\n", "734003200\n"), limit);
        let told = OutOfMemory::Limit(700).to_string();
        assert_eq!(told, "because its memory limit of 700 MiB on the host was reached");
    }

    #[test]
    fn what_the_limit_is_not_the_cause_of_is_the_hosts() {
        let host = Some(OutOfMemory::Host);
        assert_eq!(of_version_2("max 0\noom 0\noom_kill 1\n", "734003200\n"), host);
        assert_eq!(of_version_2("oom 1\noom_kill 1\n", "max\n"), host, "it has no limit");
        assert_eq!(of_version_1("oom_kill 1\n", "0\n", "734003200\n"), host);
    }

    #[test]
    fn a_group_without_kills_has_no_cause() {
        assert_eq!(of_version_2("max 9\noom 9\noom_kill 0\noom_group_kill 3\n", "1048576\n"), None);
        assert_eq!(of_version_1("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "9\n", "1048576\n"), None);
        assert_eq!(
            of_version_1("oom_kill_disable 0\nunder_oom 1\n", "9\n", "1048576\n"),
            None,
            "an old kernel"
        );
        assert_eq!(of_version_2("oom_kill x\n", ""), None);
        assert_eq!(read(Path::new("/none"), Path::new("/none")).expect("read"), None, "there is no group");
        let odd = group(&[]);
        fs::create_dir(odd.path().join("memory.events")).expect("made");
        assert!(read(odd.path(), Path::new("/none")).is_err(), "what cannot be read is no absence");
    }
}
