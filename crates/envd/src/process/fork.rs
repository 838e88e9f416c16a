// SPDX-License-Identifier: Apache-2.0
//! Forks a process and sets its session, cgroup, limits, user and directory before exec.

use std::{
    convert::Infallible,
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    process::ExitStatus,
    ptr,
};

use rustix::pipe::PipeFlags;
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::oneshot};

use super::pipes::nonblocking;
use crate::{limits, reaper::Reaper, users::User};

/// Program of the child and its environment.
pub(super) struct Image {
    pub(super) program: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) directory: CString,
    pub(super) user: User,
    /// Standard input, output and error.
    pub(super) standard: [OwnedFd; 3],
    /// Whether standard input is the controlling terminal of the session.
    pub(super) terminal: bool,
    /// `cgroup.procs` of the cgroup to join.
    pub(super) group: Option<OwnedFd>,
}

/// Step at which a child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Setting session, limits or user.
    Prepare,
    /// Changing the directory.
    Directory,
    /// Executing the program.
    Execute,
}

/// Forked child whose program may not run yet.
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) status: oneshot::Receiver<ExitStatus>,
    pub(super) report: OwnedFd,
}

/// Converts strings into the null-terminated array that exec needs.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Forks. The child closes its end of the report pipe on a successful exec.
pub(super) fn fork(reaper: &Reaper, image: &Image) -> io::Result<Child> {
    let (report, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (arguments, environment) = (pointers(&image.arguments), pointers(&image.environment));
    let plan = Plan {
        image,
        arguments: &arguments,
        environment: &environment,
        // SAFETY: geteuid cannot fail.
        switch_user: unsafe { libc::geteuid() } == 0,
        files: limits::of_children(),
    };
    let child = || {
        // SAFETY: this is the child, and everything that it needs was allocated before the fork.
        let (step, error) = unsafe { plan.become_it() };
        let mut message = [0; 5];
        message[0] = step as u8;
        message[1..].copy_from_slice(&error.to_ne_bytes());
        // SAFETY: the pipe is open and has space for the message.
        unsafe {
            libc::write(end.as_raw_fd(), message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    };
    // SAFETY: the closure only makes async-signal-safe calls.
    let (pid, status) = unsafe { reaper.fork(child) }?;
    Ok(Child { pid, status, report })
}

/// Waits until the program runs; returns the step and error if the child failed. A child that is killed
/// earlier counts as executed and has an exit status like any other.
pub(super) async fn executed(report: OwnedFd) -> io::Result<Result<(), (Step, io::Error)>> {
    nonblocking(&report)?;
    let mut message = Vec::new();
    pipe::Receiver::from_owned_fd(report)?.read_to_end(&mut message).await?;
    let Ok([step, code @ ..]) = <[u8; 5]>::try_from(message) else { return Ok(Ok(())) };
    let step = match step {
        0 => Step::Prepare,
        1 => Step::Directory,
        _ => Step::Execute,
    };
    Ok(Err((step, io::Error::from_raw_os_error(i32::from_ne_bytes(code)))))
}

/// Data of the child, all allocated before the fork.
struct Plan<'a> {
    image: &'a Image,
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    switch_user: bool,
    files: libc::rlimit,
}

impl Plan<'_> {
    /// Executes the program; returns only on failure, with the step and the error.
    unsafe fn become_it(&self) -> (Step, i32) {
        // SAFETY: the same conditions as for this function.
        unsafe {
            if let Err(error) = self.prepare() {
                return (Step::Prepare, error);
            }
            if libc::chdir(self.image.directory.as_ptr()) < 0 {
                return (Step::Directory, errno());
            }
            match self.execute() {
                Err(error) => (Step::Execute, error),
            }
        }
    }

    unsafe fn prepare(&self) -> Result<(), i32> {
        let check = |result: libc::c_int| if result < 0 { Err(errno()) } else { Ok(()) };
        // SAFETY: async-signal-safe calls on values allocated before the fork.
        unsafe {
            for (target, file) in self.image.standard.iter().enumerate() {
                check(libc::dup2(file.as_raw_fd(), target as RawFd))?;
            }
            check(libc::setsid())?;
            if self.image.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            if let Some(group) = &self.image.group {
                // If joining the cgroup fails, the process group still works.
                write(group.as_raw_fd(), c"0");
            }
            // envd is protected from the OOM killer; its children must not be.
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if score >= 0 {
                write(score, c"0");
                libc::close(score);
            }
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.files))?;
            libc::umask(0o022);
            if self.switch_user {
                let user = &self.image.user;
                check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
                check(libc::setgid(user.gid))?;
                check(libc::setuid(user.uid))?;
            }
            Ok(())
        }
    }

    unsafe fn execute(&self) -> Result<Infallible, i32> {
        // SAFETY: async-signal-safe calls; the arrays are null-terminated and outlive the call. The program
        // has a path, so execvpe does not search; it runs a script without `#!` with the shell.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execvpe(self.image.program.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
        }
        Err(errno())
    }
}

unsafe fn write(fd: RawFd, text: &CStr) {
    // SAFETY: a valid string; the length excludes the NUL.
    unsafe { libc::write(fd, text.as_ptr().cast(), text.count_bytes()) };
}

fn errno() -> i32 {
    // SAFETY: the address is valid in every thread.
    unsafe { *libc::__errno_location() }
}
