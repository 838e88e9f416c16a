// SPDX-License-Identifier: Apache-2.0
//! Watched directories: what is reported, and how a watch ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Command,
    sync::Mutex,
};

use serde_json::{Value, json};

use crate::{
    client::{Envd, Events, eventually},
    fuse,
};

/// A stream of a watched directory, after its start.
pub(crate) fn watch(envd: &Envd, request: &Value) -> Events {
    let mut events = envd.stream_of("filesystem.Filesystem/WatchDir", &[], request);
    assert_eq!(events.next().1, json!({"start": {}}));
    events
}

/// Name and kind of an event.
pub(crate) fn shown(event: &Value) -> (String, String) {
    let kind = event["type"].as_str().unwrap_or_default().trim_start_matches("EVENT_TYPE_");
    (event["name"].as_str().unwrap_or_default().into(), kind.into())
}

/// Reads changes until one of them is this one; returns all.
pub(crate) fn until(events: &mut Events, name: &str, kind: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    loop {
        let (flag, message) = events.next();
        assert!(flag == 0 && message["filesystem"].is_object(), "{message} after {all:?}");
        all.push(shown(&message["filesystem"]));
        if all.last().is_some_and(|(n, k)| n == name && k == kind) {
            return all;
        }
    }
}

fn error(events: &mut Events) -> Value {
    let (flag, message) = events.next();
    assert_eq!(flag, 2, "{message}");
    message["error"].clone()
}

fn create(envd: &Envd, request: &Value) -> String {
    let (status, body) = envd.unary("filesystem.Filesystem/CreateWatcher", request);
    assert_eq!(status, 200, "{body}");
    body["watcherId"].as_str().unwrap().into()
}

fn poll(envd: &Envd, id: &str) -> (u16, Value) {
    envd.unary("filesystem.Filesystem/GetWatcherEvents", &json!({"watcherId": id}))
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, kind)| ((*name).into(), (*kind).into())).collect()
}

/// Number of directories that the kernel watches for envd.
fn watches(envd: &Envd) -> usize {
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", envd.child.id())).unwrap();
    let texts = infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
    texts.map(|text| text.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum()
}

#[test]
fn each_kind_of_change_is_reported() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("sub")).unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path()}));
    fs::write(path("file"), "x").unwrap();
    fs::set_permissions(path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path("sub/not reported"), "x").unwrap();
    fs::rename(path("file"), path("other")).unwrap();
    fs::remove_file(path("other")).unwrap();
    symlink("nowhere", path("link")).unwrap();
    let wanted = pairs(&[
        ("file", "CREATE"),
        ("file", "WRITE"),
        ("file", "CHMOD"),
        ("file", "RENAME"),
        ("other", "CREATE"),
        ("other", "REMOVE"),
        ("link", "CREATE"),
    ]);
    assert_eq!(until(&mut events, "link", "CREATE"), wanted);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(until(&mut events, ".", "CHMOD"), pairs(&[(".", "CHMOD")]));
}

/// The first files are made before the kernel's event of their directory can have been handled.
#[test]
fn nothing_that_is_made_in_new_directories_is_missed() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let request = json!({"path": dir.path(), "recursive": true});
    let mut events = watch(&envd, &request);
    let id = create(&envd, &request);
    let script = "cd \"$0\"; for i in $(seq 1000); do mkdir -p $i/a/b/c; : > $i/a/b/c/f; done; : > end";
    assert!(Command::new("sh").args(["-c", script]).arg(dir.path()).status().unwrap().success());
    let mut wanted = BTreeMap::new();
    for i in 1..=1000 {
        for name in ["", "/a", "/a/b", "/a/b/c", "/a/b/c/f"] {
            wanted.insert(format!("{i}{name}"), 1);
        }
    }
    wanted.insert("end".into(), 1);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    // The last directories may be read after the last file of the top is reported.
    while seen.len() < wanted.len() {
        let (_, message) = events.next();
        let (name, kind) = shown(&message["filesystem"]);
        assert_eq!(kind, "CREATE", "{message}");
        *seen.entry(name).or_default() += 1;
    }
    assert!(seen == wanted, "each once");
    let polled = Mutex::new(BTreeMap::<String, u32>::new());
    eventually("all are kept for the client that polls", || {
        let (status, body) = poll(&envd, &id);
        assert!(status == 200 && body["overflow"].is_null(), "{body}");
        let mut polled = polled.lock().unwrap();
        for event in body["events"].as_array().into_iter().flatten() {
            *polled.entry(shown(event).0).or_default() += 1;
        }
        polled.len() >= wanted.len()
    });
    assert!(polled.into_inner().unwrap() == wanted, "each once");
}

