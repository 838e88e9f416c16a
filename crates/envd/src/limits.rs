// SPDX-License-Identifier: Apache-2.0
//! Limits of open files and tasks: the maximum for envd, and the usual limit of open files for the processes it starts.

use std::sync::OnceLock;

/// Limits of started processes; if envd is PID 1, the usual ones of a Debian machine.
static CHILDREN: OnceLock<libc::rlimit> = OnceLock::new();
const SOFT: libc::rlim_t = 1024;
const HARD: libc::rlim_t = 524_288;

/// Raises envd's own limit; as PID 1 (`first`) also the hard limit, whose kernel default is 4096.
pub(crate) fn raise(first: bool) {
    let Some(mut limit) = current() else { return };
    let raised = libc::rlimit { rlim_cur: limit.rlim_cur.max(SOFT), rlim_max: limit.rlim_max.max(HARD) };
    // SAFETY: the structure is valid for the call.
    if first && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    if first {
        lift_tasks();
    }
    let _ = CHILDREN.set(limit);
    let own = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: as above.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const own) } < 0 {
        eprintln!("envd: cannot raise the limit of open files: {}", std::io::Error::last_os_error());
    }
}

/// Removes the limit of tasks per user, by default half of the machine's maximum. Control groups limit tasks; with the limit
/// per user, one command could keep every other command of that user from starting.
fn lift_tasks() {
    let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const none) } < 0 {
        eprintln!("envd: cannot lift the limit of tasks: {}", std::io::Error::last_os_error());
    }
}

/// Returns the limit for started processes.
pub(crate) fn of_children() -> libc::rlimit {
    let usual = libc::rlimit { rlim_cur: SOFT, rlim_max: SOFT };
    CHILDREN.get().copied().or_else(current).unwrap_or(usual)
}

fn current() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid for the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (read == 0).then_some(limit)
}
