// SPDX-License-Identifier: Apache-2.0
//! Terminals: their screen for clients that come back, their text, their number, and their end without clients.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::client::{Envd, Events, eventually};

/// Starts a script in a terminal of 40 columns and 10 rows.
fn start(envd: &Envd, tag: &str, script: &str, more: &Value) -> Events {
    let mut request = json!({"process": {"cmd": "sh", "args": ["-c", script]}, "tag": tag,
        "pty": {"size": {"cols": 40, "rows": 10}}});
    for (name, value) in more.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    envd.stream("Start", &[], &request)
}

fn screen(envd: &Envd, tag: &str) -> Value {
    let (status, screen) = envd.unary("process.Process/ReadScreen", &json!({"process": {"tag": tag}}));
    assert_eq!(status, 200, "{screen}");
    screen
}

fn rows(screen: &Value) -> Vec<&str> {
    screen["rows"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_client_gets_the_screen_and_then_what_follows() {
    let envd = Envd::start();
    let script = "stty -echo; for i in $(seq 1 15); do echo line $i; done; printf '\\033[1mbold\\033[0m'; read x; echo after";
    let mut first = start(&envd, "t", script, &json!({}));
    let started = first.start();
    assert_eq!(started["size"], json!({"cols": 40, "rows": 10}));
    eventually("the screen", || rows(&screen(&envd, "t")).last() == Some(&"bold"));
    let shown = screen(&envd, "t");
    assert_eq!((&shown["cursorRow"], &shown["cursorCol"]), (&json!(9), &json!(4)), "{shown}");
    assert_eq!(shown["scrollback"][0], "line 1");
    assert_eq!(rows(&shown)[..2], ["line 7", "line 8"]);
    // The first one leaves.
    drop(first);
    let mut second = envd.stream("Connect", &[], &json!({"process": {"tag": "t"}, "screen": true}));
    assert_eq!(second.start()["offset"], shown["offset"]);
    let mut replay = Vec::new();
    while !String::from_utf8_lossy(&replay).contains("bold") {
        let event = second.next().1;
        let piece = event["event"]["screen"]["data"].as_str().unwrap_or_else(|| panic!("no screen: {event}"));
        replay.extend(STANDARD.decode(piece).unwrap());
    }
    let replay = String::from_utf8(replay).unwrap();
    assert!(replay.contains("line 1\u{1b}[0m\r\n") && replay.contains("\u{1b}[1mbold"), "{replay:?}");
    let input = json!({"process": {"tag": "t"}, "input": {"pty": STANDARD.encode("\n")}});
    assert_eq!(envd.unary("process.Process/SendInput", &input).0, 200);
    let run = second.finish();
    assert_eq!(String::from_utf8(run.pty).unwrap(), "after\r\n");
    let last = screen(&envd, "t");
    assert_eq!((&last["ended"], rows(&last).contains(&"boldafter")), (&json!(true), true), "{last}");
    assert!(last["scrollback"].is_null(), "an ended terminal keeps its screen only: {last}");
}

#[test]
fn clients_are_told_a_new_size() {
    let envd = Envd::start();
    let mut first = start(&envd, "t", "sleep 1000", &json!({}));
    first.pid();
    let update = json!({"process": {"tag": "t"}, "pty": {"size": {"cols": 90, "rows": 20}}});
    assert_eq!(envd.unary("process.Process/Update", &update).0, 200);
    assert_eq!(first.next().1["event"]["resized"]["size"], json!({"cols": 90, "rows": 20}));
    assert_eq!(rows(&screen(&envd, "t")).len(), 20);
}

#[test]
fn an_idle_terminal_hangs_up_when_nobody_reads_it() {
    let envd = Envd::start();
    let begun = Instant::now();
    let mut read = start(&envd, "read", "sleep 1000", &json!({"idleTimeoutMs": 500}));
    read.pid();
    let ignoring = start(&envd, "left", "trap '' HUP; echo here; sleep 1000", &json!({"idleTimeoutMs": 500}));
    drop(ignoring);
    let listed = |tag: &str| {
        let list = envd.unary("process.Process/List", &json!({})).1;
        list["processes"].as_array().is_some_and(|all| all.iter().any(|one| one["tag"] == tag))
    };
    // It ignores the hangup, so it is killed 5 s later.
    eventually("it is gone", || !listed("left"));
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(listed("read"), "it is read");
    drop(read);
    eventually("the other is gone, too", || !listed("read"));
}

#[test]
fn there_are_only_so_many() {
    let envd = Envd::start_with(&["--terminals", "2"]);
    let mut open: Vec<Events> =
        (0..2).map(|number| start(&envd, &format!("t{number}"), "read x", &json!({}))).collect();
    open.iter_mut().for_each(|events| assert!(events.pid() > 0));
    let refused = start(&envd, "more", "true", &json!({})).finish();
    assert_eq!(refused.error["code"], "resource_exhausted", "{refused:?}");
    assert_eq!(envd.sh("true").finish().end["exitCode"].as_i64().unwrap_or_default(), 0);
    // A place becomes free.
    let kill = json!({"process": {"tag": "t0"}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(envd.unary("process.Process/SendSignal", &kill).0, 200);
    eventually("a place", || start(&envd, "", "true", &json!({})).finish().error.is_null());
}

#[test]
fn a_process_without_one_has_no_screen() {
    let envd = Envd::start();
    let mut plain = envd.sh("echo out; sleep 1000");
    let process = json!({"pid": plain.pid()});
    let (status, refused) = envd.unary("process.Process/ReadScreen", &json!({"process": process}));
    assert_eq!((status, &refused["code"]), (400, &json!("failed_precondition")), "{refused}");
    let mut from_its_beginning = envd.stream("Connect", &[], &json!({"process": process, "screen": true}));
    from_its_beginning.pid();
    assert_eq!(from_its_beginning.data(), b"out\n");
}

#[test]
fn a_message_that_is_too_large_is_wrong() {
    let envd = Envd::start();
    let mut cat = envd.stream("Start", &[], &json!({"process": {"cmd": "cat"}, "stdin": true, "tag": "cat"}));
    cat.pid();
    let input = json!({"process": {"tag": "cat"}, "input": {"stdin": STANDARD.encode(vec![0; 5 << 20])}});
    let (status, refused) = envd.unary("process.Process/SendInput", &input);
    assert_eq!((status, &refused["code"]), (400, &json!("invalid_argument")), "{refused}");
}
