// SPDX-License-Identifier: Apache-2.0
//! Bodies of responses as JSON text: a change of a field's name, order or form is visible here.

use std::collections::BTreeMap;

use insta::{assert_json_snapshot, assert_snapshot};
use uuid::Uuid;
use wrenn_api::{
    Actor, ActorKind, BackgroundProcess, Build, BuildError, BuildLogEntry, BuildStatus, BuildStep,
    BuildStepStatus, BuildStream, Cause, Caused, DriverHealth, Encoding, ErrorBody, ErrorCode, ErrorDetail,
    Event, EventKind, ExecResponse, FileEntries, FileEntry, FileKind, Health, HostId, Image, KilledProcess,
    MetricsPoint, MetricsRange, OnTimeout, OutOfMemory, PortAddress, ProcessInfo, ProcessList, Sandbox,
    SandboxId, SandboxImage, SandboxMetrics, SandboxStatus, Signalled, SignedFile, Snapshot, Template,
    TemplateKind, TemplateVersion, TerminalCursor, TerminalScreen, UserId, WrittenArchive, WrittenFile,
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
        image: None,
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
        last_out_of_memory: None,
        error: failed.then(|| ErrorDetail {
            code: ErrorCode::AgentError,
            message: "the guest did not boot".into(),
            sandbox_id: None,
        }),
    }
}

/// A failed sandbox in which a process was killed for want of memory.
fn killed_in(pid: Option<u32>, command: Option<&str>) -> Sandbox {
    let at = "2026-01-31T09:35:00.5Z".parse().expect("a time");
    let killed = OutOfMemory { at, pid, command: command.map(str::to_owned) };
    Sandbox { last_out_of_memory: Some(killed), ..sandbox(SandboxStatus::Error) }
}

