// SPDX-License-Identifier: Apache-2.0
//! Bodies of the API as JSON text: a change of a field's name, order or form is visible here.

use std::collections::BTreeMap;

use insta::{assert_json_snapshot, assert_snapshot};
use wrenn_api::{
    DriverHealth, ErrorBody, ErrorCode, ErrorDetail, Event, EventKind, Health, OnTimeout, Sandbox,
    SandboxStatus,
};

fn sandbox(status: SandboxStatus) -> Sandbox {
    let at = |text: &str| text.parse().expect("a time");
    let failed = status == SandboxStatus::Error;
    Sandbox {
        id: "sb03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: (status == SandboxStatus::Running).then(|| "web".into()),
        labels: if failed { BTreeMap::new() } else { BTreeMap::from([("branch".into(), "main".into())]) },
        status,
        template: "minimal".into(),
        vcpus: 1,
        memory_mb: 512,
        disk_size_mb: 5120,
        timeout_sec: 600,
        on_timeout: if failed { OnTimeout::Delete } else { OnTimeout::Pause },
        auto_resume: false,
        public_ports: false,
        created_at: at("2026-01-31T09:30:00.125Z"),
        started_at: (status == SandboxStatus::Running).then(|| at("2026-01-31T09:30:02.5Z")),
        last_active_at: (status == SandboxStatus::Running).then(|| at("2026-01-31T09:31:10Z")),
        expires_at: (status == SandboxStatus::Running).then(|| at("2026-01-31T09:41:10Z")),
        last_updated: at("2026-01-31T09:30:02.500001Z"),
        metadata: if failed { BTreeMap::new() } else { BTreeMap::from([("vmm".into(), "qemu 7.2".into())]) },
        error: failed.then(|| ErrorDetail {
            code: ErrorCode::AgentError,
            message: "the guest did not boot".into(),
            sandbox_id: None,
        }),
    }
}

