// SPDX-License-Identifier: Apache-2.0
//! `wrenn doctor` says what Firecracker lacks, and what to do about it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

/// A program that says `version` and nothing else.
fn program(dir: &Path, name: &str, version: &str) -> PathBuf {
    let path = dir.join(name);
    // Written by another process: no child of this one has it open for writing when it is run.
    let script = format!("printf '#!/bin/sh\necho {version}\n' > {}", path.display());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Returns the result of `check`, and whether Wrenn can run.
fn doctor(dir: &Path, settings: &[(&str, &str)], check: &str) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .args(["--json", "doctor"])
        // No variables of the user who runs the tests.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir)
        .env("WRENN_STATE_DIR", dir.join("state"))
        .env("WRENN_AGENT_DRIVER", "tcg")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| found["name"] == check);
    (found.unwrap_or_else(|| panic!("no check {check}: {report:#}")).clone(), report["ok"] == true)
}

#[test]
fn it_says_what_firecracker_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let (absent, old) = (dir.path().join("absent"), program(dir.path(), "old", "Firecracker v1.4.1"));
    fs::create_dir(dir.path().join("alone")).unwrap();
    let alone = program(&dir.path().join("alone"), "firecracker", "Firecracker v1.13.1");
    let faulty = program(dir.path(), "faulty", "Firecracker v1.14.1");
    for (program, settings, told) in [
        (&absent, "false", ["not found", "install"]),
        (&old, "true", ["cannot be used", "1.12.0"]),
        // For root it is the jailer, for others that they are not root.
        (&alone, "false", ["cannot be used", "agent.unjailed"]),
        (&alone, "true", ["1.13.1", "without its jailer"]),
        (&faulty, "true", ["makes no snapshots", "install 1.14.2 or newer"]),
    ] {
        let program = program.display().to_string();
        let settings = [("WRENN_AGENT_FIRECRACKER", program.as_str()), ("WRENN_AGENT_UNJAILED", settings)];
        let (check, _) = doctor(dir.path(), &settings, "firecracker");
        let text = check.to_string();
        assert!(told.iter().all(|part| text.contains(part)), "{told:?} is not in {text}");
    }
}

#[test]
fn a_driver_that_cannot_be_is_a_failure_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent").display().to_string();
    let settings = [("WRENN_AGENT_DRIVER", "firecracker"), ("WRENN_AGENT_FIRECRACKER", &absent)];
    let (check, ok) = doctor(dir.path(), &settings, "driver");
    assert!(!ok && check["status"] == "fail", "{check}");
    assert!(check["detail"].as_str().unwrap().contains("Firecracker"), "{check}");
}

#[test]
fn a_vmm_without_its_jailer_is_told_to_be_no_boundary() {
    let dir = tempfile::tempdir().unwrap();
    let alone = program(dir.path(), "firecracker", "Firecracker v1.13.1").display().to_string();
    let settings = [
        ("WRENN_AGENT_DRIVER", "firecracker"),
        ("WRENN_AGENT_FIRECRACKER", &*alone),
        ("WRENN_AGENT_UNJAILED", "true"),
    ];
    let (check, _) = doctor(dir.path(), &settings, "isolation");
    assert_eq!(check["status"], "warn", "{check}");
    assert!(check.to_string().contains("no security boundary"), "{check}");
}

/// Writes a script by another process: see [`program`].
fn script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("cat > {0} && chmod 755 {0}", path.display())]).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// Starts a doctor whose probe of KVM runs a VMM that spins and never answers. Returns the process id of the VMM.
fn probing(dir: &Path, share: &Path) -> (Child, i32) {
    program(dir, "firecracker", "Firecracker v1.13.1");
    let pid_file = dir.join("vmm.pid");
    let text = format!(
        "#!/bin/sh\ncase $1 in --version) echo Jailer v1.13.1; exit;; esac\n\
         echo $$ > {0}.new; mv {0}.new {0}\nwhile :; do :; done\n",
        pid_file.display()
    );
    script(&dir.join("jailer"), &text);
    let doctor = Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .arg("doctor")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir)
        .env("TMPDIR", dir.join("tmp"))
        .env("WRENN_STATE_DIR", dir.join("state"))
        .env("WRENN_SHARE_DIR", share)
        .env("WRENN_AGENT_FIRECRACKER", dir.join("firecracker"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("no VMM was started", || pid_file.exists());
    (doctor, fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap())
}

#[test]
fn its_vmm_and_its_directory_end_with_it() {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../share/wrenn");
    let root = rustix::process::geteuid().is_root();
    if !root || !Path::new("/dev/kvm").exists() || !share.join("vmlinux").exists() {
        eprintln!("NOT RUN HERE: this needs root, /dev/kvm and the guest kernel (make assets)");
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("tmp");
        fs::create_dir(&scratch).unwrap();
        let (mut doctor, vmm) = probing(dir.path(), &share);
        rustix::process::kill_process(rustix::process::Pid::from_child(&doctor), signal).unwrap();
        let status = doctor.wait().unwrap();
        wait_until("the VMM goes on", || wrenn_os::process::identify(vmm).unwrap().is_none());
        let left = fs::read_dir(&scratch).unwrap().count();
        if signal != Signal::KILL {
            assert_eq!((status.code(), left), (Some(128 + signal.as_raw()), 0));
            continue;
        }
        // A killed doctor removes nothing. The next one does; until then `leak-check` reports it.
        assert_eq!(left, 1);
        let check = Command::new(env!("CARGO_BIN_EXE_wrenn"))
            .arg("leak-check")
            .env_clear()
            .env("HOME", dir.path())
            .env("TMPDIR", &scratch)
            .env("WRENN_STATE_DIR", dir.path().join("state"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(!check.status.success() && text.contains("wrenn-doctor-"), "{text}");
    }
}
