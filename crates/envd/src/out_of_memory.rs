// SPDX-License-Identifier: Apache-2.0
//! Processes that the kernel kills for want of memory. Which one it was is only in the kernel's log: the counters of a control group
//! tell that there was one.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// The kernel's log.
const LOG: &str = "/dev/kmsg";
/// Size of the largest record of the log in bytes.
const RECORD: usize = 8 << 10;
/// Number of kills that are kept.
const KEPT: usize = 16;
/// Time for the kernel to say whom it has killed: it says so after the kill.
const TOLD: Duration = Duration::from_millis(200);

/// A process that the kernel killed for want of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Kill {
    /// Unix time in milliseconds, by the clock of the sandbox.
    pub(crate) at: u64,
    pub(crate) pid: u32,
    /// Name of its program, as the kernel has it.
    pub(crate) command: String,
    /// Its control group, which the kernel does not say of every one if it kills many.
    #[serde(skip)]
    group: Option<PathBuf>,
}

/// The last kills, the oldest first.
pub(crate) struct Kills {
    last: watch::Sender<VecDeque<Kill>>,
}

impl Kills {
    /// Without any.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { last: watch::Sender::default() })
    }

    /// Notes the kills from now on. Without the right to read the kernel's log, as in a container, there are none.
    pub(crate) fn watch(self: &Arc<Self>) {
        let log = open().and_then(|log| {
            // SAFETY: the file is not replaced or closed before the AsyncFd is dropped.
            unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }.map_err(io::Error::from)
        });
        match log {
            Ok(log) => drop(tokio::spawn(Arc::clone(self).follow(log))),
            Err(error) => eprintln!("envd: {LOG} cannot be read, so that no victim is known: {error}"),
        }
    }

    /// Lists them.
    pub(crate) fn list(&self) -> Vec<Kill> {
        self.last.borrow().iter().cloned().collect()
    }

    /// Forgets them: they were in another machine, from whose memory this one goes on.
    pub(crate) fn forget(&self) {
        self.last.send_modify(VecDeque::clear);
    }

    /// Returns the last one that is this process or a member of its control group. Waits a moment for it: one is known to be.
    pub(crate) async fn of(&self, pid: u32, group: &Path) -> Option<Kill> {
        let is_its = |kill: &Kill| {
            let member = kill.group.as_deref().is_some_and(|of| of.starts_with(group));
            kill.pid == pid || member
        };
        let mut last = self.last.subscribe();
        let found = last.wait_for(|kills| kills.iter().any(is_its));
        let kills = tokio::time::timeout(TOLD, found).await.ok()?.ok()?;
        kills.iter().rev().find(|kill| is_its(kill)).cloned()
    }

    async fn follow(self: Arc<Self>, log: AsyncFd<File>) {
        let (mut record, mut summary) = (vec![0_u8; RECORD], None);
        loop {
            let read = log.async_io(Interest::READABLE, |mut log| log.read(&mut record)).await;
            match read {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if let Some(text) = of_kernel(&text) {
                        self.note(text, &mut summary);
                    }
                }
                // Records were overwritten before they were read; the next one follows.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => {
                    eprintln!("envd: {LOG} cannot be read any more: {error}");
                    return;
                }
            }
        }
    }

    /// Takes a line of the kernel. The summary of a kill comes before the kill.
    fn note(&self, text: &str, summary: &mut Option<(u32, PathBuf)>) {
        if let Some(about) = summed_up(text) {
            *summary = Some(about);
        } else if let Some((pid, command)) = killed(text) {
            let group = summary.take().filter(|(of, _)| *of == pid).map(|(_, group)| group);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.add(Kill { at: now.as_millis() as u64, pid, command, group });
        }
    }

    fn add(&self, kill: Kill) {
        self.last.send_modify(|kills| {
            if kills.len() == KEPT {
                kills.pop_front();
            }
            kills.push_back(kill);
        });
    }
}

/// Opens the kernel's log after its last record.
fn open() -> io::Result<File> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG)?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// Returns the line of a record if it is the kernel's own. Programs can write to the log, too, and never as the kernel.
fn of_kernel(record: &str) -> Option<&str> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // The facility is in the bits above the level, and that of the kernel is 0.
    (priority >> 3 == 0).then(|| text.lines().next().unwrap_or_default())
}

/// Parses the line that says which process is about to be killed, and its control group.
fn summed_up(text: &str) -> Option<(u32, PathBuf)> {
    let (_, rest) = text.strip_prefix("oom-kill:")?.split_once(",task_memcg=")?;
    let (group, rest) = rest.split_once(",task=")?;
    let (_, rest) = rest.rsplit_once(",pid=")?;
    Some((rest.split(',').next()?.parse().ok()?, group.into()))
}

