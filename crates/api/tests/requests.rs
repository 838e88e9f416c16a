// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests as JSON text, one per line, as a client sends them: what is left out has its default.

use std::collections::BTreeMap;

use insta::assert_snapshot;
use serde::Serialize;
use wrenn_api::{
    ChangeFile, CopyFile, CreateSandbox, CreateSnapshot, EntryPath, ExecRequest, FileOperation, ListFiles,
    MoveFile, OnTimeout, PauseSandbox, PingSandbox, ReadFile, RegistryAccount, ResumeSandbox, SandboxId,
    SignFile, UpdateSandbox,
};

fn id() -> SandboxId {
    "sb03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id")
}

/// Returns a body as one line.
fn line(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("JSON")
}

#[test]
fn about_sandboxes() {
    let create = CreateSandbox {
        template: Some("minimal".into()),
        image: None,
        registry: None,
        vcpus: Some(2),
        memory_mb: Some(1024),
        disk_size_mb: Some(10240),
        envs: BTreeMap::from([("GREETING".into(), "hello".into())]),
        name: Some("web".into()),
        labels: BTreeMap::from([("branch".into(), "main".into())]),
        timeout_sec: Some(600),
        on_timeout: Some(OnTimeout::Delete),
        auto_resume: Some(true),
        public_ports: Some(false),
    };
    let labels = BTreeMap::from([("branch".into(), Some("main".into())), ("reviewed".into(), None)]);
    let update = UpdateSandbox {
        name: Some(String::new()),
        labels,
        timeout_sec: Some(0),
        on_timeout: Some(OnTimeout::Pause),
        auto_resume: Some(false),
        public_ports: Some(true),
    };
    let image = CreateSandbox {
        image: Some("debian:bookworm".into()),
        registry: Some(RegistryAccount { username: "robot".into(), password: "a token".into() }),
        ..CreateSandbox::default()
    };
    let requests = [
        line(&CreateSandbox::default()),
        line(&create),
        line(&image),
        line(&UpdateSandbox::default()),
        line(&update),
        line(&ResumeSandbox::default()),
        line(&ResumeSandbox { timeout_sec: Some(600), memory: Some(false) }),
        line(&PauseSandbox {}),
        line(&PingSandbox {}),
        line(&CreateSnapshot { sandbox_id: id(), name: None }),
        line(&CreateSnapshot { sandbox_id: id(), name: Some("after-setup".into()) }),
    ];
    assert_snapshot!(requests.join("\n"), @r#"
    {}
    {"template":"minimal","vcpus":2,"memory_mb":1024,"disk_size_mb":10240,"envs":{"GREETING":"hello"},"name":"web","labels":{"branch":"main"},"timeout_sec":600,"on_timeout":"delete","auto_resume":true,"public_ports":false}
    {"image":"debian:bookworm","registry":{"username":"robot","password":"a token"}}
    {}
    {"name":"","labels":{"branch":"main","reviewed":null},"timeout_sec":0,"on_timeout":"pause","auto_resume":false,"public_ports":true}
    {}
    {"timeout_sec":600,"memory":false}
    {}
    {}
    {"sandbox_id":"sb03halx8fdhw2fu3txwbd0kdw0"}
    {"sandbox_id":"sb03halx8fdhw2fu3txwbd0kdw0","name":"after-setup"}
    "#);
}

#[test]
fn about_commands_and_files() {
    let exec = ExecRequest {
        cmd: "python3".into(),
        args: vec!["-u".into(), "-".into()],
        envs: BTreeMap::from([("GREETING".into(), "hello".into())]),
        cwd: Some("/srv".into()),
        user: Some("root".into()),
        timeout_sec: Some(60),
        background: true,
        tag: Some("build".into()),
        stdin: true,
    };
    let change = ChangeFile {
        path: "run.sh".into(),
        mode: Some("0755".into()),
        owner: Some("root".into()),
        group: Some("0".into()),
        recursive: true,
        user: Some("root".into()),
    };
    let sign = SignFile {
        path: "report.pdf".into(),
        operation: FileOperation::Read,
        expires_in_sec: None,
        user: None,
    };
    let upload = SignFile {
        operation: FileOperation::Write,
        expires_in_sec: Some(600),
        user: Some("root".into()),
        ..sign.clone()
    };
    let [source, destination] = ["a.txt", "dir/b.txt"].map(str::to_owned);
    let copy = CopyFile { source: source.clone(), destination: destination.clone(), user: None };
    let requests = [
        line(&ExecRequest { cmd: "true".into(), ..ExecRequest::default() }),
        line(&exec),
        line(&ReadFile { path: "/etc/debian_version".into() }),
        line(&ListFiles { path: "/etc".into(), depth: None }),
        line(&ListFiles { path: "/etc".into(), depth: Some(2) }),
        line(&EntryPath { path: "project/src".into(), user: None }),
        line(&EntryPath { path: "project/src".into(), user: Some("root".into()) }),
        line(&MoveFile { source, destination }),
        line(&copy),
        line(&CopyFile { user: Some("root".into()), ..copy.clone() }),
        line(&ChangeFile { path: "run.sh".into(), mode: Some("0755".into()), ..ChangeFile::default() }),
        line(&change),
        line(&sign),
        line(&upload),
    ];
    assert_snapshot!(requests.join("\n"), @r#"
    {"cmd":"true"}
    {"cmd":"python3","args":["-u","-"],"envs":{"GREETING":"hello"},"cwd":"/srv","user":"root","timeout_sec":60,"background":true,"tag":"build","stdin":true}
    {"path":"/etc/debian_version"}
    {"path":"/etc"}
    {"path":"/etc","depth":2}
    {"path":"project/src"}
    {"path":"project/src","user":"root"}
    {"source":"a.txt","destination":"dir/b.txt"}
    {"source":"a.txt","destination":"dir/b.txt"}
    {"source":"a.txt","destination":"dir/b.txt","user":"root"}
    {"path":"run.sh","mode":"0755"}
    {"path":"run.sh","mode":"0755","owner":"root","group":"0","recursive":true,"user":"root"}
    {"path":"report.pdf","operation":"read"}
    {"path":"report.pdf","operation":"write","expires_in_sec":600,"user":"root"}
    "#);
}