#[test]
fn the_image_of_a_sandbox() {
    let image = SandboxImage {
        reference: "debian:bookworm".into(),
        digest: "sha256:3d868b5e".into(),
        command: vec!["bash".into(), "-l".into()],
    };
    assert_json_snapshot!(image, @r#"
    {
      "reference": "debian:bookworm",
      "digest": "sha256:3d868b5e",
      "command": [
        "bash",
        "-l"
      ]
    }
    "#);
}

#[test]
fn an_image_that_was_uploaded() {
    let image = Image {
        reference: "uploaded:app:1".into(),
        uploaded: true,
        digest: "sha256:3d868b5e".into(),
        size_mb: 117,
        hosts: Vec::new(),
        last_used_at: "2026-01-31T09:30:00.125Z".parse().expect("a time"),
    };
    assert_json_snapshot!(image, @r#"
    {
      "reference": "uploaded:app:1",
      "uploaded": true,
      "digest": "sha256:3d868b5e",
      "size_mb": 117,
      "hosts": [],
      "last_used_at": "2026-01-31T09:30:00.125Z"
    }
    "#);
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
        platform: true,
        version: None,
        tags: BTreeMap::new(),
        vcpus: None,
        memory_mb: None,
        created_at: None,
    };
    let built = Template {
        name: "web".into(),
        platform: false,
        version: Some(2),
        tags: BTreeMap::from([("latest".into(), 2), ("next".into(), 3)]),
        created_at: Some(created_at),
        ..base.clone()
    };
    let own = Template {
        name: "after-setup".into(),
        kind: TemplateKind::Snapshot,
        platform: false,
        vcpus: Some(1),
        memory_mb: Some(512),
        created_at: Some(created_at),
        ..base.clone()
    };
    assert_json_snapshot!([base, built, own], @r#"
    [
      {
        "name": "minimal",
        "kind": "base",
        "platform": true
      },
      {
        "name": "web",
        "kind": "base",
        "version": 2,
        "tags": {
          "latest": 2,
          "next": 3
        },
        "created_at": "2026-01-31T09:30:00.125Z"
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
fn versions_of_templates() {
    let image = TemplateVersion {
        name: "web".into(),
        version: 1,
        kind: TemplateKind::Base,
        tags: Vec::new(),
        build_id: "bd03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        cache_key: "3b0c6b6f4a5c".into(),
        size_mb: 912,
        vcpus: None,
        memory_mb: None,
        disk_size_mb: None,
        envs: BTreeMap::new(),
        user: "root".into(),
        workdir: "/".into(),
        created_at: "2026-01-31T09:30:00.125Z".parse().expect("a time"),
    };
    let snapshot = TemplateVersion {
        version: 2,
        kind: TemplateKind::Snapshot,
        tags: vec!["latest".into(), "stable".into()],
        size_mb: 5120,
        vcpus: Some(1),
        memory_mb: Some(1024),
        disk_size_mb: Some(5120),
        envs: BTreeMap::from([("PORT".into(), "8080".into())]),
        user: "www-data".into(),
        workdir: "/srv".into(),
        ..image.clone()
    };
    assert_json_snapshot!([snapshot, image], @r#"
    [
      {
        "name": "web",
        "version": 2,
        "kind": "snapshot",
        "tags": [
          "latest",
          "stable"
        ],
        "build_id": "bd03halx8fdhw2fu3txwbd0kdw0",
        "cache_key": "3b0c6b6f4a5c",
        "size_mb": 5120,
        "vcpus": 1,
        "memory_mb": 1024,
        "disk_size_mb": 5120,
        "envs": {
          "PORT": "8080"
        },
        "user": "www-data",
        "workdir": "/srv",
        "created_at": "2026-01-31T09:30:00.125Z"
      },
      {
        "name": "web",
        "version": 1,
        "kind": "base",
        "tags": [],
        "build_id": "bd03halx8fdhw2fu3txwbd0kdw0",
        "cache_key": "3b0c6b6f4a5c",
        "size_mb": 912,
        "envs": {},
        "user": "root",
        "workdir": "/",
        "created_at": "2026-01-31T09:30:00.125Z"
      }
    ]
    "#);
}

#[test]
fn a_build_and_its_log() {
    let at = |text: &str| text.parse().expect("a time");
    let done = BuildStep {
        number: 1,
        line: 2,
        instruction: "RUN apt-get install -y nginx".into(),
        status: BuildStepStatus::Cached,
        cache_key: Some("3b0c6b6f4a5c".into()),
        miss: None,
        bytes_added: Some(4096),
        duration_ms: None,
        exit_code: None,
    };
    let failed = BuildStep {
        number: 2,
        line: 3,
        instruction: "RUN make".into(),
        status: BuildStepStatus::Failed,
        miss: Some("the instruction changed".into()),
        bytes_added: None,
        duration_ms: Some(8213),
        exit_code: Some(2),
        ..done.clone()
    };
    let build = Build {
        id: "bd03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: "web".into(),
        tag: "latest".into(),
        status: BuildStatus::Failed,
        attempt: 1,
        steps: vec![done, failed],
        version: None,
        error: Some(BuildError {
            code: ErrorCode::BuildFailed.to_string(),
            message: "step 2 (line 3) ended with 2".into(),
            step: Some(2),
        }),
        sandbox_id: Some(id()),
        created_at: at("2026-01-31T09:30:00.125Z"),
        started_at: Some(at("2026-01-31T09:30:02.500Z")),
        ended_at: Some(at("2026-01-31T09:31:10Z")),
    };
    assert_json_snapshot!(build, @r#"
    {
      "id": "bd03halx8fdhw2fu3txwbd0kdw0",
      "name": "web",
      "tag": "latest",
      "status": "failed",
      "attempt": 1,
      "steps": [
        {
          "number": 1,
          "line": 2,
          "instruction": "RUN apt-get install -y nginx",
          "status": "cached",
          "cache_key": "3b0c6b6f4a5c",
          "bytes_added": 4096
        },
        {
          "number": 2,
          "line": 3,
          "instruction": "RUN make",
          "status": "failed",
          "cache_key": "3b0c6b6f4a5c",
          "miss": "the instruction changed",
          "duration_ms": 8213,
          "exit_code": 2
        }
      ],
      "error": {
        "code": "build_failed",
        "message": "step 2 (line 3) ended with 2",
        "step": 2
      },
      "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "created_at": "2026-01-31T09:30:00.125Z",
      "started_at": "2026-01-31T09:30:02.500Z",
      "ended_at": "2026-01-31T09:31:10Z"
    }
    "#);
    let entry = BuildLogEntry {
        offset: 17,
        step: 2,
        stream: BuildStream::Stderr,
        text: "make: *** No targets.\n".into(),
        at: at("2026-01-31T09:31:10Z"),
    };
    assert_json_snapshot!(entry, @r#"
    {
      "offset": 17,
      "step": 2,
      "stream": "stderr",
      "text": "make: *** No targets.\n",
      "at": "2026-01-31T09:31:10Z"
    }
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
        out_of_memory: false,
        killed: None,
        duration_ms: 62,
        encoding: Encoding::Utf8,
    };
    let killed = ExecResponse {
        exit_code: 137,
        out_of_memory: true,
        killed: Some(KilledProcess { pid: 412, command: "python3".into() }),
        ..result.clone()
    };
    assert_json_snapshot!(killed, @r#"
    {
      "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "cmd": "python3",
      "stdout": "42\n",
      "stderr": "",
      "exit_code": 137,
      "timed_out": false,
      "truncated": false,
      "lost_bytes": 0,
      "out_of_memory": true,
      "killed": {
        "pid": 412,
        "command": "python3"
      },
      "duration_ms": 62,
      "encoding": "utf-8"
    }
    "#);
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
      "out_of_memory": false,
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
        out_of_memory: false,
    };
    let shell = ProcessInfo {
        pid: 322,
        tag: None,
        cmd: "/bin/bash".into(),
        args: Vec::new(),
        cwd: None,
        terminal: true,
        out_of_memory: true,
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
          "terminal": false,
          "out_of_memory": false
        },
        {
          "pid": 322,
          "cmd": "/bin/bash",
          "args": [],
          "user": "root",
          "started_at": "2026-01-31T09:30:00.125Z",
          "terminal": true,
          "out_of_memory": true
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
fn metrics() {
    let point = MetricsPoint {
        timestamp_unix: 1_769_851_800,
        cpu_pct: 12.34,
        mem_bytes: 161_480_704,
        disk_bytes: 314_572_800,
        net_rx_bytes: 20_480,
        net_tx_bytes: 4096,
        guest_mem_used_bytes: Some(104_857_600),
        guest_mem_total_bytes: Some(520_093_696),
        guest_disk_used_bytes: None,
        guest_disk_total_bytes: None,
    };
    let metrics = SandboxMetrics { sandbox_id: id(), range: MetricsRange::default(), points: vec![point] };
    assert_json_snapshot!(metrics, @r#"
    {
      "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
      "range": "10m",
      "points": [
        {
          "timestamp_unix": 1769851800,
          "cpu_pct": 12.34,
          "mem_bytes": 161480704,
          "disk_bytes": 314572800,
          "net_rx_bytes": 20480,
          "net_tx_bytes": 4096,
          "guest_mem_used_bytes": 104857600,
          "guest_mem_total_bytes": 520093696
        }
      ]
    }
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
    let id = Some(UserId::from(Uuid::from_u128(7)).to_string());
    let actor = Actor { kind: ActorKind::User, id, name: Some("Ada".to_owned()) };
    let by_user = Caused { cause: Cause::User, actor };
    assert_json_snapshot!(Event::changed(sandbox(SandboxStatus::Running), by_user), @r#"
    {
      "type": "sandbox.running",
      "at": "2026-01-31T09:30:02.500001Z",
      "cause": "user",
      "actor": {
        "kind": "user",
        "id": "us0000000000000000000000007",
        "name": "Ada"
      },
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
    assert_json_snapshot!(Event::changed(sandbox(SandboxStatus::Error), Caused::default()), @r#"
    {
      "type": "sandbox.error",
      "at": "2026-01-31T09:30:02.500001Z",
      "cause": "system",
      "actor": {
        "kind": "system"
      },
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
    assert_json_snapshot!(Event::out_of_memory(killed_in(Some(412), Some("python3"))), @r#"
    {
      "type": "sandbox.out_of_memory",
      "at": "2026-01-31T09:35:00.500Z",
      "cause": "out_of_memory",
      "actor": {
        "kind": "system"
      },
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
        "last_out_of_memory": {
          "at": "2026-01-31T09:35:00.500Z",
          "pid": 412,
          "command": "python3"
        },
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
    let Event::Host(mut event) = Event::host(HostId::from(Uuid::from_u128(8)), false) else {
        panic!("it is of a host");
    };
    event.at = "2026-01-31T09:30:02Z".parse().expect("a time");
    assert_json_snapshot!(event, @r#"
    {
      "type": "host.down",
      "at": "2026-01-31T09:30:02Z",
      "cause": "host",
      "actor": {
        "kind": "host",
        "id": "host0000000000000000000000008"
      },
      "host": {
        "id": "host0000000000000000000000008"
      }
    }
    "#);
    let kinds: Vec<_> = EventKind::all().map(|kind| kind.to_string()).collect();
    assert_snapshot!(kinds.join(" "), @"sandbox.starting sandbox.running sandbox.pausing sandbox.paused sandbox.resuming sandbox.stopping sandbox.stopped sandbox.missing sandbox.error sandbox.out_of_memory snapshot.created snapshot.deleted host.up host.down");
}

#[test]
fn events_are_read_as_they_are_written() {
    let all = SandboxStatus::ALL.map(|status| Event::changed(sandbox(status), Caused::default()));
    let snapshot = Snapshot {
        name: "after-setup".to_owned(),
        template: "minimal".to_owned(),
        vcpus: 1,
        memory_mb: 512,
        disk_size_mb: 5120,
        created_at: "2026-01-31T09:30:00Z".parse().expect("a time"),
    };
    let others = [
        Event::out_of_memory(killed_in(None, None)),
        Event::snapshot_created(snapshot.clone(), Caused::default()),
        Event::snapshot_deleted(snapshot, Caused::default()),
        Event::host(HostId::from(Uuid::from_u128(8)), true),
        Event::resync("why"),
    ];
    for event in all.into_iter().chain(others) {
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
    // An event of a server that told no cause.
    let mut old =
        serde_json::to_value(Event::changed(sandbox(SandboxStatus::Error), Caused::default())).expect("JSON");
    let fields = old.as_object_mut().expect("an object");
    fields.remove("cause");
    fields.remove("actor");
    let read: Event = serde_json::from_value(old).expect("an event");
    assert_eq!(read.caused(), Some((Cause::System, &Actor::default())));
    assert_ne!(EventKind::Resync, EventKind::Sandbox(SandboxStatus::Error));
}

#[test]
fn a_team_with_its_people() {
    let at = |text: &str| text.parse().expect("a time");
    let team = wrenn_api::Team {
        id: wrenn_api::TeamId::PLATFORM,
        name: "Engines".into(),
        slug: Some("5f0c1a-93be27".into()),
        is_byoc: false,
        created_at: at("2026-01-31T09:30:00Z"),
        role: None,
    };
    assert_json_snapshot!(team, @r#"
    {
      "id": "team0000000000000000000000000",
      "name": "Engines",
      "slug": "5f0c1a-93be27",
      "is_byoc": false,
      "created_at": "2026-01-31T09:30:00Z"
    }
    "#);
    let member = wrenn_api::TeamMember {
        user_id: "us03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        name: "Ada".into(),
        email: "ada@example.com".into(),
        role: wrenn_api::TeamRole::Owner,
        joined_at: at("2026-01-31T09:30:00Z"),
    };
    assert_json_snapshot!(member, @r#"
    {
      "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
      "name": "Ada",
      "email": "ada@example.com",
      "role": "owner",
      "joined_at": "2026-01-31T09:30:00Z"
    }
    "#);
    let invitation = wrenn_api::Invitation {
        id: "iv03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id"),
        email: "grace@example.com".into(),
        role: wrenn_api::GivenRole::Admin,
        inviter: "ada@example.com".into(),
        created_at: at("2026-01-31T09:30:00Z"),
        expires_at: at("2026-02-07T09:30:00Z"),
    };
    assert_json_snapshot!(wrenn_api::MadeInvitation { invitation, mailed: true }, @r#"
    {
      "invitation": {
        "id": "iv03halx8fdhw2fu3txwbd0kdw0",
        "email": "grace@example.com",
        "role": "admin",
        "inviter": "ada@example.com",
        "created_at": "2026-01-31T09:30:00Z",
        "expires_at": "2026-02-07T09:30:00Z"
      },
      "mailed": true
    }
    "#);
    let quota = wrenn_api::Quota { name: wrenn_api::QuotaName::CreatesPerMinute, limit: 6000, used: 3 };
    assert_json_snapshot!(quota, @r#"
    {
      "name": "creates_per_minute",
      "limit": 6000,
      "used": 3
    }
    "#);
}
