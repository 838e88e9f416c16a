// SPDX-License-Identifier: Apache-2.0
//! Exit status of a process as numbers and as the text that sandbox clients expect.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use super::output::End;

/// Describes an exit that had nothing to do with the memory; `None` means that the status is unknown.
pub(super) fn describe(status: Option<ExitStatus>, timed_out: bool) -> End {
    let end = End {
        exit_code: -1,
        exited: false,
        status: "status unknown".into(),
        signal: None,
        timed_out,
        out_of_memory: false,
        victim: None,
    };
    let Some(status) = status else { return end };
    if let Some(code) = status.code() {
        return End { exit_code: code, exited: true, status: format!("exit status {code}"), ..end };
    }
    let signal = status.signal().unwrap_or_default();
    let core = if status.core_dumped() { " (core dumped)" } else { "" };
    let text = format!("signal: {}{core}", words(signal));
    End { status: text, signal: u32::try_from(signal).ok(), ..end }
}

/// Returns the usual name of a signal, or its number.
fn words(signal: i32) -> String {
    let words = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSTKFLT => "stack fault",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        libc::SIGVTALRM => "virtual timer expired",
        libc::SIGPROF => "profiling timer expired",
        libc::SIGIO => "I/O possible",
        libc::SIGPWR => "power failure",
        libc::SIGSYS => "bad system call",
        other => return other.to_string(),
    };
    words.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_its_number() {
        for signal in 1..=64 {
            let end = describe(Some(ExitStatus::from_raw(signal)), false);
            assert_eq!((end.signal, end.exit_code, end.exited), (Some(signal as u32), -1, false));
            assert!(end.status.starts_with("signal: "), "{}", end.status);
        }
        assert_eq!(describe(Some(ExitStatus::from_raw(34)), false).status, "signal: 34");
        assert_eq!(
            describe(Some(ExitStatus::from_raw(0x80 | libc::SIGSEGV)), false).status,
            "signal: segmentation fault (core dumped)"
        );
        let exit = describe(Some(ExitStatus::from_raw(3 << 8)), false);
        assert_eq!((exit.exit_code, exit.exited, exit.signal), (3, true, None));
    }
}
