// SPDX-License-Identifier: Apache-2.0
//! First boot stage as PID 1: switches from the initial RAM disk to the sandbox's root file system.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{console::say, identity, network};

const ROOT_DISK: &str = "/dev/vda";
const NEW_ROOT: &str = "/newroot";
const DISK_WAIT: Duration = Duration::from_secs(10);
/// `_IOW('f', 16, __u64)`: grows a mounted ext4 to that many blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Errors that prevent the boot.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("root disk {ROOT_DISK} did not appear within {} s; check the VMM's drive and the modules", DISK_WAIT.as_secs())]
    NoDisk,
    #[error("cannot mount {ROOT_DISK} as ext4: {0}; check the template's image")]
    Mount(io::Error),
    #[error("cannot enter the root file system: {0}")]
    Enter(io::Error),
}

/// Boots, or prints the error and powers off.
pub(crate) fn run() {
    let _ = fs::create_dir_all("/dev");
    mount("devtmpfs", "/dev", "devtmpfs", 0, "mode=0755");
    mount("proc", "/proc", "proc", 0, "");
    mount("sysfs", "/sys", "sysfs", 0, "");
    attach_console();
    load_modules();
    if let Err(error) = enter_root() {
        say(&format!("{error}"));
        thread::sleep(Duration::from_millis(50)); // let the serial port drain before power-off
        // SAFETY: reboot with these flags has no memory effects.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
        return;
    }
    mount_system();
    attach_console();
    open_devices();
    grow_root();
    protect();
    widen_process_ids();
    identity::begin();
    allow_ping();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Err(error) = network::configure(&line) {
        say(&format!("network: {error}"));
    }
}

/// Connects standard input to /dev/null and output to the console.
fn attach_console() {
    let redirect = |path: &str, write: bool, targets: &[RawFd]| {
        let Ok(file) = OpenOptions::new().read(!write).write(write).open(path) else { return };
        for target in targets {
            // SAFETY: both descriptors are open; dup2 replaces the target.
            unsafe { libc::dup2(file.as_raw_fd(), *target) };
        }
    };
    redirect("/dev/null", false, &[0]);
    redirect("/dev/console", true, &[1, 2]);
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) {
    let _ = fs::create_dir_all(target);
    if let Err(error) = mount_raw(source, target, kind, flags, data)
        && error.raw_os_error() != Some(libc::EBUSY)
    {
        say(&format!("cannot mount {target}: {error}"));
    }
}

fn mount_raw(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) =
        (CString::new(source)?, CString::new(target)?, CString::new(kind)?, CString::new(data)?);
    // SAFETY: all strings are valid for the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Loads the kernel modules listed in `/modules.order` and deletes their files to free memory.
fn load_modules() {
    let Ok(order) = fs::read_to_string("/modules.order") else { return };
    for path in order.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let loaded = File::open(path).and_then(|file| {
            // SAFETY: the descriptor is open and the parameters are an empty string.
            check(unsafe {
                libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) as libc::c_int
            })
        });
        if let Err(error) = loaded
            && error.raw_os_error() != Some(libc::EEXIST)
        {
            say(&format!("module {path}: {error}"));
        }
        let _ = fs::remove_file(path);
    }
}

fn enter_root() -> Result<(), BootError> {
    let deadline = Instant::now() + DISK_WAIT;
    while !fs::metadata(ROOT_DISK).is_ok_and(|m| m.file_type().is_block_device()) {
        if Instant::now() > deadline {
            return Err(BootError::NoDisk);
        }
        thread::sleep(Duration::from_millis(2));
    }
    fs::create_dir_all(NEW_ROOT).map_err(BootError::Mount)?;
    mount_raw(ROOT_DISK, NEW_ROOT, "ext4", libc::MS_NOATIME, "").map_err(BootError::Mount)?;
    // The program on the RAM disk is in use; its other files and mounts are no longer needed.
    for old in [c"/proc", c"/sys", c"/dev"] {
        // SAFETY: a valid string.
        unsafe { libc::umount2(old.as_ptr(), libc::MNT_DETACH) };
    }
    let _ = fs::remove_file("/modules.order");
    switch_root().map_err(BootError::Enter)
}

fn switch_root() -> io::Result<()> {
    std::env::set_current_dir(NEW_ROOT)?;
    mount_raw(".", "/", "", libc::MS_MOVE, "")?;
    // SAFETY: valid strings.
    check(unsafe { libc::chroot(c".".as_ptr()) })?;
    std::env::set_current_dir("/")
}

fn mount_system() {
    let safe = libc::MS_NOSUID | libc::MS_NODEV;
    mount("proc", "/proc", "proc", safe | libc::MS_NOEXEC, "");
    mount("sysfs", "/sys", "sysfs", safe | libc::MS_NOEXEC, "");
    mount("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=0755");
    mount("devpts", "/dev/pts", "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777");
    mount("tmpfs", "/run", "tmpfs", safe, "mode=0755");
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", safe | libc::MS_NOEXEC, "");
    let _ = fs::create_dir_all("/run/lock");
    let _ = fs::create_dir_all("/tmp");
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
}

/// Gives all users those devices that check the rights of their users themselves, as udev does.
fn open_devices() {
    for path in ["/dev/fuse", "/dev/net/tun"] {
        match fs::set_permissions(path, fs::Permissions::from_mode(0o666)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => say(&format!("{path}: {error}")),
            _ => {}
        }
    }
}

/// Grows the mounted root file system to the size of its device.
fn grow_root() {
    let grow = || -> io::Result<()> {
        let root = File::open("/")?;
        let device = File::open(ROOT_DISK)?;
        let mut bytes: u64 = 0;
        // SAFETY: the ioctl writes one u64.
        check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) })?;
        let block = rustix::fs::fstatfs(&root)?.f_bsize as u64;
        let blocks = bytes / block.max(1024);
        // SAFETY: the ioctl reads one u64.
        check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
    };
    if let Err(error) = grow() {
        say(&format!("cannot grow the root file system: {error}"));
    }
}

/// Protects PID 1 from the OOM killer.
fn protect() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        say(&format!("oom_score_adj: {error}"));
    }
}

/// Gives the guest as many process ids as the kernel can have, as on a Debian machine: the id of a process that has ended is that
/// of another one only after millions of others.
fn widen_process_ids() {
    if let Err(error) = fs::write("/proc/sys/kernel/pid_max", "4194304") {
        say(&format!("pid_max: {error}"));
    }
}

/// Allows all users to send ICMP echo requests, as on a Debian machine.
fn allow_ping() {
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647") {
        say(&format!("ping_group_range: {error}"));
    }
}
