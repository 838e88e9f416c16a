// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line, and the steps in the child before it executes QEMU.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Accel, sealed_memory::SealedMemory};
use wrenn_os::control_group;

use crate::{
    BootSpec, MemorySource, Snapshot, Tap, VmmError,
    launch::{self, Identity, Life, check},
    logs,
    logs::vmm_log,
    running::failed,
    taken,
};

/// Open files of a snapshot, which QEMU inherits under the same numbers.
pub(super) struct Saved {
    state: File,
    memory: Memory,
}

enum Memory {
    /// QEMU opens it itself.
    File(PathBuf),
    Sealed(File),
}

impl Saved {
    /// Opens the files of a snapshot. Blocks while a shared memory is copied.
    pub(super) fn open(snapshot: &Snapshot, shared: &SealedMemory) -> Result<Self, VmmError> {
        let memory = match &snapshot.memory {
            MemorySource::File(memory) => {
                taken::check("memory", memory)?;
                Memory::File(memory.clone())
            }
            MemorySource::Shared(memory) => {
                taken::check("memory", memory)?;
                let copy = shared.of(memory).and_then(|copy| above_tap(&copy));
                Memory::Sealed(copy.map_err(|e| failed("copy the snapshot's memory", e))?)
            }
            MemorySource::Layers(_) => {
                let reason = "QEMU cannot use a page server; give it the memory as a file".to_owned();
                return Err(VmmError::Refused { action: "load the snapshot", reason });
            }
        };
        taken::check("state", &snapshot.state)?;
        let state = File::open(&snapshot.state).and_then(|state| above_tap(&state));
        Ok(Self { state: state.map_err(|e| failed("open the snapshot's state", e))?, memory })
    }

    /// Path of the memory for QEMU.
    fn memory(&self) -> String {
        match &self.memory {
            Memory::File(path) => path.display().to_string(),
            Memory::Sealed(file) => format!("/proc/self/fd/{}", file.as_raw_fd()),
        }
    }

    /// Keeps the files open when the child executes QEMU. Makes system calls only.
    fn inherit(&self) -> io::Result<()> {
        let memory = if let Memory::Sealed(file) = &self.memory { Some(file) } else { None };
        for file in [Some(&self.state), memory].into_iter().flatten() {
            // SAFETY: the descriptor is open.
            check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) })?;
        }
        Ok(())
    }
}

/// Descriptor of the tap device in QEMU.
const TAP_FD: RawFd = 3;
/// Maximum length of a unix socket's path, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Duplicates a file under a number that the tap device does not take.
fn above_tap(file: &File) -> io::Result<File> {
    Ok(rustix::io::fcntl_dupfd_cloexec(file, TAP_FD + 1)?.into())
}

/// Path of QEMU's control socket.
pub(super) fn qmp_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("qmp.sock")
}

/// Under emulation too `q35`: its HPET gives the guest a clock to calibrate by when the host is busy. The
/// options of migration are those of a state that is saved and loaded without the memory.
const MACHINE: &[&str] =
    &["-M", "q35,memory-backend=memory,suppress-vmdesc=on", "-global", "migration.send-configuration=off"];

/// Returns QEMU's arguments.
fn arguments(accel: Accel, spec: &BootSpec, saved: Option<&Saved>) -> Vec<OsString> {
    let run = spec.run_dir.display();
    let (cpu, words): (&[&str], _) = match accel {
        // Emulation speculates about nothing, and what kernels do against that is slow there. On a busy machine its timer
        // may be late when a kernel tests it, which then panics. Without ERMS, kernels and C libraries copy and clear memory in
        // words: QEMU emulates `rep movsb` byte by byte. By itself it would take up to 1 GiB for translated code.
        Accel::Tcg => (
            &["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-erms"],
            "mitigations=off no_timer_check ",
        ),
        Accel::Kvm => (&["-accel", "kvm", "-cpu", "host"], ""),
    };
    let mut arguments: Vec<OsString> = MACHINE.iter().chain(cpu).map(OsString::from).collect();
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
    // Mapped privately, so that the pages that the guest changed can be told from the others.
    let memory = format!("id=memory,size={}M,share=off", spec.memory_mb);
    match saved {
        None => add("-object", format!("memory-backend-memfd,{memory}")),
        Some(saved) => {
            add("-object", format!("memory-backend-file,{memory},mem-path={}", saved.memory()));
            add("-incoming", format!("fd:{}", saved.state.as_raw_fd()));
            // Paused until it is told to go on.
            add("-S", String::new());
        }
    }
    add("-smp", spec.vcpus.to_string());
    add("-kernel", spec.kernel.display().to_string());
    if let Some(initrd) = &spec.initrd {
        add("-initrd", initrd.display().to_string());
    }
    add("-append", format!("console=ttyS0 quiet panic=1 reboot=t {words}{}", spec.cmdline));
    add("-chardev", format!("file,id=console,path={run}/console.log,append=on"));
    add("-serial", "chardev:console".into());
    add("-qmp", format!("unix:{run}/qmp.sock,server=on,wait=off"));
    add("-device", "virtio-rng-pci".into());
    if let Some(disk) = &spec.disk {
        let options = "format=raw,if=none,discard=unmap,detect-zeroes=unmap";
        let limit = |name: &str, value: Option<u64>| {
            value.map_or(String::new(), |n| format!(",throttling.{name}={n}"))
        };
        let limits =
            limit("bps-total", spec.disk_rate.bytes) + &limit("iops-total", spec.disk_rate.operations);
        add("-drive", format!("id=root,file={},{options}{limits}", disk.display()));
        add("-device", "virtio-blk-pci,drive=root".into());
    }
    if let Some(tap) = &spec.tap {
        add("-netdev", format!("tap,id=net,fd={TAP_FD}"));
        add("-device", format!("virtio-net-pci,netdev=net,mac={},romfile=", tap.mac));
    }
    arguments
}

