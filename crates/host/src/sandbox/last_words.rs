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

/// Formats the ends of the console and of the VMM's log. `sandboxes` is the parent of the sandboxes'
/// directories, whose path is left out.
pub(super) async fn of(vm: &dyn MicroVm, exit: &Exit, sandboxes: &Path) -> String {
    let console = String::from_utf8_lossy(&vm.console(CONSOLE).await).into_owned();
    let [console, log] = [&console, &exit.log].map(|text| last_lines(text, sandboxes));
    let status = exit.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    format!("its console's last lines: {console:?}; its VMM's, which ended with status {status}: {log:?}")
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
