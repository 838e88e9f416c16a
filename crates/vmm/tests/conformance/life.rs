// SPDX-License-Identifier: Apache-2.0
//! Life of one microVM, from boot to exit.

use std::{io::Write, os::unix::fs::MetadataExt, time::Duration};

use wrenn_vmm::{BootSpec, ProcessId, VmmError};

use crate::rig::{Dir, Rig, console_grows};

/// Returns whether every thread of the process has stopped: each goes on until it notices the signal.
fn is_stopped(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut states = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    states.all(|stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T')))
}

pub(crate) async fn a_guest_prints_pauses_and_goes_on(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    vm.pause().await.unwrap();
    let length = vm.console(1 << 20).await.len();
    if rig.is_test_guest() {
        let before = vm.stats().unwrap().cpu_time;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(vm.console(1 << 20).await.len(), length, "a paused guest prints nothing");
        let ran = vm.stats().unwrap().cpu_time.saturating_sub(before);
        assert!(ran < Duration::from_millis(150), "nor does it run");
    }
    vm.resume().await.unwrap();
    assert!(console_grows(&*vm, length).await, "it goes on");
    if rig.is_test_guest() {
        vm.freeze(true).unwrap();
        while !is_stopped(vm.process().pid) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let length = vm.console(1 << 20).await.len();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(vm.console(1 << 20).await.len(), length, "a frozen VMM does nothing");
        vm.freeze(false).unwrap();
        assert!(console_grows(&*vm, length).await, "and goes on");
    }
    assert!(vm.stats().unwrap().rss_bytes > 0);
    if rig.is_test_guest() {
        let console = vm.console(1 << 20).await;
        assert_eq!(console[0], wrenn_testguest::STARTED);
        assert!(!console.contains(&wrenn_testguest::BROKEN), "its memory is what it was");
    }
    vm.kill().await.unwrap();
}

pub(crate) async fn a_vmm_has_its_own_user_and_few_system_calls(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let pid = vm.process().pid;
    let spec = rig.spec(&dir);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = format!("{0}\t{0}\t{0}\t{0}", spec.uid);
    assert!(status.contains(&format!("Uid:\t{ids}")) && status.contains(&format!("Gid:\t{ids}")), "{status}");
    // Firecracker installs the seccomp filters of its threads at the end of its start, so they are active
    // here.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let statuses = threads.map(|task| std::fs::read_to_string(task.path().join("status")).unwrap());
    let free: Vec<_> = statuses.filter(|status| !status.contains("Seccomp:\t2")).collect();
    assert_eq!(free, [] as [String; 0], "each thread is filtered");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "no core dumps of guests: {core}");
    if rig.driver.capabilities().security_boundary && rig.firecracker().is_some() {
        let root = std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().flatten();
        let mut names: Vec<_> = root.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        let given = [("initrd", spec.initrd.is_some()), ("disk", spec.disk.is_some())];
        names.retain(|name| !given.contains(&(name, true)));
        assert_eq!(names, ["dev", "firecracker", "firecracker.pid", "kernel", "run"], "all that it sees");
        assert!(
            std::fs::read_dir(rig.jail_dir()).unwrap().next().is_none(),
            "nothing of it is in the host's view"
        );
    }
    vm.kill().await.unwrap();
}

pub(crate) async fn a_running_microvm_is_adopted(rig: &Rig) {
    let (driver, dir, elsewhere) = (&rig.driver, Dir::new(), Dir::new());
    let vm = rig.boot(&dir).await;
    let wrong = ProcessId { start_time: 1, ..vm.process() };
    let by_dir =
        driver.adopt(&rig.spec(&dir), Some(&wrong)).await.unwrap().expect("found by its run directory");
    assert_eq!(by_dir.process(), vm.process());
    assert!(driver.adopt(&rig.spec(&elsewhere), Some(&vm.process())).await.unwrap().is_none());
    by_dir.pause().await.unwrap();
    by_dir.resume().await.unwrap();
    by_dir.kill().await.unwrap();
    vm.exited().await;
    vm.kill().await.unwrap();
    assert!(driver.adopt(&rig.spec(&dir), Some(&vm.process())).await.unwrap().is_none());
}

pub(crate) async fn an_end_from_outside_is_noticed(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let pid = rustix::process::Pid::from_raw(vm.process().pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(10), vm.exited()).await.expect("noticed");
    assert_eq!(exit.status, Some(137));
    assert!(vm.pause().await.is_err());
    vm.kill().await.unwrap();
}

/// The console log of a guest that prints forever stays within its limit.
pub(crate) async fn a_log_keeps_its_bound(rig: &Rig) {
    const WRITTEN: u64 = 4 << 20;
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let log = dir.path().join("run/console.log");
    let mut file = std::fs::File::options().append(true).open(&log).unwrap();
    file.write_all(&vec![b'x'; WRITTEN as usize]).unwrap();
    let cut = async {
        while log.metadata().unwrap().blocks() * 512 > WRITTEN / 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cut).await.expect("the log is cut");
    assert!(vm.console(1 << 10).await.len() == 1 << 10, "its end is there");
    vm.kill().await.unwrap();
}

pub(crate) async fn what_cannot_be_is_refused(rig: &Rig) {
    let dir = Dir::new();
    let spec = rig.spec(&dir);
    for broken in [BootSpec { vcpus: 0, ..spec.clone() }, BootSpec { memory_mb: u32::MAX, ..spec.clone() }] {
        assert!(matches!(rig.driver.boot(&broken).await, Err(VmmError::Limit { .. })));
    }
    let missing = [
        BootSpec { kernel: "/no/kernel".into(), ..spec.clone() },
        BootSpec { initrd: Some("/no/initrd".into()), ..spec.clone() },
        BootSpec { disk: Some("/no/disk".into()), ..spec.clone() },
    ];
    for broken in missing {
        let Err(error) = rig.driver.boot(&broken).await else { panic!("it must not start") };
        assert!(matches!(error, VmmError::Missing { .. }), "{error:?}");
        assert!(!error.to_string().contains("/no/"), "no path of the host: {error}");
    }
    // A disk that the VMM cannot open: the error has the VMM's message, and nothing is left.
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let no_file = BootSpec { disk: Some(dir.path().join("disk")), ..spec };
    let Err(error) = rig.driver.boot(&no_file).await else { panic!("it must not start") };
    assert!(matches!(error, VmmError::Ended { .. } | VmmError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("disk"), "{error}");
    assert_eq!(wrenn_vmm::process::find(&no_file.run_dir).unwrap(), None);
}
