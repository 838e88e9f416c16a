// SPDX-License-Identifier: Apache-2.0
//! Directory that Firecracker runs in, and the start of its process.
//!
//! With a jailer: a thread creates a mount namespace, mounts a small tmpfs on the driver's directory, and
//! bind-mounts the microVM's files into it; the jailer, started by that thread, changes its root to it. The
//! kernel removes all of it when the thread and the process have ended, however they ended. A file system of
//! its own also makes sure that the jail cannot be on a full disk or on a mount without devices.
//!
//! Without a jailer, symbolic links of the same names are in a directory below the run directory.
//!
//! There is no PID namespace: it would hide nothing from Firecracker that its root directory and its seccomp
//! filters leave visible, and its process could not be found again by its arguments.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount},
};

use wrenn_os::control_group;

use super::{Isolation, config};
use crate::{
    BootSpec,
    launch::{self, Identity, Life, check},
    logs::{self, console_log, own_log, vmm_log},
    process,
    running::{spawn, wait_for_end},
};

/// Mount options of the jail's tmpfs, which holds a copy of Firecracker's program and some device nodes.
const JAIL_OPTIONS: &std::ffi::CStr = c"size=16m,mode=755";
/// Name of Firecracker's API socket, in its directory.
pub(super) const SOCKET: &str = "api.sock";

/// A file or directory that is mounted in the jail.
pub(super) struct Bind {
    pub(super) name: &'static str,
    pub(super) source: PathBuf,
    pub(super) writable: bool,
}

impl Bind {
    pub(super) fn read_only(name: &'static str, source: &Path) -> Self {
        Self { name, source: source.to_owned(), writable: false }
    }

    pub(super) fn writable(name: &'static str, source: &Path) -> Self {
        Self { name, source: source.to_owned(), writable: true }
    }
}

/// A Firecracker to start.
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) isolation: Isolation,
    pub(super) spec: BootSpec,
    pub(super) binds: Vec<Bind>,
}

/// Jailer's id of a microVM: the sandbox's id, truncated, and a tag by which the process is found.
fn jail_id(spec: &BootSpec) -> String {
    let name: String =
        spec.id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    format!("{name}-{}", process::tag(&spec.run_dir))
}

