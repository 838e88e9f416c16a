// SPDX-License-Identifier: Apache-2.0
//! Faults of Firecracker, its programs and its jail.

use std::{
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use wrenn_vmm::{
    BootSpec, VmmError,
    firecracker::{Firecracker, Isolation},
};

use crate::rig::{Dir, Rig, share};

pub(crate) async fn a_dead_control_socket_is_said(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    std::fs::remove_file(dir.path().join("run/api.sock")).unwrap();
    let error = vm.pause().await.unwrap_err().to_string();
    assert!(error.contains("control socket"), "{error}");
    vm.kill().await.unwrap();
}

/// A stopped VMM accepts a request and never answers: the request times out.
pub(crate) async fn a_vmm_that_does_not_answer_holds_nobody_up(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    vm.freeze(true).unwrap();
    let error = vm.pause().await.unwrap_err();
    assert!(matches!(error, VmmError::Deadline { action: "pause", .. }), "{error}");
    // The timeout neither kills the VMM nor prevents a kill.
    vm.freeze(false).unwrap();
    vm.pause().await.unwrap();
    vm.freeze(true).unwrap();
    vm.kill().await.unwrap();
}

fn program(dir: &Dir, name: &str, says: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    // Written by another process: a child of this process that is being started would have a copy of the
    // descriptor, and a file open for writing cannot be executed (ETXTBSY).
    let script = format!("printf '#!/bin/sh\necho {says}\n' > {}", path.display());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

pub(crate) async fn old_and_unequal_programs_are_refused(rig: &Rig) {
    let (dir, programs) = (Dir::new(), rig.firecracker().unwrap());
    let absent = Firecracker::new(Path::new("/no/firecracker"), Isolation::Unjailed).unwrap_err();
    assert!(matches!(absent, VmmError::Missing { .. }) && absent.to_string().contains("install"), "{absent}");
    let old = program(&dir, "old-firecracker", "Firecracker v1.4.1");
    let error = Firecracker::new(&old, Isolation::Unjailed).unwrap_err();
    assert!(matches!(error, VmmError::TooOld { .. }) && error.to_string().contains("1.12.0"), "{error}");
    let jailer = program(&dir, "other-jailer", "Jailer v1.13.0");
    let isolation = Isolation::Jailer { program: jailer, dir: rig.jail_dir() };
    let error = Firecracker::new(&programs.firecracker, isolation).unwrap_err();
    assert!(matches!(error, VmmError::Unfit { what: "the jailer", .. }), "{error}");
}

pub(crate) async fn a_compressed_kernel_is_named(rig: &Rig) {
    let dir = Dir::new();
    let spec = BootSpec { kernel: share("vmlinuz"), ..rig.spec(&dir) };
    let Err(error) = rig.driver.boot(&spec).await else { panic!("it must not start") };
    assert!(error.to_string().contains("compressed") && error.to_string().contains("vmlinux"), "{error}");
}

/// Mounts a KVM device that nobody may open over the real one, in a new mount namespace of the calling
/// thread, which must then exit.
fn forbid_kvm(dir: &Path) {
    // SAFETY: other threads are not affected.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("closed", dir, "tmpfs", MountFlags::NODEV, c"size=64k").unwrap();
    let device = dir.join("kvm");
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(10, 232)).unwrap();
    mount_bind(&device, "/dev/kvm").unwrap();
}

pub(crate) async fn a_kvm_that_may_not_be_used_is_said(rig: &Rig) {
    let (dir, closed) = (Dir::new(), Dir::new());
    let spec = rig.spec(&dir);
    let tried = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            forbid_kvm(closed.path());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(rig.driver.boot(&spec)).map(drop)
        });
        thread.join().unwrap()
    });
    let error = tried.unwrap_err();
    assert!(matches!(error, VmmError::Unfit { what: "/dev/kvm", .. }), "{error}");
    assert!(error.to_string().contains("root"), "{error}");
}

/// Jails do not depend on their directory: it is full, and mounted with nodev and noexec.
pub(crate) async fn jails_need_nothing_of_their_directory(rig: &Rig) {
    let (dir, full, programs) = (Dir::new(), Dir::new(), rig.firecracker().unwrap());
    let mount = |arguments: &[&str]| {
        let status = Command::new("mount").args(arguments).arg(full.path()).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
    };
    mount(&["-t", "tmpfs", "-o", "size=4k,nodev,noexec", "full"]);
    std::fs::create_dir(full.path().join("jail")).unwrap();
    let _ = std::fs::write(full.path().join("filler"), [1; 8192]);
    let isolation = Isolation::Jailer { program: programs.jailer.clone(), dir: full.path().join("jail") };
    let driver = Firecracker::new(&programs.firecracker, isolation).unwrap();
    let booted = wrenn_vmm::Vmm::boot(&driver, &rig.spec(&dir)).await;
    let killed = match &booted {
        Ok(vm) => vm.kill().await,
        Err(_) => Ok(()),
    };
    assert!(Command::new("umount").arg(full.path()).status().unwrap().success(), "nothing holds it");
    booted.map(drop).unwrap();
    killed.unwrap();
}

/// A guest that has taken over its VMM overwrites the VMM's arguments; the VMM is still found.
pub(crate) async fn arguments_that_are_written_over_hide_no_vmm(rig: &Rig) {
    if !rig.driver.capabilities().security_boundary {
        return;
    }
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let proc = PathBuf::from(format!("/proc/{}", vm.process().pid));
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let [begin, end]: [u64; 2] = [45, 46].map(|at| fields[at].parse().unwrap());
    let memory = std::fs::File::options().write(true).open(proc.join("mem")).unwrap();
    memory.write_all_at(&vec![b'x'; (end - begin - 1) as usize], begin).unwrap();
    assert!(std::fs::read(proc.join("cmdline")).unwrap().starts_with(b"xxxx"));

    for recorded in [None, Some(vm.process())] {
        let found = rig.driver.adopt(&rig.spec(&dir), recorded.as_ref()).await.unwrap();
        assert_eq!(found.expect("it still runs").process(), vm.process());
    }
    vm.kill().await.unwrap();
}
