// SPDX-License-Identifier: Apache-2.0
//! Steps in the child process before it executes the VMM: control groups, user, limits.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
};

use wrenn_os::inherit;

use crate::BootSpec;

/// Group that may use KVM, if it is not root's.
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
    /// Switches to this user, irrevocably and without privileges. Makes system calls only and allocates
    /// nothing.
    fn assume(self) -> io::Result<()> {
        let user = Some((self.uid, self.gid));
        let groups = self.group.as_slice();
        inherit::Identity { user, groups, capabilities: &[], new_privileges: false }.assume()
    }
}

/// OOM score adjustment of VMMs: they are killed before other processes of the host, such as the agent.
const OOM_SCORE: i32 = 500;

/// CPU time limit of a VMM for a probe, in seconds, so that it cannot spin for ever.
const TIED_CPU_SECONDS: u64 = 30;

/// Lifetime of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until its guest ends: it survives the process that started it.
    Guest,
    /// Until the process that started it ends, and with limited CPU time.
    Starter,
}

impl Life {
    /// Lifetime in a specification.
    pub(crate) fn of(spec: &BootSpec) -> Self {
        if spec.tied { Self::Starter } else { Self::Guest }
    }

    /// Ties the calling child to its starter. The thread that started it must live as long as the process is
    /// needed, because the signal is sent when that thread ends. Makes system calls only.
    fn bind(self, starter: u32) -> io::Result<()> {
        if self == Self::Guest {
            return Ok(());
        }
        // SAFETY: system calls on numbers.
        unsafe {
            // After the change of user, which would reset it. A program that changes its user later, as the
            // jailer does, still has the limit of CPU time.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            // It may have ended before.
            if libc::getppid() as u32 != starter {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    }
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Capabilities of Firecracker's jailer, for making a jail and switching to Firecracker's user (numbers of
/// `linux/capability.h`): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SYS_CHROOT, SYS_ADMIN,
/// SYS_RESOURCE, MKNOD.
const JAILER_CAPABILITIES: &[u32] = &[0, 1, 3, 4, 6, 7, 18, 21, 24, 27];

/// Stays root with the jailer's capabilities; the jailer switches to Firecracker's user itself.
fn become_jailer() -> io::Result<()> {
    let capabilities = JAILER_CAPABILITIES;
    inherit::Identity { user: None, groups: &[], capabilities, new_privileges: false }.assume()
}

/// Makes the command the leader of a new session, without core dumps and inherited files; it calls `before`
/// while still privileged, then switches to `identity`, or becomes the jailer without one, and lives as long
/// as `life` says.
///
/// # Safety
/// `before` runs between fork and exec: it may make system calls and must not allocate.
pub(crate) unsafe fn detach(
    command: &mut Command,
    identity: Option<Identity>,
    life: Life,
    mut before: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    let starter = std::process::id();
    // SAFETY: system calls only; their arguments were allocated before.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            // Files that `before` opens are meant for the VMM.
            inherit::close_files_on_exec()?;
            inherit::set_oom_score(OOM_SCORE);
            before()?;
            limit(libc::RLIMIT_CORE, 0)?;
            if life == Life::Starter {
                limit(libc::RLIMIT_CPU, TIED_CPU_SECONDS)?;
            }
            match identity {
                Some(identity) => identity.assume()?,
                None => become_jailer()?,
            }
            life.bind(starter)
        });
    }
}