/// Data for attaching the tap device in the child; allocated before the fork.
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

impl TapSetup {
    /// Enters the namespace and opens the tap device at descriptor [`TAP_FD`].
    ///
    /// # Safety
    /// For the child between fork and exec: it makes system calls only and allocates nothing.
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

/// Builds the command that becomes the VMM: in a session of its own, in the tap's namespace, as its user.
pub(super) fn build(
    program: &Path,
    accel: Accel,
    spec: &BootSpec,
    saved: Option<Saved>,
) -> Result<Command, VmmError> {
    let arguments = arguments(accel, spec, saved.as_ref());
    if qmp_socket(&spec.run_dir).as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the state directory's path is too long");
        return Err(failed("place the control socket", source));
    }
    let log = logs::open(&vmm_log(&spec.run_dir)).map_err(|e| failed("open the VMM's log", e))?;
    let own = std::os::unix::fs::chown(&spec.run_dir, Some(spec.uid), Some(spec.gid));
    own.map_err(|e| failed("give the run directory to the VMM's user", e))?;
    let tap = spec.tap.as_ref().map(tap_setup).transpose();
    let mut tap = tap.map_err(|e| failed("open the network slot", e))?;

    let mut command = Command::new(program);
    command.args(arguments).current_dir(&spec.run_dir).env_clear();
    let errors = log.try_clone().map_err(|e| failed("open the VMM's log", e))?;
    command.stdin(Stdio::null()).stderr(errors).stdout(log);
    let group = (accel == Accel::Kvm).then(launch::kvm_group).flatten();
    let identity = Identity { uid: spec.uid, gid: spec.gid, group };
    let mut join = control_group::enter(&spec.cgroups).map_err(|e| failed("enter the control group", e))?;
    let attach = move || {
        join()?;
        if let Some(saved) = &saved {
            saved.inherit()?;
        }
        match &mut tap {
            // SAFETY: called between fork and exec.
            Some(tap) => unsafe { tap.attach() },
            None => Ok(()),
        }
    };
    // SAFETY: only system calls; their arguments were allocated above.
    unsafe { launch::detach(&mut command, Some(identity), Life::of(spec), attach) };
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rate;

    #[test]
    fn every_vm_is_sandboxed_and_named() {
        let spec = BootSpec {
            id: "sb1".into(),
            run_dir: "/r".into(),
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            cmdline: "a=b".into(),
            disk: Some("/d".into()),
            disk_rate: Rate { bytes: Some(1 << 20), operations: None },
            vcpus: 2,
            memory_mb: 256,
            tap: Some(Tap { netns: "/n".into(), name: "tap0".into(), mac: "02:00:00:00:00:01".into() }),
            network_rate: Rate::default(),
            track_changes: false,
            uid: 1,
            gid: 1,
            cgroups: Vec::new(),
            tied: false,
        };
        let text: Vec<_> =
            arguments(Accel::Tcg, &spec, None).into_iter().map(|a| a.into_string().unwrap()).collect();
        let after = |flag: &str| &text[text.iter().position(|a| a == flag).unwrap() + 1];
        assert!(after("-sandbox").contains("spawn=deny"));
        assert_eq!(after("-name"), "wrenn-sb1");
        assert_eq!(after("-m"), "256M");
        assert!(after("-append").ends_with(" a=b"));
        assert!(after("-drive").contains("file=/d,format=raw"));
        assert!(after("-drive").ends_with(",throttling.bps-total=1048576"));
    }

    #[test]
    fn a_long_tap_name_is_refused() {
        let tap = Tap { netns: "/proc/self/ns/net".into(), name: "x".repeat(16), mac: String::new() };
        assert!(tap_setup(&tap).is_err());
    }
}
