// SPDX-License-Identifier: Apache-2.0
//! Limits of envd's memory and descriptors with many processes, much output and many descendants.

use std::{fs, process::Command};

use serde_json::json;

use crate::client::{Envd, Events, alive, eventually, resident};

fn descriptors(envd: &Envd) -> usize {
    fs::read_dir(format!("/proc/{}/fd", envd.child.id())).unwrap().count()
}

#[test]
fn the_output_kept_of_all_processes_together_has_a_bound() {
    let envd = Envd::start_with(&["--kept", "4194304"]);
    envd.sh("head -c 2M /dev/zero").finish();
    let before = resident(&envd);
    let mut pids = Vec::new();
    for _ in 0..60 {
        let mut events = envd.sh("head -c 2M /dev/zero");
        pids.push(events.pid());
        assert_eq!(events.finish().stdout.len(), 2 << 20);
    }
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more are resident");
    // The oldest has lost its output and reports that; the newest still has it.
    let late = |pid| envd.stream("Connect", &[], &json!({"process": {"pid": pid}})).finish();
    let (oldest, newest) = (late(pids[0]), late(pids[59]));
    assert_eq!((oldest.lost[..].to_vec(), oldest.stdout.len()), (vec![(2 << 20, 0)], 0));
    assert_eq!(oldest.end["status"], "exit status 0");
    assert!(newest.stdout.len() > 900 << 10);
}

#[test]
fn arguments_and_environment_of_ended_processes_are_not_kept() {
    let envd = Envd::start();
    let run = || {
        let envs: serde_json::Map<_, _> =
            (0..12).map(|i| (format!("V{i}"), json!("x".repeat(100_000)))).collect();
        let request = json!({"process": {"cmd": "true", "envs": envs}, "stdin": false});
        assert_eq!(envd.stream("Start", &[], &request).finish().end["exitCode"].as_i64().unwrap_or(0), 0);
    };
    (0..5).for_each(|_| run());
    let before = resident(&envd);
    (0..40).for_each(|_| run());
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more are resident");
}

/// Each daemon keeps the pipes of its command open.
#[test]
fn daemons_leave_descriptors_for_the_next_command() {
    let mut command = Command::new("sh");
    let script = "ulimit -n 128; exec \"$0\" --port 0 --drains 40";
    command.args(["-c", script, env!("CARGO_BIN_EXE_envd")]);
    let envd = Envd::spawn(command);
    let mut daemons = Vec::new();
    for _ in 0..80 {
        let run = envd.sh("sleep 1000 & echo $!").finish();
        daemons.push(String::from_utf8(run.stdout).unwrap().trim().to_owned());
        assert_eq!(run.end["status"], "exit status 0", "after {} daemons: {}", daemons.len(), run.error);
    }
    eventually("the oldest pipes are closed", || descriptors(&envd) < 80);
    assert!(daemons.iter().all(|pid| alive(pid)), "no daemon is ended by that");
    let run = envd.sh(&format!("kill {}; echo repaired", daemons.join(" "))).finish();
    assert_eq!(run.stdout, b"repaired\n");
    eventually("their pipes are closed", || descriptors(&envd) < 30);
}

#[test]
fn envd_may_open_more_files_than_what_it_starts() {
    let mut command = Command::new("sh");
    let script = "ulimit -Sn 100; ulimit -Hn 300; exec \"$0\" --port 0";
    command.args(["-c", script, env!("CARGO_BIN_EXE_envd")]);
    let envd = Envd::spawn(command);
    let limits = fs::read_to_string(format!("/proc/{}/limits", envd.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["300", "300"]);
    assert_eq!(envd.sh("ulimit -Sn; ulimit -Hn").finish().stdout, b"100\n300\n");
}

#[test]
fn only_so_many_run_at_a_time_and_a_place_is_free_again() {
    let envd = Envd::start_with(&["--running", "2"]);
    let mut held = [envd.sh("sleep 1000"), envd.sh("sleep 1000")];
    let pids = held.each_mut().map(Events::pid);
    let by_nobody = || {
        let request = json!({"process": {"cmd": "true"}, "stdin": false});
        envd.stream("Start", &[("authorization", "Basic bm9ib2R5Og==")], &request).finish().error
    };
    assert_eq!(by_nobody()["code"], "resource_exhausted");
    // Root, which is the default here, has some in reserve.
    let ended = envd.sh(&format!("kill -9 {}", pids[0])).finish();
    assert!(ended.error.is_null(), "{}", ended.error);
    eventually("a place is free", || by_nobody().is_null());
    assert!(envd.sh(&format!("kill -9 {}", pids[1])).finish().error.is_null());
    eventually("it ended", || !alive(&pids[1].to_string()));
}

#[test]
fn the_guests_own_connections_do_not_take_those_of_the_host() {
    let envd = Envd::start();
    let open: Vec<_> = (0..600).map(|_| std::net::TcpStream::connect(&envd.address).unwrap()).collect();
    eventually("connections beyond the bound are closed", || descriptors(&envd) < 300);
    drop(open);
    eventually("there are places again", || {
        let mut stream = std::net::TcpStream::connect(&envd.address).unwrap();
        let asked = std::io::Write::write_all(&mut stream, b"GET /health HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        let read = std::io::Read::read_to_string(&mut stream, &mut answer);
        asked.is_ok() && read.is_ok() && answer.contains("204")
    });
}

#[test]
fn a_form_without_content_is_refused_before_it_takes_memory() {
    let envd = Envd::start();
    let before = resident(&envd);
    let mut form = b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nX: ".to_vec();
    form.resize(32 << 20, b'a');
    let kind = [("content-type", "multipart/form-data; boundary=B")];
    let mut stream = envd.start_sending("POST", "/files?path=/tmp/x", &kind, form.len());
    // It may stop reading at any time, which is what is wanted.
    let _ = std::io::Write::write_all(&mut stream, &form);
    let mut answer = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more are resident");
    // A whole form goes through.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let content = vec![b'c'; 3 << 20];
    let form = [
        b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n",
        &*content,
        b"\r\n--B--\r\n",
    ];
    let url = format!("/files?path={}", path.display());
    assert_eq!(envd.http("POST", &url, &kind, &form.concat()).0, 200);
    assert!(fs::read(&path).unwrap() == content);
}
