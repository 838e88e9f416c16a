//! What every driver must do, tried on each that runs here with the real guest kernel; and the probe.
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Duration};

use wrenn_vmm::{
    BootSpec, MicroVm, ProcessId, Vmm, VmmError, probe,
    qemu::{Accel, PROGRAM, Qemu},
};

fn share(file: &str) -> PathBuf {
    let share = std::env::var_os("WRENN_SHARE_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../share/wrenn")),
        PathBuf::from,
    );
    let path = share.join(file);
    assert!(path.exists(), "{} is missing: run `make assets`", path.display());
    path
}

fn program() -> PathBuf {
    PathBuf::from(format!("/usr/bin/{PROGRAM}"))
}

fn spec(dir: &tempfile::TempDir) -> BootSpec {
    BootSpec {
        id: "conformance".into(),
        run_dir: dir.path().to_owned(),
        kernel: share("vmlinuz"),
        initrd: share("initrd.img"),
        cmdline: "loglevel=7".into(),
        disk: None,
        vcpus: 1,
        memory_mb: 256,
        tap: None,
        uid: 65534,
        gid: 65534,
    }
}

/// Every driver that runs on this machine.
async fn drivers() -> Vec<Box<dyn Vmm>> {
    let mut drivers: Vec<Box<dyn Vmm>> = vec![Box::new(Qemu::new(&program(), Accel::Tcg).unwrap())];
    if probe::probe_kvm(&program(), &share("vmlinuz"), probe::PROBE_LIMIT).await.usable {
        drivers.push(Box::new(Qemu::new(&program(), Accel::Kvm).unwrap()));
    }
    drivers
}

async fn console_grows(vm: &dyn MicroVm, limit: Duration) -> bool {
    let length = vm.console(1 << 20).await.len();
    let grown = async {
        while vm.console(1 << 20).await.len() == length {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, grown).await.is_ok()
}

#[tokio::test]
async fn the_probe_says_what_kvm_can_do() {
    let found = probe::probe_kvm(&program(), &share("vmlinuz"), probe::PROBE_LIMIT).await;
    println!("{found:?}");
    assert!(found.took_ms < 10_000);
    assert_eq!(found.usable, found.choose().0 == Accel::Kvm);
    assert!(found.present || !found.usable);
}

#[tokio::test]
async fn a_microvm_boots_pauses_is_adopted_and_ends() {
    for driver in drivers().await {
        lives(&*driver).await;
    }
}

async fn lives(driver: &dyn Vmm) {
    let dir = tempfile::tempdir().unwrap();
    let vm = driver.boot(&spec(&dir)).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.process().pid)).unwrap();
    assert!(status.contains("Uid:\t65534\t65534"), "unprivileged: {status}");
    assert!(status.contains("Seccomp:\t2"), "sandboxed");
    assert!(console_grows(&*vm, Duration::from_secs(30)).await, "the guest prints");
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    assert!(vm.stats().unwrap().rss_bytes > 0);

    let wrong = ProcessId { start_time: 1, ..vm.process() };
    let by_dir = driver.adopt(&spec(&dir), Some(&wrong)).await.unwrap().expect("found by its run directory");
    assert_eq!(by_dir.process(), vm.process());
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(driver.adopt(&spec(&elsewhere), Some(&vm.process())).await.unwrap().is_none());

    by_dir.kill().await.unwrap();
    vm.exited().await;
    vm.kill().await.unwrap();
    assert!(driver.adopt(&spec(&dir), Some(&vm.process())).await.unwrap().is_none());
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    for driver in drivers().await {
        refuses(&*driver).await;
    }
}

async fn refuses(driver: &dyn Vmm) {
    let dir = tempfile::tempdir().unwrap();
    for broken in [BootSpec { vcpus: 0, ..spec(&dir) }, BootSpec { memory_mb: u32::MAX, ..spec(&dir) }] {
        assert!(matches!(driver.boot(&broken).await, Err(VmmError::Limit { .. })));
    }
    let no_kernel = BootSpec { kernel: "/no/kernel".into(), ..spec(&dir) };
    assert!(matches!(driver.boot(&no_kernel).await, Err(VmmError::Missing { .. })));
    let bad_disk = BootSpec { disk: Some("/no/disk".into()), ..spec(&dir) };
    let Err(VmmError::Ended { log }) = driver.boot(&bad_disk).await.map(drop) else {
        panic!("it must not start")
    };
    assert!(log.contains("/no/disk"), "{log}");
}
