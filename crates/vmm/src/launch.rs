//! Steps in the child process before it executes the VMM: control groups, user, limits.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

/// The group that may use KVM, where it is a group of its own.
pub(crate) fn kvm_group() -> Option<u32> {
    let group = fs::metadata("/dev/kvm").ok()?.gid();
    (group != 0).then_some(group)
}

/// Turns the result of a system call into an `io::Result`.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// User and groups that a VMM runs as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary group, for a device that it opens.
    pub(crate) group: Option<u32>,
}

impl Identity {
    /// Becomes this user, for good.
    ///
    /// # Safety
    /// For the child between fork and exec: system calls only, nothing is allocated.
    unsafe fn assume(self) -> io::Result<()> {
        let groups = self.group.as_slice();
        // SAFETY: the list of groups outlives the call; the others take numbers.
        unsafe {
            if libc::geteuid() == 0 && self.uid != 0 {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setgid(self.gid))?;
                check(libc::setuid(self.uid))?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }
        Ok(())
    }
}

/// The file of a control group in which a child of one thread enters it. In version 1 that is the one of threads:
/// whole processes wait some milliseconds until every processor has taken note.
fn entrance(group: &Path) -> PathBuf {
    let threads = group.join("tasks");
    if threads.exists() { threads } else { group.join("cgroup.procs") }
}

/// What a child does to enter control groups, before it becomes another program.
pub(crate) fn join_groups(
    groups: &[PathBuf],
) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
    let file = |group: &PathBuf| CString::new(entrance(group).as_os_str().as_bytes());
    let files = groups.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    Ok(move || {
        for file in &files {
            // SAFETY: system calls on a path and a buffer that outlive them; nothing is allocated.
            unsafe {
                let group = check(libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
                // Zero is whoever writes it.
                let written = libc::write(group, c"0".as_ptr().cast(), 1);
                libc::close(group);
                if written != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    })
}

/// Makes the command a session of its own without core dumps, which then takes `before` while it is still
/// privileged, and becomes `identity`.
///
/// # Safety
/// `before` runs between fork and exec: it may make system calls and must not allocate.
pub(crate) unsafe fn detach(
    command: &mut Command,
    identity: Option<Identity>,
    mut before: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: system calls only; what they need was made before.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            before()?;
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
            identity.map_or(Ok(()), |identity| identity.assume())
        });
    }
}
