//! The QEMU command line, and what happens in the child before it becomes QEMU.

use std::{
    ffi::{CString, OsString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Accel;
use crate::{BootSpec, Tap, VmmError};

/// Where QEMU finds the tap device.
const TAP_FD: RawFd = 3;
/// The longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// QEMU's control socket.
pub(super) fn qmp_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("qmp.sock")
}

/// What the guest wrote to its console.
pub(super) fn console_log(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log")
}

/// What QEMU itself had to say.
pub(super) fn vmm_log(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.log")
}

/// The arguments, in QEMU's own terms.
fn arguments(accel: Accel, spec: &BootSpec) -> Vec<OsString> {
    let run = spec.run_dir.display();
    // Under emulation `q35`: its HPET gives the guest a clock to calibrate by when the host is busy.
    let machine: &[&str] = match accel {
        Accel::Tcg => &["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"],
        Accel::Kvm => &["-M", "q35", "-accel", "kvm", "-cpu", "host"],
    };
    let mut arguments: Vec<OsString> = machine.iter().map(OsString::from).collect();
    let mut add = |flag: &str, value: String| {
        arguments.push(flag.into());
        if !value.is_empty() {
            arguments.push(value.into());
        }
    };
    add("-name", format!("wrenn-{}", spec.id));
    add("-nodefaults", String::new());
    add("-no-user-config", String::new());
    add("-no-reboot", String::new());
    add("-display", "none".into());
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    add("-m", format!("{}M", spec.memory_mb));
    add("-smp", spec.vcpus.to_string());
    add("-kernel", spec.kernel.display().to_string());
    add("-initrd", spec.initrd.display().to_string());
    add("-append", format!("console=ttyS0 quiet panic=1 reboot=t {}", spec.cmdline));
    add("-chardev", format!("file,id=console,path={run}/console.log,append=on"));
    add("-serial", "chardev:console".into());
    add("-qmp", format!("unix:{run}/qmp.sock,server=on,wait=off"));
    add("-device", "virtio-rng-pci".into());
    if let Some(disk) = &spec.disk {
        let options = "format=raw,if=none,discard=unmap,detect-zeroes=unmap";
        add("-drive", format!("id=root,file={},{options}", disk.display()));
        add("-device", "virtio-blk-pci,drive=root".into());
    }
    if let Some(tap) = &spec.tap {
        add("-netdev", format!("tap,id=net,fd={TAP_FD}"));
        add("-device", format!("virtio-net-pci,netdev=net,mac={},romfile=", tap.mac));
    }
    arguments
}

fn log_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// What the child needs to attach the tap device; made before the fork, where memory may be allocated.
struct TapSetup {
    netns: File,
    request: InterfaceRequest,
}

/// `struct ifreq` as TUNSETIFF takes it (linux/if.h).
#[repr(C)]
struct InterfaceRequest {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

fn tap_setup(tap: &Tap) -> io::Result<TapSetup> {
    let name = CString::new(tap.name.as_str()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the tap device is too long"));
    }
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(TapSetup { netns: File::open(&tap.netns)?, request })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl TapSetup {
    /// Enters the namespace and opens the tap device at [`TAP_FD`].
    ///
    /// # Safety
    /// For the child between fork and exec: system calls only, nothing is allocated.
    unsafe fn attach(&mut self) -> io::Result<()> {
        // SAFETY: the descriptors are open, the request outlives the call.
        unsafe {
            check(libc::setns(self.netns.as_raw_fd(), libc::CLONE_NEWNET))?;
            let tun = check(libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR))?;
            check(libc::ioctl(tun, libc::TUNSETIFF as _, &raw mut self.request))?;
            if tun != TAP_FD {
                check(libc::dup2(tun, TAP_FD))?;
                check(libc::close(tun))?;
            }
        }
        Ok(())
    }
}

/// The command that becomes the VMM: a session of its own, in the tap's namespace, as its user.
pub(super) fn build(program: &Path, accel: Accel, spec: &BootSpec) -> Result<Command, VmmError> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |source| VmmError::Io { action, source }
    };
    if qmp_socket(&spec.run_dir).as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the state directory's path is too long");
        return Err(failed("place the control socket")(source));
    }
    let log = log_file(&vmm_log(&spec.run_dir)).map_err(failed("open the VMM's log"))?;
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(spec.uid), Some(spec.gid));
    own(&spec.run_dir).map_err(failed("give the run directory to the VMM's user"))?;
    let mut tap = spec.tap.as_ref().map(tap_setup).transpose().map_err(failed("open the network slot"))?;
    let (uid, gid) = (spec.uid, spec.gid);

    let mut command = Command::new(program);
    command.args(arguments(accel, spec)).current_dir(&spec.run_dir).env_clear();
    command.stdin(Stdio::null()).stderr(log.try_clone().map_err(failed("open the VMM's log"))?).stdout(log);
    // SAFETY: only system calls; what they need was made above.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            if let Some(tap) = &mut tap {
                tap.attach()?;
            }
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
            if uid != 0 {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setgid(gid))?;
                check(libc::setuid(uid))?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            Ok(())
        });
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_is_sandboxed_and_named() {
        let spec = BootSpec {
            id: "sb1".into(),
            run_dir: "/r".into(),
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "a=b".into(),
            disk: Some("/d".into()),
            vcpus: 2,
            memory_mb: 256,
            tap: Some(Tap { netns: "/n".into(), name: "tap0".into(), mac: "02:00:00:00:00:01".into() }),
            uid: 1,
            gid: 1,
        };
        let text: Vec<_> =
            arguments(Accel::Tcg, &spec).into_iter().map(|a| a.into_string().unwrap()).collect();
        let after = |flag: &str| &text[text.iter().position(|a| a == flag).unwrap() + 1];
        assert!(after("-sandbox").contains("spawn=deny"));
        assert_eq!(after("-name"), "wrenn-sb1");
        assert_eq!(after("-m"), "256M");
        assert!(after("-append").ends_with(" a=b"));
        assert!(after("-drive").contains("file=/d,format=raw"));
    }

    #[test]
    fn a_long_tap_name_is_refused() {
        let tap = Tap { netns: "/proc/self/ns/net".into(), name: "x".repeat(16), mac: String::new() };
        assert!(tap_setup(&tap).is_err());
    }
}