#[test]
fn a_running_and_a_failed_sandbox() {
    assert_json_snapshot!(sandbox(SandboxStatus::Running), @r#"
    {
      "id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "name": "web",
      "labels": {
        "branch": "main"
      },
      "status": "running",
      "template": "minimal",
      "vcpus": 1,
      "memory_mb": 512,
      "disk_size_mb": 5120,
      "timeout_sec": 600,
      "on_timeout": "pause",
      "auto_resume": false,
      "public_ports": false,
      "created_at": "2026-01-31T09:30:00.125Z",
      "started_at": "2026-01-31T09:30:02.500Z",
      "last_active_at": "2026-01-31T09:31:10Z",
      "expires_at": "2026-01-31T09:41:10Z",
      "last_updated": "2026-01-31T09:30:02.500001Z",
      "metadata": {
        "vmm": "qemu 7.2"
      }
    }
    "#);
    assert_json_snapshot!(sandbox(SandboxStatus::Error), @r#"
    {
      "id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "labels": {},
      "status": "error",
      "template": "minimal",
      "vcpus": 1,
      "memory_mb": 512,
      "disk_size_mb": 5120,
      "timeout_sec": 600,
      "on_timeout": "delete",
      "auto_resume": false,
      "public_ports": false,
      "created_at": "2026-01-31T09:30:00.125Z",
      "last_updated": "2026-01-31T09:30:02.500001Z",
      "error": {
        "code": "agent_error",
        "message": "the guest did not boot"
      }
    }
    "#);
}

#[test]
fn an_error_with_and_without_a_sandbox() {
    let error = |sandbox_id: Option<&str>| ErrorBody {
        error: ErrorDetail {
            code: ErrorCode::NotFound,
            message: "there is no template \"x\"".into(),
            sandbox_id: sandbox_id.map(|id| id.parse().expect("an id")),
        },
    };
    assert_json_snapshot!(error(None), @r#"
    {
      "error": {
        "code": "not_found",
        "message": "there is no template \"x\""
      }
    }
    "#);
    assert_json_snapshot!(error(Some("sb03halx8fdhw2fu3txwbd0kdw0")), @r#"
    {
      "error": {
        "code": "not_found",
        "message": "there is no template \"x\"",
        "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0"
      }
    }
    "#);
}

#[test]
fn health() {
    let drivers = vec![DriverHealth { driver: "firecracker".into(), security_boundary: true, hosts: 2 }];
    let health = Health {
        status: "ok".into(),
        version: "0.1.0".into(),
        hosts_online: 2,
        drivers,
        max_upload_bytes: Some(100 << 20),
    };
    assert_json_snapshot!(health, @r#"
    {
      "status": "ok",
      "version": "0.1.0",
      "hosts_online": 2,
      "drivers": [
        {
          "driver": "firecracker",
          "security_boundary": true,
          "hosts": 2
        }
      ],
      "max_upload_bytes": 104857600
    }
    "#);
}

#[test]
fn events() {
    assert_json_snapshot!(Event::changed(sandbox(SandboxStatus::Running)), @r#"
    {
      "type": "sandbox.running",
      "at": "2026-01-31T09:30:02.500001Z",
      "sandbox": {
        "id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "name": "web",
        "labels": {
          "branch": "main"
        },
        "status": "running",
        "template": "minimal",
        "vcpus": 1,
        "memory_mb": 512,
        "disk_size_mb": 5120,
        "timeout_sec": 600,
        "on_timeout": "pause",
        "auto_resume": false,
        "public_ports": false,
        "created_at": "2026-01-31T09:30:00.125Z",
        "started_at": "2026-01-31T09:30:02.500Z",
        "last_active_at": "2026-01-31T09:31:10Z",
        "expires_at": "2026-01-31T09:41:10Z",
        "last_updated": "2026-01-31T09:30:02.500001Z",
        "metadata": {
          "vmm": "qemu 7.2"
        }
      }
    }
    "#);
    assert_json_snapshot!(Event::changed(sandbox(SandboxStatus::Error)), @r#"
    {
      "type": "sandbox.error",
      "at": "2026-01-31T09:30:02.500001Z",
      "sandbox": {
        "id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "labels": {},
        "status": "error",
        "template": "minimal",
        "vcpus": 1,
        "memory_mb": 512,
        "disk_size_mb": 5120,
        "timeout_sec": 600,
        "on_timeout": "delete",
        "auto_resume": false,
        "public_ports": false,
        "created_at": "2026-01-31T09:30:00.125Z",
        "last_updated": "2026-01-31T09:30:02.500001Z",
        "error": {
          "code": "agent_error",
          "message": "the guest did not boot"
        }
      }
    }
    "#);
    assert_json_snapshot!(Event::resync("events after the id are no longer kept"), @r#"
    {
      "type": "resync",
      "reason": "events after the id are no longer kept"
    }
    "#);
    let kinds = SandboxStatus::ALL.map(|status| Event::changed(sandbox(status)).kind().to_string());
    assert_snapshot!(kinds.join(" "), @"sandbox.pending sandbox.starting sandbox.running sandbox.pausing sandbox.paused sandbox.resuming sandbox.stopping sandbox.stopped sandbox.missing sandbox.error");
}

#[test]
fn events_are_read_as_they_are_written() {
    let all = SandboxStatus::ALL.map(|status| Event::changed(sandbox(status)));
    for event in all.into_iter().chain([Event::resync("why")]) {
        let json = serde_json::to_value(&event).expect("JSON");
        let read: Event = serde_json::from_value(json.clone()).expect("an event");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), json);
        assert_eq!(read.kind().to_string(), json["type"].as_str().unwrap_or_default());
    }
    for unknown in [
        r#"{"type":"host.joined","at":"2026-01-31T09:30:02Z"}"#,
        r#"{"type":"sandbox.flying","at":"2026-01-31T09:30:02Z","sandbox":{}}"#,
    ] {
        assert!(serde_json::from_str::<Event>(unknown).is_err(), "{unknown}");
    }
    assert_ne!(EventKind::Resync, EventKind::Sandbox(SandboxStatus::Error));
}
