// SPDX-License-Identifier: Apache-2.0
//! Drivers that work on this machine, each with a guest.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wrenn_vmm::{
    BootSpec, KernelImage, MicroVm, Vmm,
    firecracker::{self, Firecracker, Isolation},
    probe::{PROBE_LIMIT, Probe, probe},
    process,
    qemu::{Accel, PROGRAM, Qemu},
};

use crate::disks::Disks;

/// User id that nothing else uses.
pub(crate) const UID: u32 = 64_999;

pub(crate) fn share(file: &str) -> PathBuf {
    let share = std::env::var_os("WRENN_SHARE_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../share/wrenn")),
        PathBuf::from,
    );
    let path = share.join(file);
    assert!(path.exists(), "{} is missing: run `make assets`", path.display());
    path
}

pub(crate) fn qemu_program() -> PathBuf {
    PathBuf::from(format!("/usr/bin/{PROGRAM}"))
}

/// Paths of Firecracker and its jailer, fetched for tests or installed.
pub(crate) struct Programs {
    pub(crate) firecracker: PathBuf,
    pub(crate) jailer: PathBuf,
}

fn programs() -> Programs {
    let fetched = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/firecracker"));
    let dir = if fetched.exists() { fetched } else { Path::new("/usr/local/bin") };
    Programs { firecracker: dir.join(firecracker::PROGRAM), jailer: dir.join(firecracker::JAILER) }
}

