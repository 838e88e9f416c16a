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
