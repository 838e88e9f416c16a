// SPDX-License-Identifier: Apache-2.0
//! Bodies of responses as JSON text: a change of a field's name, order or form is visible here.

use std::collections::BTreeMap;

use insta::{assert_json_snapshot, assert_snapshot};
use wrenn_api::{
    BackgroundProcess, DriverHealth, Encoding, ErrorBody, ErrorCode, ErrorDetail, Event, EventKind,
    ExecResponse, FileEntries, FileEntry, FileKind, Health, OnTimeout, PortAddress, ProcessInfo, ProcessList,
    Sandbox, SandboxId, SandboxStatus, Signalled, SignedFile, Snapshot, Template, TemplateKind,
    TerminalCursor, TerminalScreen, WrittenArchive, WrittenFile,
};

fn id() -> SandboxId {
    "sb03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id")
}

fn sandbox(status: SandboxStatus) -> Sandbox {
    let at = |text: &str| text.parse().expect("a time");
    let failed = status == SandboxStatus::Error;
    Sandbox {
        id: id(),
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
fn templates_and_snapshots() {
    let created_at = "2026-01-31T09:30:00.125Z".parse().expect("a time");
    let snapshot = Snapshot {
        name: "after-setup".into(),
        template: "minimal".into(),
        vcpus: 1,
        memory_mb: 512,
        disk_size_mb: 5120,
        created_at,
    };
    assert_json_snapshot!(snapshot, @r#"
    {
      "name": "after-setup",
      "template": "minimal",
      "vcpus": 1,
      "memory_mb": 512,
      "disk_size_mb": 5120,
      "created_at": "2026-01-31T09:30:00.125Z"
    }
    "#);
    let base = Template {
        name: "minimal".into(),
        kind: TemplateKind::Base,
        vcpus: None,
        memory_mb: None,
        created_at: None,
    };
    let own = Template {
        name: "after-setup".into(),
        kind: TemplateKind::Snapshot,
        vcpus: Some(1),
        memory_mb: Some(512),
        created_at: Some(created_at),
    };
    assert_json_snapshot!([base, own], @r#"
    [
      {
        "name": "minimal",
        "kind": "base"
      },
      {
        "name": "after-setup",
        "kind": "snapshot",
        "vcpus": 1,
        "memory_mb": 512,
        "created_at": "2026-01-31T09:30:00.125Z"
      }
    ]
    "#);
}

#[test]
fn commands_and_processes() {
    let result = ExecResponse {
        sandbox_id: id(),
        cmd: "python3".into(),
        stdout: "42\n".into(),
        stderr: String::new(),
        exit_code: 0,
        timed_out: false,
        truncated: false,
        lost_bytes: 0,
        duration_ms: 62,
        encoding: Encoding::Utf8,
    };
    assert_json_snapshot!(result, @r#"
    {
      "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "cmd": "python3",
      "stdout": "42\n",
      "stderr": "",
      "exit_code": 0,
      "timed_out": false,
      "truncated": false,
      "lost_bytes": 0,
      "duration_ms": 62,
      "encoding": "utf-8"
    }
    "#);
    assert_json_snapshot!(Encoding::Base64, @r#""base64""#);
    let started = BackgroundProcess { sandbox_id: id(), cmd: "sleep".into(), pid: 321, tag: "nap".into() };
    assert_json_snapshot!(started, @r#"
    {
      "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "cmd": "sleep",
      "pid": 321,
      "tag": "nap"
    }
    "#);
    let started_at = "2026-01-31T09:30:00.125Z".parse().expect("a time");
    let nap = ProcessInfo {
        pid: 321,
        tag: Some("nap".into()),
        cmd: "sleep".into(),
        args: vec!["60".into()],
        cwd: Some("/srv".into()),
        user: "root".into(),
        started_at,
        terminal: false,
    };
    let shell = ProcessInfo {
        pid: 322,
        tag: None,
        cmd: "/bin/bash".into(),
        args: Vec::new(),
        cwd: None,
        terminal: true,
        ..nap.clone()
    };
    assert_json_snapshot!(ProcessList { processes: vec![nap, shell] }, @r#"
    {
      "processes": [
        {
          "pid": 321,
          "tag": "nap",
          "cmd": "sleep",
          "args": [
            "60"
          ],
          "cwd": "/srv",
          "user": "root",
          "started_at": "2026-01-31T09:30:00.125Z",
          "terminal": false
        },
        {
          "pid": 322,
          "cmd": "/bin/bash",
          "args": [],
          "user": "root",
          "started_at": "2026-01-31T09:30:00.125Z",
          "terminal": true
        }
      ]
    }
    "#);
    assert_json_snapshot!(Signalled { pid: 321, signal: 15, processes: 3 }, @r#"
    {
      "pid": 321,
      "signal": 15,
      "processes": 3
    }
    "#);
}

#[test]
fn files() {
    let file = FileEntry {
        name: "hello.txt".into(),
        path: "/root/hello.txt".into(),
        kind: FileKind::File,
        size: 6,
        mode: 0o644,
        permissions: "-rw-r--r--".into(),
        owner: "root".into(),
        group: "root".into(),
        modified_at: 1_764_244_800,
        symlink_target: None,
    };
    let link = FileEntry {
        name: "link".into(),
        path: "/root/link".into(),
        kind: FileKind::Directory,
        size: 4096,
        mode: 0o755,
        permissions: "Lrwxrwxrwx".into(),
        symlink_target: Some("/srv".into()),
        ..file.clone()
    };
    assert_json_snapshot!(FileEntries { entries: vec![file, link] }, @r#"
    {
      "entries": [
        {
          "name": "hello.txt",
          "path": "/root/hello.txt",
          "type": "file",
          "size": 6,
          "mode": 420,
          "permissions": "-rw-r--r--",
          "owner": "root",
          "group": "root",
          "modified_at": 1764244800
        },
        {
          "name": "link",
          "path": "/root/link",
          "type": "directory",
          "size": 4096,
          "mode": 493,
          "permissions": "Lrwxrwxrwx",
          "owner": "root",
          "group": "root",
          "modified_at": 1764244800,
          "symlink_target": "/srv"
        }
      ]
    }
    "#);
    assert_json_snapshot!(FileKind::Symlink, @r#""symlink""#);
    assert_json_snapshot!(WrittenFile { size: 6, sha256: "5891b5b5".into() }, @r#"
    {
      "size": 6,
      "sha256": "5891b5b5"
    }
    "#);
    assert_json_snapshot!(WrittenArchive { entries: 3, size: 3072, sha256: "9f86d081".into() }, @r#"
    {
      "entries": 3,
      "size": 3072,
      "sha256": "9f86d081"
    }
    "#);
    let signed = SignedFile {
        method: "GET".into(),
        url: "/v1/sandboxes/x/files/content?path=report.pdf".into(),
        expires_at: "2026-01-31T09:40:00Z".parse().expect("a time"),
    };
    assert_json_snapshot!(signed, @r#"
    {
      "method": "GET",
      "url": "/v1/sandboxes/x/files/content?path=report.pdf",
      "expires_at": "2026-01-31T09:40:00Z"
    }
    "#);
}

#[test]
fn a_port_with_and_without_a_token() {
    let url = "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727";
    let public = PortAddress {
        sandbox_id: id(),
        port: 8000,
        url: url.into(),
        public: true,
        token: None,
        browser_url: url.into(),
    };
    let with_token = PortAddress { public: false, token: Some("0b6ed1f2".into()), ..public.clone() };
    assert_json_snapshot!([public, with_token], @r#"
    [
      {
        "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "port": 8000,
        "url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727",
        "public": true,
        "browser_url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727"
      },
      {
        "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
        "port": 8000,
        "url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727",
        "public": false,
        "token": "0b6ed1f2",
        "browser_url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727"
      }
    ]
    "#);
}

#[test]
fn a_screen() {
    let screen = TerminalScreen {
        cols: 80,
        rows: 24,
        text: "$ ls\nnotes.txt\n$".into(),
        scrollback: String::new(),
        cursor: TerminalCursor { row: 2, col: 2, visible: true },
        alternate: false,
        offset: 31,
        ended: false,
    };
    assert_json_snapshot!(screen, @r#"
    {
      "cols": 80,
      "rows": 24,
      "text": "$ ls\nnotes.txt\n$",
      "scrollback": "",
      "cursor": {
        "row": 2,
        "col": 2,
        "visible": true
      },
      "alternate": false,
      "offset": 31,
      "ended": false
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
