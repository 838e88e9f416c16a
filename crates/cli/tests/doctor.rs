//! `wrenn doctor` says what Firecracker lacks, and what to do about it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

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

/// What it says of `check`, and whether Wrenn can run.
fn doctor(dir: &Path, settings: &[(&str, &str)], check: &str) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .args(["--json", "doctor"])
        // Nothing of who runs the tests.
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
    for (program, settings, told) in [
        (&absent, "false", ["not found", "install"]),
        (&old, "true", ["cannot be used", "1.12.0"]),
        // For root it is the jailer, for others that they are not root.
        (&alone, "false", ["cannot be used", "agent.unjailed"]),
        (&alone, "true", ["1.13.1", "without its jailer"]),
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

/// Starts a doctor whose trial of KVM lasts: its VMM is a program that spins and never answers.
fn trying(dir: &Path) -> (std::process::Child, i32) {
    let scratch = dir.join("tmp");
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, PermissionsExt::from_mode(0o1777)).unwrap();
    let doctor = Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .arg("doctor")
        .env_clear()
        .env("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()))
        .env("HOME", dir)
        .env("TMPDIR", &scratch)
        .env("WRENN_STATE_DIR", dir.join("state"))
        .env("WRENN_SHARE_DIR", dir.join("share"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let vmm = dir.join("vmm.pid");
    let begin = std::time::Instant::now();
    let pid = loop {
        if let Some(pid) = fs::read_to_string(&vmm).ok().and_then(|text| text.trim().parse().ok()) {
            break pid;
        }
        assert!(begin.elapsed().as_secs() < 60, "no VMM was tried");
        std::thread::yield_now();
    };
    (doctor, pid)
}

fn gone(pid: i32) -> bool {
    wrenn_vmm::process::identify(pid).unwrap().is_none()
}

#[test]
fn what_it_tries_ends_with_it_however_it_ends() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("NOT RUN HERE: there is no /dev/kvm to try");
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::write(dir.path().join("share/vmlinuz"), "a kernel").unwrap();
        let qemu = program(dir.path(), "qemu-system-x86_64", "x");
        let text = format!(
            "#!/bin/sh\ncase $1 in --version) echo QEMU emulator version 9.0.0; exit;; esac\n\
             case $* in *wrenn-probe*) echo $$ > {0}.new; mv {0}.new {0};; esac\nwhile :; do :; done\n",
            dir.path().join("vmm.pid").display()
        );
        let write = format!("cat > {}", qemu.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &write]).stdin(std::process::Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        let (mut doctor, vmm) = trying(dir.path());
        // SAFETY: a system call on a child that was not waited for.
        assert_eq!(unsafe { libc::kill(doctor.id() as i32, signal) }, 0);
        let status = doctor.wait().unwrap();
        let begin = std::time::Instant::now();
        while !gone(vmm) {
            assert!(begin.elapsed().as_secs() < 30, "after signal {signal} the VMM goes on");
            std::thread::yield_now();
        }
        let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
        if signal == libc::SIGKILL {
            // It could do nothing; the next one does, and until then it is found.
            assert_eq!(left, 1);
            let check = Command::new(env!("CARGO_BIN_EXE_wrenn"))
                .arg("leak-check")
                .env_clear()
                .env("HOME", dir.path())
                .env("TMPDIR", dir.path().join("tmp"))
                .env("WRENN_STATE_DIR", dir.path().join("state"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&check.stdout).into_owned();
            assert!(!check.status.success() && text.contains("wrenn-doctor-"), "{text}");
        } else {
            assert_eq!(status.code(), Some(128 + signal));
            assert_eq!(left, 0);
        }
    }
}
