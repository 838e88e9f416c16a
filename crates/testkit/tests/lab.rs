// SPDX-License-Identifier: Apache-2.0
//! Tests of the lab: start, commands, isolated network, cleanup.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use wrenn_testkit::{Lab, LabConfig, lab::Subnet, processes};

/// Lock that runs one test at a time: emulated machines are slow, and leftovers must belong to the running
/// test.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Configuration with a subnet that no other test uses.
fn config(name: &str) -> Result<LabConfig> {
    Ok(LabConfig { subnet: "10.200.79.0/24".parse::<Subnet>()?, memory_mb: 1024, ..LabConfig::new(name) })
}

fn interfaces() -> Result<String> {
    let output = Command::new("ip").args(["-o", "link"]).output()?;
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(all.lines().filter(|line| line.contains("lab0ac84f")).collect::<Vec<_>>().join("\n"))
}

fn nothing_left(name: &str) -> Result<()> {
    let argument = format!("lab-{name}");
    let left: Vec<_> = processes().into_iter().filter(|process| process.args.contains(&argument)).collect();
    ensure!(left.is_empty(), "QEMU still runs: {left:?}");
    let left = interfaces()?;
    ensure!(left.is_empty(), "interfaces are left: {left}");
    Ok(())
}

#[test]
fn a_lab_runs_commands_and_leaves_nothing() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let given = dir.path().join("given");
    fs::write(&given, "given at the start")?;
    let lab = Lab::start(&config("commands")?.with_file(&given, "/opt/given/file"))?;
    println!("started in {:.1?}", lab.started_in());
    ensure!(!interfaces()?.is_empty(), "it has an interface on this machine");

    // Given files, arguments unchanged, output and exit status separate.
    assert_eq!(lab.check(&["cat", "/opt/given/file"])?, "given at the start");
    assert_eq!(lab.check(&["printf", "%s|", "it's", "$HOME", ""])?, "it's|$HOME||");
    let output = lab.run(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

    // Output arrives while the command runs: the command waits for an answer to its output.
    let mut child = lab
        .command(&["sh", "-c", "echo ready; read answer; echo $answer"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    assert_eq!(lines.next().context("no line")??, "ready");
    child.stdin.take().context("no input")?.write_all(b"answer\n")?;
    assert_eq!(lines.next().context("no line")??, "answer");
    assert!(child.wait()?.success());

    // Features for which the lab exists.
    lab.check(&["test", "-c", "/dev/kvm"])?;
    lab.check(&["firecracker", "--version"])?;
    assert!(lab.check(&["dmsetup", "targets"])?.contains("snapshot"));
    lab.check(&["sh", "-c", "cd /var/lib/wrenn && echo x > a && cp --reflink=always a b"])?;
    assert!(lab.check(&["cat", "/sys/fs/cgroup/cgroup.subtree_control"])?.contains("memory"));

    // Files in and out, background programs, logs.
    lab.put(&given, "/root/put/file")?;
    let back = dir.path().join("back");
    lab.get("/root/put/file", &back)?;
    assert_eq!(fs::read_to_string(back)?, "given at the start");
    let pid = lab.spawn("program", &["sh", "-c", "echo started; exec sleep 1000"])?.to_string();
    lab.check(&["kill", "-0", &pid])?;
    let logs = lab.logs()?;
    assert_eq!(fs::read_to_string(logs.join("log/lab/program.log"))?, "started\n");
    assert!(logs.join("log/dmesg.log").exists() && logs.join("serial.log").exists());

    // The lab reaches this machine and nothing else.
    lab.check(&["ping", "-c1", "-W5", &lab.host_address().to_string()])?;
    assert_eq!(lab.check(&["ip", "route", "show", "default"])?, "");

    lab.stop();
    nothing_left("commands")
}

#[test]
fn labs_side_by_side_reach_each_other() -> Result<()> {
    let _alone = alone();
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| Lab::start(&config("one")?));
        let two = scope.spawn(|| Lab::start(&config("two")?));
        (one.join().expect("no panic"), two.join().expect("no panic"))
    });
    let (one, two) = (one?, two?);
    assert_ne!(one.address(), two.address());
    for (from, to) in [(&one, &two), (&two, &one)] {
        from.check(&["ping", "-c1", "-W10", &to.address().to_string()])?;
        from.check(&["ping", "-c1", "-W10", &to.host_address().to_string()])?;
    }
    // Only one lab of a name can run at a time.
    let error = Lab::start(&config("one")?).expect_err("the name is taken");
    assert!(format!("{error:#}").contains("running already"), "{error:#}");
    one.stop();
    // The network of the other lab stays.
    two.check(&["ping", "-c1", "-W10", &two.host_address().to_string()])?;
    two.stop();
    nothing_left("one")?;
    nothing_left("two")
}

#[test]
fn a_lab_goes_with_its_process_and_the_next_of_its_name_when_its_time_is_over() -> Result<()> {
    let _alone = alone();
    if std::env::var_os("LAB_OF_A_KILLED_PROCESS").is_some() {
        let lab = Lab::start(&config("orphan")?)?;
        println!("pid {}", lab.pid());
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "--nocapture",
            "a_lab_goes_with_its_process_and_the_next_of_its_name_when_its_time_is_over",
        ])
        .env("LAB_OF_A_KILLED_PROCESS", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut pid = None;
    for line in lines {
        // The harness prints the test's name before it, on the same line.
        if let Some((_, found)) = line?.split_once("pid ") {
            pid = Some(found.to_owned());
            break;
        }
    }
    let pid = pid.context("the lab did not start")?;
    child.kill()?;
    child.wait()?;
    let start = Instant::now();
    while fs::exists(format!("/proc/{pid}"))? {
        ensure!(start.elapsed() < Duration::from_secs(30), "QEMU still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The bridge is still there; the next lab reuses and removes it.
    ensure!(!interfaces()?.is_empty(), "the bridge has been removed");
    let lab = Lab::start(&config("orphan")?)?;
    let pid = lab.pid();
    lab.end_within(Duration::from_secs(2));
    // A command that would run forever fails with the reason.
    let error = lab.run(&["sleep", "1000000"]).expect_err("the lab has ended");
    assert!(format!("{error:#}").contains("time limit"), "{error:#}");
    assert!(!fs::exists(format!("/proc/{pid}"))?, "QEMU is gone");
    assert!(lab.run(&["true"]).is_err());
    drop(lab);
    nothing_left("orphan")
}
