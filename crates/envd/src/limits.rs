//! How many files may be open: as many as the kernel allows in envd, and the usual number in what it starts.

use std::sync::OnceLock;

/// The limits of processes that are started; the usual ones of a Debian machine when envd is PID 1.
static CHILDREN: OnceLock<libc::rlimit> = OnceLock::new();
const SOFT: libc::rlim_t = 1024;
const HARD: libc::rlim_t = 524_288;

/// Raises envd's own limit; as PID 1 (`first`) also the hard limit, which is 4096 by the kernel's default.
pub(crate) fn raise(first: bool) {
    let Some(mut limit) = current() else { return };
    let raised = libc::rlimit { rlim_cur: limit.rlim_cur.max(SOFT), rlim_max: limit.rlim_max.max(HARD) };
    // SAFETY: the structure is valid for the call.
    if first && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    let _ = CHILDREN.set(limit);
    let own = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: as above.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const own) } < 0 {
        eprintln!("envd: cannot raise the limit of open files: {}", std::io::Error::last_os_error());
    }
}

/// The limit that a started process gets.
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