/// Parses the line that says which process was killed: its id and the name of its program.
fn killed(text: &str) -> Option<(u32, String)> {
    let (_, rest) = text.split_once("Killed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    // A name may have parentheses itself.
    let (name, _) = rest.rsplit_once(") total-vm:")?;
    Some((pid.parse().ok()?, unescaped(name)))
}

/// Undoes what the log does to bytes that are not printable: `\x` and two digits.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let digits = if byte == b'\\' { after.strip_prefix(b"x").and_then(|hex| hex.get(..2)) } else { None };
        let escaped = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                           oom_memcg=/wrenn/1,\
                           task_memcg=/wrenn/1/17,task=python3,pid=412,uid=1000";
    const KILLED: &str = "Memory cgroup out of memory: Killed process 412 (python3) total-vm:262144kB, \
                          anon-rss:200000kB, file-rss:1024kB, shmem-rss:0kB, UID:1000 pgtables:500kB oom_score_adj:0";

    fn line(pid: u32, name: &str) -> String {
        format!("Out of memory: Killed process {pid} ({name}) total-vm:1kB, anon-rss:1kB")
    }

    /// Kills that these lines of the kernel tell.
    fn told(lines: &[&str]) -> Arc<Kills> {
        let (kills, mut summary) = (Kills::new(), None);
        lines.iter().for_each(|line| kills.note(line, &mut summary));
        kills
    }

    #[test]
    fn the_kernel_says_whom_it_kills() {
        assert_eq!(summed_up(SUMMARY), Some((412, "/wrenn/1/17".into())));
        let global = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                      task_memcg=/wrenn/1/3,task=a,pid=1,uid=0,pid=7,uid=0";
        assert_eq!(summed_up(global), Some((7, "/wrenn/1/3".into())), "a name with a comma");
        assert_eq!(killed(KILLED), Some((412, "python3".to_owned())));
        for (name, expected) in [
            ("a) total-vm:", "a) total-vm:"),
            (r"caf\xc3\xa9", "café"),
            (r"\x0a\x5cx41\xzz\x", "\n\\x41\\xzz\\x"),
        ] {
            assert_eq!(killed(&line(7, name)), Some((7, expected.to_owned())), "{name}");
        }
        let no_id = "Killed process x (y) total-vm:1kB";
        for text in [SUMMARY, "", "Killed process", no_id, "Killed process 7 (y)"] {
            assert_eq!(killed(text), None, "{text}");
        }
        assert_eq!(summed_up(KILLED), None);
    }

    #[test]
    fn only_the_kernel_is_believed() {
        assert_eq!(of_kernel(&format!("3,710,15000,-;{KILLED}\n SUBSYSTEM=none\n")), Some(KILLED));
        // A program that writes to the log.
        assert_eq!(of_kernel(&format!("12,711,15001,-;{KILLED}\n")), None);
        for record in ["", "3,710,15000,-", "x,710;text", ";text"] {
            assert_eq!(of_kernel(record), None, "{record}");
        }
    }

    #[tokio::test]
    async fn a_kill_belongs_to_the_command_in_whose_group_it_was() {
        let own = Path::new("/wrenn/1/17");
        let kills = told(&[SUMMARY, KILLED, &line(500, "other")]);
        let kill = kills.of(400, own).await;
        assert_eq!(kill.map(|kill| (kill.pid, kill.command)), Some((412, "python3".to_owned())));
        assert_eq!(kills.of(400, Path::new("/wrenn/1/1")).await, None, "17 is not below 1");
        let by_id = kills.of(500, Path::new("/wrenn/1/18")).await;
        assert_eq!(by_id.map(|kill| kill.command), Some("other".to_owned()), "the command itself");
        let wrong = told(&[SUMMARY, &line(500, "other")]);
        assert_eq!(wrong.of(400, own).await, None, "the summary was of another one");
    }

    #[tokio::test]
    async fn what_the_kernel_says_late_is_waited_for() {
        let kills = Kills::new();
        let late = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            kills.note(KILLED, &mut None);
        };
        let (kill, ()) = tokio::join!(kills.of(412, Path::new("/x")), late);
        assert_eq!(kill.map(|kill| kill.pid), Some(412));
    }

    #[test]
    fn few_are_kept_and_none_of_another_machine() {
        let lines: Vec<_> = (1..=20).map(|pid| line(pid, "x")).collect();
        let kills = told(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let pids: Vec<_> = kills.list().iter().map(|kill| kill.pid).collect();
        assert_eq!(pids, (5..=20).collect::<Vec<_>>());
        kills.forget();
        assert!(kills.list().is_empty());
    }
}