#[test]
fn content_of_new_directories_is_reported_as_written() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    for i in 0..100 {
        let new = dir.path().join(format!("{i}"));
        fs::create_dir(&new).unwrap();
        fs::write(new.join("file"), "content").unwrap();
        let all = until(&mut events, &format!("{i}/file"), "WRITE");
        assert!(all.contains(&(format!("{i}"), "CREATE".into())) || i > 0, "{all:?}");
    }
}

/// Clients wait for a file that they write to be reported as written, by its name.
#[test]
fn uploads_are_reported_as_created_and_written() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    let headers = [("content-type", "application/octet-stream")];
    // A new file, one that exists, and one in new directories.
    for name in ["file", "file", "new/sub/file"] {
        let url = format!("/files?path={}/{name}", dir.path().display());
        assert_eq!(envd.http("POST", &url, &headers, b"content").0, 200);
        let all = until(&mut events, name, "WRITE");
        assert!(all.iter().all(|(other, _)| !other.contains(".envd-")), "no temporary name: {all:?}");
    }
}

#[test]
fn trees_that_move_are_followed() {
    let envd = Envd::start();
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("a/deep")).unwrap();
    fs::create_dir_all(outside.path().join("tree/deep")).unwrap();
    fs::write(outside.path().join("tree/deep/file"), "x").unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    // Into it: with all that is in it.
    fs::rename(outside.path().join("tree"), path("tree")).unwrap();
    let all = until(&mut events, "tree/deep/file", "WRITE");
    let wanted = [
        ("tree", "CREATE"),
        ("tree/deep", "CREATE"),
        ("tree/deep/file", "CREATE"),
        ("tree/deep/file", "WRITE"),
    ];
    assert_eq!(all, pairs(&wanted));
    fs::write(path("tree/deep/later"), "").unwrap();
    until(&mut events, "tree/deep/later", "CREATE");
    // Within it: known by the new name at once.
    fs::rename(path("tree"), path("a/moved")).unwrap();
    fs::write(path("a/moved/deep/file"), "again").unwrap();
    let all = until(&mut events, "a/moved/deep/file", "WRITE");
    assert!(all.starts_with(&pairs(&[("tree", "RENAME"), ("a/moved", "CREATE")])), "{all:?}");
    fs::create_dir(path("a/moved/deep/new")).unwrap();
    fs::write(path("a/moved/deep/new/file"), "").unwrap();
    until(&mut events, "a/moved/deep/new/file", "CREATE");
    // A directory of the old name is another one.
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/file"), "").unwrap();
    until(&mut events, "tree/file", "CREATE");
    // Out of it: nothing more is reported of it.
    fs::rename(path("a"), outside.path().join("a")).unwrap();
    until(&mut events, "a", "RENAME");
    fs::write(outside.path().join("a/moved/deep/unseen"), "").unwrap();
    fs::write(path("end"), "").unwrap();
    assert_eq!(until(&mut events, "end", "CREATE"), pairs(&[("end", "CREATE")]));
    eventually("what has left is not watched any more", || watches(&envd) == 2);
    // And into it again.
    fs::rename(outside.path().join("a"), path("b")).unwrap();
    until(&mut events, "b/moved/deep/unseen", "CREATE");
    fs::remove_dir_all(path("b")).unwrap();
    until(&mut events, "b", "REMOVE");
}

#[test]
fn random_changes_lead_to_what_is_there() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path(), "recursive": true}));
    // Renames of directories into each other and back, while files are made in them.
    let script = r#"cd "$0"; mkdir p q
        for i in $(seq 200); do
            mkdir -p p/d$i/e; : > p/d$i/e/f$i; mv p/d$i q/d$i; : > q/d$i/g$i
            mv q/d$i/e p/e$i; : > p/e$i/h$i; mv q/d$i p/e$i/d; : > p/e$i/d/i$i
            if [ $((i % 3)) = 0 ]; then rm -r p/e$i; fi
        done; : > end"#;
    assert!(Command::new("sh").args(["-c", script]).arg(dir.path()).status().unwrap().success());
    // A client that follows the events.
    let mut known = BTreeSet::new();
    let real =
        Command::new("find").arg(dir.path()).args(["-mindepth", "1", "-printf", "%P\\n"]).output().unwrap();
    let real: BTreeSet<String> = String::from_utf8(real.stdout).unwrap().lines().map(Into::into).collect();
    let mut count = 0;
    while known != real {
        let (flag, message) = events.next();
        count += 1;
        assert!(
            flag == 0 && count < 100_000,
            "{message}; missing {:?}",
            real.difference(&known).take(5).collect::<Vec<_>>()
        );
        let (name, kind) = shown(&message["filesystem"]);
        match kind.as_str() {
            "CREATE" => drop(known.insert(name)),
            "REMOVE" | "RENAME" => known.retain(|k| *k != name && !k.starts_with(&format!("{name}/"))),
            _ => {}
        }
    }
}

