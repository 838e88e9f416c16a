// SPDX-License-Identifier: Apache-2.0
//! Limits of watchers: of the kernel's queue and watches, of slow clients, of their number, and of their age.

use std::{fs, io::Read as _, process::Command};

use serde_json::{Value, json};

use crate::{
    client::{Envd, eventually, resident},
    watch::{shown, until, watch},
};

fn create(envd: &Envd, request: &Value) -> (u16, Value) {
    envd.unary("filesystem.Filesystem/CreateWatcher", request)
}

fn poll(envd: &Envd, id: &Value) -> (u16, Value) {
    envd.unary("filesystem.Filesystem/GetWatcherEvents", &json!({"watcherId": id}))
}

/// Makes and removes files with long names, so that the sockets hold few of their events.
fn churn(dir: &std::path::Path, files: usize) {
    let name = |i: usize| dir.join(format!("{i:0200}"));
    for i in 0..files {
        fs::write(name(i), "").unwrap();
        fs::remove_file(name(i)).unwrap();
    }
}

#[test]
fn a_client_that_does_not_read_takes_no_memory_and_is_told_what_it_missed() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    churn(dir.path(), 1000);
    let before = resident(&envd);
    churn(dir.path(), 60_000);
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more are resident");
    // A directory that is made while the queue is full: its own event is lost.
    fs::create_dir(dir.path().join("unseen")).unwrap();
    let mut changes = 0;
    loop {
        let (flag, message) = events.next();
        assert_eq!(flag, 0, "{message}");
        if message["overflow"].is_object() {
            break;
        }
        changes += 1;
    }
    assert!(changes < 2 * 61_000, "all were reported, so the queue did not overflow");
    // From then on it is complete again, also in what was not reported.
    fs::write(dir.path().join("unseen/file"), "").unwrap();
    until(&mut events, "unseen/file", "CREATE");
}

#[test]
fn events_kept_for_a_client_that_polls_have_a_bound() {
    let envd = Envd::start_with(&["--watched-events", "100"]);
    let dir = tempfile::tempdir().unwrap();
    let id = create(&envd, &json!({"path": dir.path()})).1["watcherId"].clone();
    churn(dir.path(), 1000);
    fs::write(dir.path().join("end"), "").unwrap();
    let answers = std::sync::Mutex::new(Vec::new());
    eventually("the last event is there", || {
        let (status, body) = poll(&envd, &id);
        assert_eq!(status, 200);
        let events = body["events"].as_array().cloned().unwrap_or_default();
        assert!(events.len() <= 100);
        let mut answers = answers.lock().unwrap();
        answers.push(body["overflow"] == json!(true));
        events.iter().any(|event| shown(event) == ("end".into(), "CREATE".into()))
    });
    assert!(answers.into_inner().unwrap().contains(&true));
    // It is told once.
    fs::write(dir.path().join("more"), "").unwrap();
    eventually("it goes on", || {
        let body = poll(&envd, &id).1;
        assert!(body["overflow"].is_null());
        body["events"][0]["name"] == "more"
    });
}

#[test]
fn only_so_many_watchers_are_open_at_a_time() {
    let envd = Envd::start_with(&["--watchers", "3"]);
    let dir = tempfile::tempdir().unwrap();
    let request = json!({"path": dir.path()});
    let stream = watch(&envd, &request);
    let ids =
        [create(&envd, &request).1["watcherId"].clone(), create(&envd, &request).1["watcherId"].clone()];
    let (status, body) = create(&envd, &request);
    assert_eq!((status, &body["code"]), (429, &json!("resource_exhausted")), "{body}");
    let mut refused = envd.stream_of("filesystem.Filesystem/WatchDir", &[], &request);
    assert_eq!(refused.next().1["error"]["code"], "resource_exhausted");
    // Each that ends leaves its place.
    let remove = json!({"watcherId": ids[0]});
    assert_eq!(envd.unary("filesystem.Filesystem/RemoveWatcher", &remove).0, 200);
    eventually("a place is free", || create(&envd, &request).0 == 200);
    assert_eq!(create(&envd, &request).0, 429);
    drop(stream);
    eventually("another one too", || create(&envd, &request).0 == 200);
    let instances = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", envd.child.id())).unwrap();
        let links = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().contains("inotify")).count()
    };
    assert_eq!(instances(), 3);
}

