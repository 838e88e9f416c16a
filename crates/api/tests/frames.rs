// SPDX-License-Identifier: Apache-2.0
//! Frames of the WebSockets as JSON text, one per line: a change of a field's name, order or form is visible here.

use std::collections::BTreeMap;

use insta::assert_snapshot;
use serde::{Serialize, de::DeserializeOwned};
use wrenn_api::{
    ErrorCode, ExecClientFrame, ExecError, ExecExit, ExecInput, ExecLost, ExecOutput, ExecServerFrame,
    ExecSignal, ExecStart, ExecStarted, ExecStdinClosed, FileWatchFrame, KilledProcess, Signal,
    TerminalClientFrame, TerminalConnect, TerminalError, TerminalExit, TerminalInput, TerminalOutput,
    TerminalServerFrame, TerminalSize, TerminalStart, TerminalStarted,
};

const SIZE: TerminalSize = TerminalSize { cols: 120, rows: 40 };

/// Frames as lines, each of which is read as it is written.
fn lines<T: Serialize + DeserializeOwned>(frames: &[T]) -> String {
    let line = |frame: &T| {
        let line = serde_json::to_string(frame).expect("JSON");
        let read: T = serde_json::from_str(&line).expect("a frame");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), line);
        line
    };
    frames.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn frames_of_a_command() {
    let least = ExecStart {
        cmd: "true".into(),
        args: Vec::new(),
        envs: BTreeMap::new(),
        cwd: None,
        user: None,
        timeout_sec: None,
        stdin: false,
        tag: None,
    };
    let most = ExecStart {
        cmd: "python3".into(),
        args: vec!["-u".into(), "-".into()],
        envs: BTreeMap::from([("GREETING".into(), "hello".into())]),
        cwd: Some("/srv".into()),
        user: Some("root".into()),
        timeout_sec: Some(60),
        stdin: true,
        tag: Some("build".into()),
    };
    let sent = [
        ExecClientFrame::Start(least),
        ExecClientFrame::Start(most),
        ExecClientFrame::Stdin(ExecInput { data: "yes\n".into(), encoding: None }),
        ExecClientFrame::Stdin(ExecInput { data: "/w==".into(), encoding: Some("base64".into()) }),
        ExecClientFrame::CloseStdin,
        ExecClientFrame::Signal(ExecSignal { signal: Signal::INT }),
        ExecClientFrame::Stop,
    ];
    assert_snapshot!(lines(&sent), @r#"
    {"type":"start","cmd":"true"}
    {"type":"start","cmd":"python3","args":["-u","-"],"envs":{"GREETING":"hello"},"cwd":"/srv","user":"root","timeout_sec":60,"stdin":true,"tag":"build"}
    {"type":"stdin","data":"yes\n"}
    {"type":"stdin","data":"/w==","encoding":"base64"}
    {"type":"close_stdin"}
    {"type":"signal","signal":2}
    {"type":"stop"}
    "#);
    let exit = ExecExit {
        exit_code: 0,
        timed_out: false,
        lost_bytes: 0,
        signal: None,
        out_of_memory: false,
        killed: None,
    };
    let killed = ExecExit {
        exit_code: 137,
        timed_out: true,
        lost_bytes: 65536,
        signal: Some(9),
        out_of_memory: true,
        killed: None,
    };
    let python = Some(KilledProcess { pid: 412, command: "python3".into() });
    let received = [
        ExecServerFrame::Start(ExecStarted { pid: 321, tag: None, offset: 0 }),
        ExecServerFrame::Start(ExecStarted { pid: 321, tag: Some("build".into()), offset: 31 }),
        ExecServerFrame::Stdout(ExecOutput { data: "42\n".into(), encoding: None }),
        ExecServerFrame::Stderr(ExecOutput { data: "/w==".into(), encoding: Some("base64".into()) }),
        ExecServerFrame::Lost(ExecLost { bytes: 65536 }),
        ExecServerFrame::StdinClosed(ExecStdinClosed { message: "process 321 has ended".into() }),
        ExecServerFrame::Exit(exit),
        ExecServerFrame::Exit(killed.clone()),
        ExecServerFrame::Exit(ExecExit { killed: python, ..killed }),
        ExecServerFrame::Error(ExecError { data: "no program".into(), code: ErrorCode::ProgramNotFound }),
    ];
    assert_snapshot!(lines(&received), @r#"
    {"type":"start","pid":321,"offset":0}
    {"type":"start","pid":321,"tag":"build","offset":31}
    {"type":"stdout","data":"42\n"}
    {"type":"stderr","data":"/w==","encoding":"base64"}
    {"type":"lost","bytes":65536}
    {"type":"stdin_closed","message":"process 321 has ended"}
    {"type":"exit","exit_code":0,"timed_out":false,"lost_bytes":0,"out_of_memory":false}
    {"type":"exit","exit_code":137,"timed_out":true,"lost_bytes":65536,"signal":9,"out_of_memory":true}
    {"type":"exit","exit_code":137,"timed_out":true,"lost_bytes":65536,"signal":9,"out_of_memory":true,"killed":{"pid":412,"command":"python3"}}
    {"type":"error","data":"no program","code":"program_not_found"}
    "#);
}

#[test]
fn frames_of_a_terminal() {
    let start = TerminalStart {
        cmd: "/bin/bash".into(),
        args: vec!["-l".into()],
        envs: BTreeMap::from([("TERM".into(), "vt100".into())]),
        cwd: Some("/srv".into()),
        user: Some("root".into()),
        tag: Some("shell".into()),
        cols: SIZE.cols,
        rows: SIZE.rows,
        timeout_sec: Some(3600),
        idle_timeout_sec: Some(600),
    };
    let connect = TerminalConnect { tag: "shell".into(), cols: None, rows: None };
    let resizing = TerminalConnect { cols: Some(SIZE.cols), rows: Some(SIZE.rows), ..connect.clone() };
    let sent = [
        TerminalClientFrame::Start(start),
        TerminalClientFrame::Connect(connect),
        TerminalClientFrame::Connect(resizing),
        TerminalClientFrame::Input(TerminalInput { data: "bHMK".into() }),
        TerminalClientFrame::Resize(SIZE),
        TerminalClientFrame::Signal(ExecSignal { signal: Signal::TERM }),
        TerminalClientFrame::Kill,
        TerminalClientFrame::Pong,
    ];
    assert_snapshot!(lines(&sent), @r#"
    {"type":"start","cmd":"/bin/bash","args":["-l"],"envs":{"TERM":"vt100"},"cwd":"/srv","user":"root","tag":"shell","cols":120,"rows":40,"timeout_sec":3600,"idle_timeout_sec":600}
    {"type":"connect","tag":"shell"}
    {"type":"connect","tag":"shell","cols":120,"rows":40}
    {"type":"input","data":"bHMK"}
    {"type":"resize","cols":120,"rows":40}
    {"type":"signal","signal":15}
    {"type":"kill"}
    {"type":"pong"}
    "#);
    let started =
        TerminalStarted { tag: "shell".into(), pid: 321, cols: SIZE.cols, rows: SIZE.rows, offset: 0 };
    let exit =
        TerminalExit { exit_code: 0, timed_out: false, signal: None, out_of_memory: false, killed: None };
    let missing = TerminalError { data: "output is missing".into(), code: None, fatal: false };
    let gone = TerminalError { data: "it has ended".into(), code: Some(ErrorCode::NotFound), fatal: true };
    let received = [
        TerminalServerFrame::Started(started),
        TerminalServerFrame::Output(TerminalOutput { data: "JCA=".into() }),
        TerminalServerFrame::Lost(ExecLost { bytes: 65536 }),
        TerminalServerFrame::Resized(SIZE),
        TerminalServerFrame::Exit(exit.clone()),
        TerminalServerFrame::Exit(TerminalExit { exit_code: 129, signal: Some(1), ..exit }),
        TerminalServerFrame::Error(missing),
        TerminalServerFrame::Error(gone),
        TerminalServerFrame::Ping,
    ];
    assert_snapshot!(lines(&received), @r#"
    {"type":"started","tag":"shell","pid":321,"cols":120,"rows":40,"offset":0}
    {"type":"output","data":"JCA="}
    {"type":"lost","bytes":65536}
    {"type":"resized","cols":120,"rows":40}
    {"type":"exit","exit_code":0,"timed_out":false,"out_of_memory":false}
    {"type":"exit","exit_code":129,"timed_out":false,"signal":1,"out_of_memory":false}
    {"type":"error","data":"output is missing","fatal":false}
    {"type":"error","data":"it has ended","code":"not_found","fatal":true}
    {"type":"ping"}
    "#);
}

#[test]
fn frames_of_a_watched_directory() {
    let name = || "src/main.rs".to_owned();
    let received = [
        FileWatchFrame::Start,
        FileWatchFrame::Create { name: name() },
        FileWatchFrame::Write { name: name() },
        FileWatchFrame::Chmod { name: name() },
        FileWatchFrame::Rename { name: name() },
        FileWatchFrame::Remove { name: name() },
        FileWatchFrame::Overflow,
        FileWatchFrame::Error { data: "it was removed".into(), code: ErrorCode::NotFound },
    ];
    assert_snapshot!(lines(&received), @r#"
    {"type":"start"}
    {"type":"create","name":"src/main.rs"}
    {"type":"write","name":"src/main.rs"}
    {"type":"chmod","name":"src/main.rs"}
    {"type":"rename","name":"src/main.rs"}
    {"type":"remove","name":"src/main.rs"}
    {"type":"overflow"}
    {"type":"error","data":"it was removed","code":"not_found"}
    "#);
}