#[test]
fn entries_are_included_on_request() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let request = json!({"path": dir.path(), "includeEntry": true});
    let mut events = watch(&envd, &request);
    let id = create(&envd, &request);
    let file = dir.path().join("file");
    let headers = [("content-type", "application/octet-stream"), ("x-metadata-k", "v")];
    let url = format!("/files?path={}&atomic=true", file.display());
    assert_eq!(envd.http("POST", &url, &headers, b"content").0, 200);
    let entry = loop {
        let message = events.next().1;
        if message["filesystem"]["name"] == "file" {
            break message["filesystem"]["entry"].clone();
        }
    };
    assert_eq!((&entry["path"], &entry["size"]), (&json!(file), &json!("7")));
    assert_eq!((&entry["type"], &entry["metadata"]), (&json!("FILE_TYPE_FILE"), &json!({"k": "v"})));
    fs::remove_file(&file).unwrap();
    loop {
        let message = events.next().1;
        if shown(&message["filesystem"]) == ("file".into(), "REMOVE".into()) {
            assert!(message["filesystem"]["entry"].is_null());
            break;
        }
    }
    let kept = Mutex::new(Vec::new());
    eventually("the events are kept", || {
        let mut kept = kept.lock().unwrap();
        kept.extend(poll(&envd, &id).1["events"].as_array().into_iter().flatten().cloned());
        kept.iter().any(|event| shown(event) == ("file".into(), "REMOVE".into()))
    });
    let kept = kept.into_inner().unwrap();
    let made = kept.iter().find(|event| shown(event) == ("file".into(), "CREATE".into())).unwrap();
    assert!(made["entry"].is_null() || made["entry"]["path"] == json!(file));
    // Without the request there is none.
    let mut events = watch(&envd, &json!({"path": dir.path()}));
    fs::write(&file, "").unwrap();
    assert!(events.next().1["filesystem"]["entry"].is_null());
}

#[test]
fn a_watch_ends_with_its_directory() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for recursive in [false, true] {
        for (name, kind) in [("removed", "REMOVE"), ("moved", "RENAME")] {
            fs::create_dir(path(name)).unwrap();
            let request = json!({"path": path(name), "recursive": recursive});
            let mut events = watch(&envd, &request);
            let id = create(&envd, &request);
            fs::write(path(name).join("file"), "").unwrap();
            if kind == "REMOVE" {
                fs::remove_dir_all(path(name)).unwrap();
            } else {
                fs::rename(path(name), path("elsewhere")).unwrap();
            }
            let all = until(&mut events, ".", kind);
            assert_eq!(all[0], ("file".into(), "CREATE".into()));
            let ended = error(&mut events);
            assert_eq!(ended["code"], "not_found");
            assert!(ended["message"].as_str().unwrap().contains(name), "{ended}");
            // A client that polls gets what there was, and then the reason.
            let last = Mutex::new((0, Value::Null));
            let kinds = Mutex::new(Vec::new());
            eventually("the watcher has ended", || {
                let answer = poll(&envd, &id);
                let events = answer.1["events"].as_array().cloned().unwrap_or_default();
                kinds.lock().unwrap().extend(events.iter().map(shown));
                *last.lock().unwrap() = answer;
                last.lock().unwrap().0 == 404
            });
            assert_eq!(kinds.lock().unwrap().last().unwrap(), &(".".into(), kind.into()));
            let (_, body) = last.into_inner().unwrap();
            assert!(body["message"].as_str().unwrap().contains(name), "{body}");
            let request = json!({"watcherId": id});
            assert_eq!(envd.unary("filesystem.Filesystem/RemoveWatcher", &request), (200, json!({})));
            let _ = fs::remove_dir_all(path("elsewhere"));
        }
    }
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, wanted) in [(dir.path().join("absent"), "not_found"), (file, "invalid_argument")] {
        let request = json!({"path": path});
        let mut events = envd.stream_of("filesystem.Filesystem/WatchDir", &[], &request);
        assert_eq!(error(&mut events)["code"], wanted);
        let (_, body) = envd.unary("filesystem.Filesystem/CreateWatcher", &request);
        assert_eq!(body["code"], wanted);
    }
    // A link to a directory, and the empty path, lead to one.
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let mut events = watch(&envd, &json!({"path": dir.path().join("link")}));
    fs::write(dir.path().join("new"), "").unwrap();
    until(&mut events, "new", "CREATE");
    watch(&envd, &json!({"path": ""}));
}

