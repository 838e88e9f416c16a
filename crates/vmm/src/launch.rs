//! Steps in the child process before it executes the VMM: control groups, user, limits.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
};

use wrenn_os::inherit;

use crate::BootSpec;

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
    /// Becomes this user, for good, without a privilege to come back to. System calls only, nothing is allocated.
    fn assume(self) -> io::Result<()> {
        let user = Some((self.uid, self.gid));
        let groups = self.group.as_slice();
        inherit::Identity { user, groups, capabilities: &[], new_privileges: false }.assume()
    }
}

/// How soon the kernel ends a VMM when memory runs out: before what else is on the host, the agent above all.
const OOM_SCORE: i32 = 500;

/// Processor time of a VMM that was started for a short look, so that one which spins does not do so for ever.
const TIED_CPU_SECONDS: u64 = 30;

/// How long a VMM lives at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// As long as its guest: it survives who started it.
    Guest,
    /// As long as who started it, and it never uses more processor time than a short look takes.
    Starter,
}

impl Life {
    /// What the specification asks for.
    pub(crate) fn of(spec: &BootSpec) -> Self {
        if spec.tied { Self::Starter } else { Self::Guest }
    }

    /// Binds the calling child. The thread that started it must live as long as the process is needed: the signal
    /// comes with the end of that thread. System calls only.
    fn bind(self, starter: u32) -> io::Result<()> {
        if self == Self::Guest {
            return Ok(());
        }
        // SAFETY: system calls on numbers.
        unsafe {
            // After the change of user, which would take it back. A program that changes it later, as the jailer
            // does, has the bound on processor time.
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

/// What Firecracker's jailer needs to make a jail and to become Firecracker's user in it, by the numbers of
/// `linux/capability.h`: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SYS_CHROOT, SYS_ADMIN, SYS_RESOURCE, MKNOD.
const JAILER_CAPABILITIES: &[u32] = &[0, 1, 3, 4, 6, 7, 18, 21, 24, 27];

/// Stays root with what the jailer needs, which then becomes Firecracker's user by itself.
fn become_jailer() -> io::Result<()> {
    let capabilities = JAILER_CAPABILITIES;
    inherit::Identity { user: None, groups: &[], capabilities, new_privileges: false }.assume()
}

/// Makes the command a session of its own without core dumps and without what is open here, which then takes
/// `before` while it is still privileged, becomes `identity`, or the jailer without one, and lives as long as `life`
/// says.
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
    // SAFETY: system calls only; what they need was made before.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            // What `before` opens is meant for the VMM.
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