#[test]
fn a_watcher_that_nobody_polls_is_removed() {
    let envd = Envd::start_with(&["--watcher-idle", "2", "--watchers", "2"]);
    let dir = tempfile::tempdir().unwrap();
    let request = json!({"path": dir.path()});
    let (idle, used) =
        (create(&envd, &request).1["watcherId"].clone(), create(&envd, &request).1["watcherId"].clone());
    // The one that is polled stays.
    eventually("the idle one leaves its place", || {
        assert_eq!(poll(&envd, &used).0, 200);
        create(&envd, &request).0 == 200
    });
    let (status, body) = poll(&envd, &idle);
    assert_eq!((status, &body["code"]), (404, &json!("not_found")));
    assert!(body["message"].as_str().unwrap().contains("2 s"), "{body}");
    assert_eq!(poll(&envd, &used).0, 200);
}

/// Limits of the kernel are those of a user namespace here, so that other tests keep theirs.
fn limited(setting: &str, value: u32) -> Envd {
    let mut command = Command::new("unshare");
    let script = format!("echo {value} > /proc/sys/user/{setting} && exec \"$0\" --port 0");
    command.args(["--user", "--map-root-user", "sh", "-c", &script, env!("CARGO_BIN_EXE_envd")]);
    Envd::spawn(command)
}

#[test]
fn the_limit_of_watches_is_told_with_its_remedy() {
    let envd = limited("max_inotify_watches", 100);
    let dir = tempfile::tempdir().unwrap();
    let request = json!({"path": dir.path(), "recursive": true});
    let mut events = watch(&envd, &request);
    for i in 0..150 {
        fs::create_dir(dir.path().join(format!("{i}"))).unwrap();
    }
    // One that watched only some of them would be silent about the rest.
    let ended = loop {
        let (flag, message) = events.next();
        if flag == 2 {
            break message["error"].clone();
        }
    };
    assert_eq!(ended["code"], "resource_exhausted");
    assert!(ended["message"].as_str().unwrap().contains("fs.inotify.max_user_watches (now "), "{ended}");
    let (status, body) = create(&envd, &request);
    assert_eq!((status, &body["code"]), (429, &json!("resource_exhausted")));
    // What it did watch is free again.
    eventually("the watches are given back", || create(&envd, &json!({"path": dir.path()})).0 == 200);
}

#[test]
fn the_limit_of_instances_is_told_with_its_remedy() {
    let envd = limited("max_inotify_instances", 1);
    let dir = tempfile::tempdir().unwrap();
    let _events = watch(&envd, &json!({"path": dir.path()}));
    let (status, body) = create(&envd, &json!({"path": dir.path()}));
    assert_eq!((status, &body["code"]), (429, &json!("resource_exhausted")));
    assert!(body["message"].as_str().unwrap().contains("fs.inotify.max_user_instances"), "{body}");
}

/// A large tree that appears at once: all of it is reported, or the client is told.
#[test]
fn a_large_tree_is_reported_or_an_overflow_is() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    let script = "cd \"$0\"; for i in $(seq 300); do mkdir -p d$i/e; for j in $(seq 40); do : > d$i/e/$j; done; done; : > end";
    assert!(Command::new("sh").args(["-c", script]).arg(dir.path()).status().unwrap().success());
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 300 * 42 + 1 {
        let (flag, message) = events.next();
        assert_eq!(flag, 0, "{message}");
        if message["overflow"].is_object() {
            return;
        }
        seen.insert(shown(&message["filesystem"]).0);
    }
    let mut rest = [0];
    events.reader.get_ref().set_nonblocking(true).unwrap();
    assert!(events.reader.get_ref().read(&mut rest).is_err(), "nothing more");
}