/// FUSE is the network file system that can be mounted without a network. This test answers the kernel itself.
#[test]
fn network_file_systems_are_watched_only_on_request() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let _mounted = fuse::mount(dir.path(), true);
    let request = json!({"path": dir.path()});
    let mut events = envd.stream_of("filesystem.Filesystem/WatchDir", &[], &request);
    let refused = error(&mut events);
    assert_eq!(refused["code"], "invalid_argument");
    assert!(refused["message"].as_str().unwrap().contains("allowNetworkMounts"), "{refused}");
    let (status, body) = envd.unary("filesystem.Filesystem/CreateWatcher", &request);
    assert_eq!((status, &body["code"]), (400, &json!("invalid_argument")));
    let allowed = json!({"path": dir.path(), "allowNetworkMounts": true});
    watch(&envd, &allowed);
    create(&envd, &allowed);
    // Those below a watched directory are left out, also if root cannot read them, and do not stop the rest.
    let above = tempfile::tempdir().unwrap();
    let path = |name: &str| above.path().join(name);
    for (name, for_all) in [("open", true), ("closed", false)] {
        fs::create_dir(path(name)).unwrap();
        let _mounted = fuse::mount(&path(name), for_all);
        let mut events = watch(&envd, &json!({"path": above.path(), "recursive": true}));
        fs::write(path(&format!("{name} file")), "").unwrap();
        until(&mut events, &format!("{name} file"), "CREATE");
    }
}

#[test]
fn keepalives_come_as_often_as_asked_and_the_deadline_ends_the_watch() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let headers = [("keepalive-ping-interval", "1"), ("connect-timeout-ms", "3500")];
    let begin = std::time::Instant::now();
    let mut events = envd.stream_of("filesystem.Filesystem/WatchDir", &headers, &json!({"path": dir.path()}));
    assert_eq!(events.next().1, json!({"start": {}}));
    assert_eq!(events.next().1, json!({"keepalive": {}}));
    fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(shown(&events.next().1["filesystem"]), ("file".into(), "CREATE".into()));
    assert_eq!(events.next().1, json!({"keepalive": {}}));
    let ended = loop {
        let (flag, message) = events.next();
        if flag == 2 {
            break message;
        }
        assert_eq!(message, json!({"keepalive": {}}));
    };
    assert_eq!(ended["error"]["code"], "deadline_exceeded");
    assert!(begin.elapsed().as_millis() >= 3500);
}

#[test]
fn watchers_need_the_token_and_their_id() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let id = create(&envd, &json!({"path": dir.path()}));
    let other = create(&envd, &json!({"path": dir.path()}));
    assert!(id != other && id.len() > 30);
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        let (status, body) =
            envd.unary(&format!("filesystem.Filesystem/{method}"), &json!({"watcherId": "wrong"}));
        assert_eq!((status, &body["code"]), (404, &json!("not_found")));
    }
    let remove = json!({"watcherId": id});
    assert_eq!(envd.unary("filesystem.Filesystem/RemoveWatcher", &remove).0, 200);
    assert_eq!(envd.unary("filesystem.Filesystem/RemoveWatcher", &remove).0, 404);
    assert_eq!(poll(&envd, &id).0, 404);
    fs::write(dir.path().join("file"), "").unwrap();
    eventually("the other one is there", || {
        let body = poll(&envd, &other).1;
        body["events"][0]["name"] == "file"
    });
    let settings = json!({"accessToken": "secret"}).to_string();
    let headers = [("content-type", "application/json")];
    assert_eq!(envd.http("POST", "/init", &headers, settings.as_bytes()).0, 204);
    assert_eq!(poll(&envd, &other).0, 401);
}
