// SPDX-License-Identifier: Apache-2.0
//! Last lines of a microVM that ended, for its owner.

use std::path::Path;

use wrenn_vmm::{Exit, MicroVm};

use super::guest::cut;

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

/// Formats the ends of the console and of the VMM's log. `sandboxes` is the parent of the sandboxes'
/// directories, whose path is left out.
pub(super) async fn of(vm: &dyn MicroVm, exit: &Exit, sandboxes: &Path) -> String {
    let whole = String::from_utf8_lossy(&vm.console(CONSOLE).await).into_owned();
    let [console, log] = [&whole, &exit.log].map(|text| last_lines(text, sandboxes));
    let status = exit.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    let cause = cause(&whole).map(|cause| format!("{cause}; ")).unwrap_or_default();
    format!(
        "{cause}its console's last lines: {console:?}; its VMM's, which ended with status {status}: {log:?}"
    )
}

/// Returns why a guest ended, if its console says so.
fn cause(console: &str) -> Option<&'static str> {
    let panic = console.lines().rfind(|line| line.contains(PANIC))?;
    let of_memory = NO_MEMORY.iter().any(|text| panic.contains(text));
    let pid_1_ended = panic.contains(PID_1_ENDED);
    if of_memory || (pid_1_ended && console.contains(NO_ALLOCATION)) {
        return Some("it is out of memory: give sandboxes like this one more memory_mb");
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
        let memory = Some("it is out of memory: give sandboxes like this one more memory_mb");
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
