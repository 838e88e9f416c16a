// SPDX-License-Identifier: Apache-2.0
//! Attributes that a child process inherits: open files, privileges, and OOM score adjustment.
//!
//! All functions may be called between fork and exec: they make system calls only and allocate nothing.

use std::io;

/// Highest descriptor that is marked one by one, on kernels that cannot mark a range.
const DESCRIPTORS_MAX: libc::c_int = 65_536;
/// `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
/// Maximum number of capabilities: the size of a capability set in bits.
const CAPABILITIES: libc::c_ulong = 64;

/// Sets close-on-exec on all descriptors but standard input, output and error, so that files that the parent
/// shell had open reach no program that this one starts.
pub fn close_files_on_exec() -> io::Result<()> {
    // SAFETY: system calls on numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) == 0 {
            return Ok(());
        }
        // Linux before 5.11.
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) {
            return Err(error);
        }
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) < 0 {
            return Err(io::Error::last_os_error());
        }
        let end = libc::c_int::try_from(limit.rlim_max).unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
        for descriptor in 3..end {
            // A closed descriptor needs no mark.
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

/// User and privileges of a child.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// User and group; `None`: those of the parent.
    pub user: Option<(u32, u32)>,
    /// Supplementary groups, which replace all others if the user changes.
    pub groups: &'a [u32],
    /// Numbers of the capabilities that programs may still have; all others are dropped irrevocably.
    pub capabilities: &'a [u32],
    /// Whether programs with the set-user-ID bit or file capabilities still gain privileges.
    pub new_privileges: bool,
}

impl Identity<'_> {
    /// Switches to this user, irrevocably. Root first drops the capabilities from the bounding set; other
    /// users have nothing to drop, and keep their user.
    pub fn assume(&self) -> io::Result<()> {
        // SAFETY: the list of groups outlives the call; the others take numbers.
        unsafe {
            if libc::geteuid() == 0 {
                self.drop_capabilities()?;
                if let Some((user, group)) = self.user.filter(|&(user, _)| user != 0) {
                    check(libc::setgroups(self.groups.len(), self.groups.as_ptr()))?;
                    check(libc::setgid(group))?;
                    check(libc::setuid(user))?;
                }
            }
            if !self.new_privileges {
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            }
        }
        Ok(())
    }

    fn drop_capabilities(&self) -> io::Result<()> {
        for capability in 0..CAPABILITIES {
            if self.capabilities.contains(&(capability as u32)) {
                continue;
            }
            // SAFETY: system call on numbers.
            match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
                // The kernel has no such capability, and no higher one.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                // Root of a container may lack the right to do so, but then has few privileges anyway.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
                other => other.map(drop)?,
            }
        }
        Ok(())
    }
}

/// Turns the result of a system call into an `io::Result`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets the OOM score adjustment of this process and its children, from -1000 (never killed) to 1000 (killed
/// first). Does nothing if that is not permitted, as in many containers.
pub fn set_oom_score(score: i32) {
    let (mut text, mut begin) = ([0_u8; 8], 8);
    let mut rest = score.unsigned_abs();
    loop {
        begin -= 1;
        text[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if score < 0 {
        begin -= 1;
        text[begin] = b'-';
    }
    // SAFETY: a constant path, and a buffer that outlives the call.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, text[begin..].as_ptr().cast(), text.len() - begin);
            libc::close(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{
            fd::AsRawFd as _,
            unix::{fs::MetadataExt as _, process::CommandExt as _},
        },
        process::Command,
    };

    use super::*;

    /// Output of a child that calls `before` between fork and exec.
    fn child(script: &str, before: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        // SAFETY: the tests' closures make system calls only.
        unsafe { command.pre_exec(before) };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn what_is_open_reaches_no_child() {
        let secret = File::open("/proc/self/status").unwrap();
        // SAFETY: system calls on a descriptor that is open.
        let open = unsafe { libc::fcntl(secret.as_raw_fd(), libc::F_DUPFD, 77) };
        assert!(open >= 77, "it is inherited");
        let script = format!("[ -e /proc/self/fd/{open} ] && echo there || echo gone");
        assert_eq!(child(&script, || Ok(())), "there\n");
        assert_eq!(child(&script, close_files_on_exec), "gone\n");
        // SAFETY: it is ours.
        unsafe { libc::close(open) };
    }

    #[test]
    fn a_user_of_its_own_has_no_privileges_to_come_back_to() {
        let status = "cat /proc/self/status";
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(':').split_whitespace().next().unwrap_or_default().to_owned()
        };
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return;
        }
        let text = child(status, || {
            let user = Some((65_534, 65_534));
            Identity { user, groups: &[], capabilities: &[], new_privileges: false }.assume()
        });
        assert_eq!(field(&text, "Uid"), "65534");
        assert_eq!(field(&text, "CapBnd"), "0000000000000000");
        assert_eq!(field(&text, "NoNewPrivs"), "1");
        let text = child(status, || {
            let kept = [0, 5];
            Identity { user: None, groups: &[], capabilities: &kept, new_privileges: true }.assume()
        });
        assert_eq!(field(&text, "CapBnd"), "0000000000000021");
        assert_eq!(field(&text, "CapEff"), "0000000000000021", "root has no more than that either");
        assert_eq!(field(&text, "NoNewPrivs"), "0");
    }

    #[test]
    fn scores_are_written_as_numbers() {
        for score in [500, 0, 7, 1000] {
            let text = child("cat /proc/self/oom_score_adj", move || {
                set_oom_score(score);
                Ok(())
            });
            assert_eq!(text.trim(), score.to_string());
        }
    }
}