fn explain(what: &str) -> impl FnOnce(io::Error) -> io::Error {
    let what = what.to_owned();
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Firecracker's arguments.
fn arguments() -> [String; 6] {
    let run = |name: &str| format!("{}/{name}", config::RUN);
    let flag = str::to_owned;
    [flag("--api-sock"), run(SOCKET), flag("--log-path"), run("log"), flag("--level"), flag("Info")]
}

impl Launch {
    /// Starts the process and returns its pid. Blocks for some milliseconds.
    pub(super) fn start(self) -> io::Result<u32> {
        let log = logs::open(&own_log(&self.spec.run_dir)).map_err(explain("make a log"))?;
        let (uid, gid) = (Some(self.spec.uid), Some(self.spec.gid));
        std::os::unix::fs::chown(&self.spec.run_dir, uid, gid)?;
        std::os::unix::fs::fchown(&log, uid, gid)?;
        match self.isolation.clone() {
            Isolation::Jailer { program, dir } => {
                // The namespace is left when the thread ends.
                let thread = std::thread::Builder::new().name("jail".to_owned());
                let (tell, told) = std::sync::mpsc::channel();
                thread.spawn(move || {
                    let jailed = self.jailed(&program, &dir);
                    let tied = jailed.as_ref().ok().copied().filter(|_| self.spec.tied);
                    // The receiver is below.
                    let _ = tell.send(jailed);
                    // The parent-death signal is sent when this thread ends.
                    tied.into_iter().for_each(wait_for_end);
                })?;
                told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that makes the jail died")))
            }
            Isolation::Unjailed => self.unjailed(),
        }
    }

    fn streams(&self, command: &mut Command) -> io::Result<()> {
        let (console, errors) =
            (logs::open(&console_log(&self.spec.run_dir))?, logs::open(&vmm_log(&self.spec.run_dir))?);
        command.env_clear().stdin(Stdio::null()).stdout(console).stderr(errors);
        Ok(())
    }

    fn jailed(&self, jailer: &Path, dir: &Path) -> io::Result<u32> {
        let program = fs::canonicalize(&self.program).map_err(explain("find Firecracker"))?;
        let name =
            program.file_name().ok_or_else(|| io::Error::other("Firecracker's program has no name"))?;
        let id = jail_id(&self.spec);
        // SAFETY: affects this thread alone, which ends with this function.
        check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) })
            .map_err(explain("make a mount namespace"))?;
        // Opened in this namespace, and before the jail is mounted, which may hide some of them.
        let sources =
            self.binds.iter().map(|bind| open_path(&bind.source)).collect::<io::Result<Vec<_>>>()?;
        // Mounts and unmounts of the host propagate to this namespace, and none propagate back.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        mount("wrenn-jail", dir, "tmpfs", MountFlags::NOSUID, JAIL_OPTIONS)
            .map_err(|error| explain("mount the jail")(error.into()))?;
        let root = dir.join(name).join(&id).join("root");
        DirBuilder::new().recursive(true).mode(0o755).create(&root)?;
        for (bind, source) in self.binds.iter().zip(&sources) {
            self.bind(&root, bind, source).map_err(explain(&format!("put {:?} into the jail", bind.name)))?;
        }

        let mut command = Command::new(jailer);
        command.args(["--id", &id, "--exec-file"]).arg(&program).arg("--chroot-base-dir").arg(dir);
        command.args(["--uid", &self.spec.uid.to_string(), "--gid", &self.spec.gid.to_string()]);
        if let Some(tap) = &self.spec.tap {
            command.arg("--netns").arg(&tap.netns);
        }
        command.arg("--").args(arguments());
        self.streams(&mut command)?;
        let join = control_group::enter(&self.spec.cgroups)?;
        // SAFETY: only system calls; their arguments were allocated above.
        unsafe { launch::detach(&mut command, None, Life::of(&self.spec), join) };
        spawn(command)
    }

    fn bind(&self, root: &Path, bind: &Bind, source: &File) -> io::Result<()> {
        let (target, meta) = (root.join(bind.name), source.metadata()?);
        if meta.file_type().is_block_device() {
            mknodat(CWD, &target, FileType::BlockDevice, Mode::from_raw_mode(0o600), meta.rdev())?;
            return std::os::unix::fs::chown(&target, Some(self.spec.uid), Some(self.spec.gid));
        }
        if meta.is_dir() {
            fs::create_dir(&target)?;
        } else {
            File::create(&target)?;
        }
        mount_bind(format!("/proc/self/fd/{}", source.as_raw_fd()), &target)?;
        if !bind.writable {
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(&target, flags, c"")?;
        }
        Ok(())
    }

    fn unjailed(&self) -> io::Result<u32> {
        let root = self.spec.run_dir.join("root");
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o755).create(&root)?;
        for bind in &self.binds {
            symlink(fs::canonicalize(&bind.source)?, root.join(bind.name))?;
        }

        let mut command = Command::new(&self.program);
        command.arg("--id").arg(jail_id(&self.spec)).args(arguments()).current_dir(&root);
        self.streams(&mut command)?;
        let netns = self.spec.tap.as_ref().map(|tap| File::open(&tap.netns)).transpose()?;
        let identity = Identity { uid: self.spec.uid, gid: self.spec.gid, group: launch::kvm_group() };
        let mut join = control_group::enter(&self.spec.cgroups)?;
        let enter = move || {
            join()?;
            match &netns {
                // SAFETY: the descriptor is open.
                Some(netns) => check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop),
                None => Ok(()),
            }
        };
        // SAFETY: only system calls; their arguments were allocated above.
        unsafe { launch::detach(&mut command, Some(identity), Life::of(&self.spec), enter) };
        spawn(command)
    }
}

/// Opens a handle (O_PATH) of a file of any kind, to bind-mount it.
fn open_path(path: &Path) -> io::Result<File> {
    let opened = File::options().read(true).custom_flags(libc::O_PATH).open(path);
    opened.map_err(explain(&String::from_utf8_lossy(path.file_name().unwrap_or_default().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_is_named_as_the_jailer_allows_and_found_by_its_run_directory() {
        let id = |id: &str, dir: &str| {
            jail_id(&BootSpec { id: id.into(), run_dir: dir.into(), ..BootSpec::default() })
        };
        let long = id(&"sb_0".repeat(40), "/var/lib/wrenn/agent/sandboxes/x/run");
        assert!(long.len() <= 64 && long.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{long}");
        assert_ne!(id("a", "/one"), id("a", "/two"));
    }
}