/// Directory of one microVM; dropping it kills the microVM, also if a test fails.
pub(crate) struct Dir(TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let found =
            process::find(&self.path().join("run")).ok().flatten().and_then(|id| Pid::from_raw(id.pid));
        if let Some(pid) = found {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

enum Guest {
    /// Kernel and initial RAM disk.
    Linux,
    /// Debian on a disk.
    Debian(Disks),
    Test,
}

/// Driver under test with its files.
pub(crate) struct Rig {
    pub(crate) name: &'static str,
    pub(crate) driver: Box<dyn Vmm>,
    guest: Guest,
    /// Directory of the test guest and of jails.
    files: TempDir,
    uid: u32,
    programs: Option<Programs>,
}

fn qemu(accel: Accel) -> Box<dyn Vmm> {
    Box::new(Qemu::new(&qemu_program(), accel).unwrap())
}

fn jail(files: &TempDir) -> PathBuf {
    let jail = files.path().join("jail");
    std::fs::create_dir_all(&jail).unwrap();
    jail
}

fn with_qemu(name: &'static str, accel: Accel, guest: Guest) -> Rig {
    let files = TempDir::new().unwrap();
    // QEMU reads the kernel as its own user.
    open_path_for_others(files.path());
    std::fs::write(files.path().join("guest.elf"), wrenn_testguest::ELF).unwrap();
    Rig { name, driver: qemu(accel), guest, files, uid: UID, programs: None }
}

fn with_firecracker(jailed: bool, linux: bool) -> Rig {
    let (files, programs) = (TempDir::new().unwrap(), programs());
    let isolation = if jailed {
        Isolation::Jailer { program: programs.jailer.clone(), dir: jail(&files) }
    } else {
        Isolation::Unjailed
    };
    let name = match (jailed, linux) {
        (true, true) => "firecracker_jailed_linux",
        (true, false) => "firecracker_jailed",
        (false, true) => "firecracker_unjailed_linux",
        (false, false) => "firecracker_unjailed",
    };
    let driver = Box::new(Firecracker::new(&programs.firecracker, isolation).unwrap());
    let guest = match (linux, in_lab()) {
        (true, true) => Guest::Debian(Disks::default()),
        (true, false) => Guest::Linux,
        (false, _) => Guest::Test,
    };
    std::fs::write(files.path().join("guest.elf"), wrenn_testguest::ELF).unwrap();
    // Only the jailer creates a KVM device for another user.
    let uid = if jailed { UID } else { 0 };
    Rig { name, driver, guest, files, uid, programs: Some(programs) }
}

/// Probes QEMU with KVM.
pub(crate) async fn probe_kvm() -> Probe {
    let dir = TempDir::new().unwrap();
    open_path_for_others(dir.path());
    probe(&*qemu(Accel::Kvm), &share("vmlinuz"), dir.path(), UID, PROBE_LIMIT).await
}

fn linux_runs_on_kvm() -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(probe_kvm()).usable
}

/// Returns whether the tests run inside the lab, a virtual host made for them.
pub(crate) fn in_lab() -> bool {
    std::env::var_os("IN_LAB").is_some()
}

/// Lists the drivers that work on this machine.
pub(crate) fn all() -> Vec<Rig> {
    let in_lab = in_lab();
    let kvm = Path::new("/dev/kvm").exists();
    assert!(kvm || !in_lab, "the lab must have KVM");
    if !kvm {
        eprintln!("firecracker: NOT RUN HERE: there is no /dev/kvm; `cargo xtask lab test` runs it");
    }
    let mut rigs = Vec::new();
    if !in_lab {
        rigs.push(with_qemu("qemu_tcg", Accel::Tcg, Guest::Linux));
        rigs.push(with_qemu("qemu_tcg_test_guest", Accel::Tcg, Guest::Test));
    }
    let linux = kvm && (in_lab || linux_runs_on_kvm());
    if linux && !in_lab {
        rigs.push(with_qemu("qemu_kvm", Accel::Kvm, Guest::Linux));
    }
    if kvm {
        rigs.extend([with_firecracker(true, false), with_firecracker(false, false)]);
    }
    if linux {
        rigs.push(with_firecracker(true, true));
    }
    rigs
}

impl Rig {
    /// User id of the VMMs.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns whether guests are Debian on a disk.
    pub(crate) fn is_debian(&self) -> bool {
        matches!(self.guest, Guest::Debian(_))
    }

    pub(crate) fn is_test_guest(&self) -> bool {
        matches!(self.guest, Guest::Test)
    }

    pub(crate) fn firecracker(&self) -> Option<&Programs> {
        self.programs.as_ref()
    }

    pub(crate) fn jail_dir(&self) -> PathBuf {
        jail(&self.files)
    }

    /// Describes a microVM with its files in `dir`, and with a disk if the guest needs one.
    pub(crate) fn spec(&self, dir: &Dir) -> BootSpec {
        let disk = match &self.guest {
            Guest::Debian(disks) => Some(disks.of(dir.path(), self.uid)),
            Guest::Linux | Guest::Test => None,
        };
        BootSpec { disk, ..self.spec_without_disk(dir) }
    }

    /// Describes a microVM without a disk.
    pub(crate) fn spec_without_disk(&self, dir: &Dir) -> BootSpec {
        let (kernel, initrd) = match (&self.guest, self.driver.capabilities().kernel) {
            (Guest::Test, _) => (self.files.path().join("guest.elf"), None),
            (_, KernelImage::Elf) => (share("vmlinux"), Some(share("initrd.img"))),
            (_, KernelImage::Compressed) => (share("vmlinuz"), Some(share("initrd.img"))),
        };
        let memory_mb = if self.is_test_guest() { 128 } else { 256 };
        let run_dir = dir.path().join("run");
        std::fs::create_dir_all(&run_dir).unwrap();
        // Accessible only through the jail.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&run_dir, private).unwrap();
        std::os::unix::fs::chown(&run_dir, Some(self.uid), Some(self.uid)).unwrap();
        open_path_for_others(dir.path());
        BootSpec {
            id: "conformance_1".into(),
            run_dir,
            kernel,
            initrd,
            cmdline: "loglevel=7".into(),
            vcpus: 1,
            memory_mb,
            track_changes: true,
            uid: self.uid,
            gid: self.uid,
            ..BootSpec::default()
        }
    }

    pub(crate) async fn boot(&self, dir: &Dir) -> Box<dyn MicroVm> {
        let mut vm = self.driver.boot(&self.spec(dir)).await.unwrap();
        if !self.is_test_guest() && in_lab() && !console_grows(&*vm, 0).await {
            // With nested emulation on a busy machine, a guest sometimes hangs in its first steps.
            println!("a guest did not come up; it is booted once more");
            vm.kill().await.unwrap();
            vm = self.driver.boot(&self.spec(dir)).await.unwrap();
        }
        // The test guest prints a second byte when its pattern is complete.
        assert!(console_grows(&*vm, self.is_test_guest().into()).await, "the guest prints");
        vm
    }
}

/// Gives other users search permission for a directory.
fn open_path_for_others(dir: &Path) {
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Waits until the console has more than `length` bytes.
pub(crate) async fn console_grows(vm: &dyn MicroVm, length: usize) -> bool {
    let grown = async {
        while vm.console(1 << 20).await.len() <= length {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), grown).await.is_ok()
}
