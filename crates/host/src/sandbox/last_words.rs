// SPDX-License-Identifier: Apache-2.0
//! Last lines of a microVM that ended, for its owner.

use std::path::Path;

use wrenn_vmm::{Exit, MicroVm};

use super::guest::cut;
use crate::cgroup;

/// Length of the console's end that is added to an error, in bytes.
const CONSOLE: usize = 8 << 10;
/// Number of last lines of the console, and of the VMM's log, in an error.
const LINES: usize = 3;
/// Begin of the line in which a kernel says why it panics. More than the last lines comes after it.
const PANIC: &str = "Kernel panic";

/// What a kernel says when it panics because it has no memory left, and why else PID 1 has ended.
const NO_MEMORY: [&str; 2] = ["deadlocked on memory", "Out of memory"];
const PID_1_ENDED: &str = "Attempted to kill init";
/// What a program of Rust, as envd is, says before it ends without memory.
const NO_ALLOCATION: &str = "memory allocation of";
/// What is told of a guest that had no memory left.
const OF_MEMORY: &str = "it is out of memory: give sandboxes like this one more memory_mb";

/// How a microVM ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastWords {
    /// Whether it ended for want of memory: its guest's own, or that of its VMM on the host.
    pub(super) of_memory: bool,
    /// How it ended and why, with its last lines.
    pub(super) text: String,
}

/// Tells how and why the microVM of a sandbox ended, with the ends of its console and of its VMM's log. Its control groups must still
/// be there. `how` is told unless the kernel of the host killed it; `sandboxes` is the parent of the sandboxes' directories, whose path
/// is left out.
pub(super) async fn of(how: &str, vm: &dyn MicroVm, exit: &Exit, id: &str, sandboxes: &Path) -> LastWords {
    let killed = cgroup::out_of_memory(id).await;
    let console = String::from_utf8_lossy(&vm.console(CONSOLE).await).into_owned();
    tell(how, killed, &console, exit, sandboxes)
}

fn tell(
    how: &str,
    killed: Option<cgroup::OutOfMemory>,
    console: &str,
    exit: &Exit,
    sandboxes: &Path,
) -> LastWords {
    let how = killed.map_or_else(|| how.to_owned(), |why| format!("the microVM was killed {why}"));
    let cause = cause(console);
    let because = cause.map(|cause| format!("{cause}; ")).unwrap_or_default();
    let status = exit.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    let [console, log] = [console, &exit.log].map(|text| last_lines(text, sandboxes));
    LastWords {
        of_memory: killed.is_some() || cause == Some(OF_MEMORY),
        text: format!(
            "{how}; {because}its console's last lines: {console:?}; its VMM's, which ended with status {status}: {log:?}"
        ),
    }
}

/// Returns why a guest ended, if its console says so.
fn cause(console: &str) -> Option<&'static str> {
    let panic = console.lines().rfind(|line| line.contains(PANIC))?;
    let of_memory = NO_MEMORY.iter().any(|text| panic.contains(text));
    let pid_1_ended = panic.contains(PID_1_ENDED);
    if of_memory || (pid_1_ended && console.contains(NO_ALLOCATION)) {
        return Some(OF_MEMORY);
    }
    pid_1_ended.then_some("its own agent, which is PID 1, ended")
}

/// Joins the last lines of a log, without the paths of the agent's own directories.
pub(super) fn last_lines(log: &str, sandboxes: &Path) -> String {
    let own = sandboxes.parent().unwrap_or(sandboxes).display().to_string();
    let lines: Vec<_> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let (before, last) = lines.split_at(lines.len().saturating_sub(LINES));
    let panic = before.iter().rfind(|line| line.contains(PANIC));
    let told: Vec<_> = panic.into_iter().chain(last).copied().collect();
    cut(&told.join(" | ").replace(&own, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_why_a_guest_ended() {
        let memory = Some(OF_MEMORY);
        for (console, expected) in [
            ("[1] Kernel panic - not syncing: System is deadlocked on memory\n[1] ---[ end", memory),
            ("[1] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled", memory),
            (
                "memory allocation of 4096 bytes failed\n[1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x06",
                memory,
            ),
            (
                "[1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x09",
                Some("its own agent, which is PID 1, ended"),
            ),
            // A process was killed, and the guest ended for another reason.
            ("Out of memory: Killed process 7 (x) total-vm:1kB\nreboot: Power down", None),
            ("[1] Kernel panic - not syncing: no timer", None),
            ("", None),
        ] {
            assert_eq!(cause(console), expected, "{console}");
        }
    }

    #[test]
    fn who_was_out_of_memory_is_told() {
        use cgroup::OutOfMemory::{Host, Limit};
        let exit = Exit { status: Some(137), log: "vmm\n".to_owned() };
        let told =
            |killed, console: &str| tell("it ended", killed, console, &exit, Path::new("/a/sandboxes"));
        let lines = |console: &str| {
            format!("its console's last lines: {console:?}; its VMM's, which ended with status 137: \"vmm\"")
        };
        let expected = |of_memory, how: &str| LastWords { of_memory, text: format!("{how}; {}", lines("a")) };
        assert_eq!(told(None, "a"), expected(false, "it ended"));
        let limit = "the microVM was killed because its memory limit of 700 MiB on the host was reached";
        assert_eq!(told(Some(Limit(700)), "a"), expected(true, limit));
        let host = "the microVM was killed because its host had no memory left";
        assert_eq!(told(Some(Host), "a"), expected(true, host));
        let panic = "[1] Kernel panic - not syncing: System is deadlocked on memory";
        let of_guest = told(None, panic);
        assert!(of_guest.of_memory, "{of_guest:?}");
        assert_eq!(of_guest.text, format!("it ended; {OF_MEMORY}; {}", lines(panic)));
    }

    #[test]
    fn last_lines_tell_no_paths() {
        let log = "one\n\n two \nqemu: /var/lib/wrenn/agent/volumes/x.img: gone\nfour\n";
        let sandboxes = Path::new("/var/lib/wrenn/agent/sandboxes");
        let words = last_lines(log, sandboxes);
        assert_eq!(words, "two | qemu: /volumes/x.img: gone | four");
        assert_eq!(last_lines("", Path::new("/")), "");
        let console = "[1] Kernel panic - not syncing: no timer\n[1] Call Trace:\nf\n</TASK>\nRebooting";
        let words = last_lines(console, sandboxes);
        assert_eq!(words, "[1] Kernel panic - not syncing: no timer | f | </TASK> | Rebooting");
        assert!(last_lines(&"x".repeat(1 << 20), Path::new("/")).len() < 600);
    }
}
