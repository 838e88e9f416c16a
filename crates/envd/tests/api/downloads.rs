// SPDX-License-Identifier: Apache-2.0
//! Headers of downloads: type, name, version; and requests that depend on the version.

use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::json;

use crate::client::Envd;

fn url(path: &Path) -> String {
    format!("/files?path={}", path.display())
}

#[test]
fn a_download_tells_its_type_and_name() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    for (name, kind, shown) in [
        ("a.html", "text/html; charset=utf-8", "a.html"),
        ("b.png", "image/png", "b.png"),
        ("c.json", "application/json", "c.json"),
        ("noextension", "application/octet-stream", "noextension"),
        ("d'\"é.css", "text/css; charset=utf-8", "d%27%22%C3%A9.css"),
    ] {
        fs::write(dir.path().join(name), "x").unwrap();
        let url = format!("/files?path={}/{}", dir.path().display(), shown);
        let answer = envd.answer("GET", &url, &[], b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)));
        let wanted = format!("inline; filename*=UTF-8''{shown}");
        assert_eq!(answer.header("content-disposition"), Some(&*wanted));
    }
}

#[test]
fn a_client_that_has_the_file_is_told_so() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.txt");
    let write = |content: &str, time: u64| {
        fs::write(&file, content).unwrap();
        let file = fs::File::options().append(true).open(&file).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(time)).unwrap();
    };
    write("first", 784_111_777);
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let get = |headers: &[(&str, &str)]| envd.answer("GET", &url(&file), headers, b"");
    let first = get(&[]);
    assert_eq!(first.header("last-modified"), Some(date));
    let tag = first.header("etag").unwrap();
    for (name, value) in [("if-none-match", tag), ("if-none-match", "*"), ("if-modified-since", date)] {
        for accept in ["identity", "gzip"] {
            let held = get(&[(name, value), ("accept-encoding", accept)]);
            assert_eq!(
                (held.status, held.body.len(), held.header("last-modified")),
                (304, 0, Some(date)),
                "{name}"
            );
            assert!(held.header("etag").unwrap().contains(tag));
        }
    }
    // The tag of a gzipped answer is as good.
    let zipped = get(&[("accept-encoding", "gzip")]);
    assert_eq!(get(&[("if-none-match", zipped.header("etag").unwrap())]).status, 304);
    assert_eq!(get(&[("range", "bytes=1-2"), ("if-range", tag)]).body, b"ir");
    assert_eq!(get(&[("range", "bytes=1-2"), ("if-range", date)]).status, 206);

    write("other", 784_111_778);
    for (name, value) in [("if-none-match", tag), ("if-modified-since", date)] {
        let changed = get(&[(name, value)]);
        assert_eq!((changed.status, &*changed.body), (200, &b"other"[..]), "{name}");
    }
    // A part of another version would not fit to what the client has.
    let whole = get(&[("range", "bytes=1-2"), ("if-range", tag)]);
    assert_eq!((whole.status, &*whole.body), (200, &b"other"[..]));
    // What the kernel makes up has no version.
    let made_up = envd.answer("GET", "/files?path=/proc/version", &[("if-none-match", "*")], b"");
    assert_eq!((made_up.status, made_up.header("etag")), (200, None));
    // A time that HTTP cannot name.
    let file_itself = fs::File::options().append(true).open(&file).unwrap();
    file_itself.set_modified(UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    assert_eq!((get(&[]).status, get(&[]).header("last-modified")), (200, None));
}

#[test]
fn an_empty_path_is_the_working_directory_or_the_home() {
    let envd = Envd::start();
    let stat = || envd.unary("filesystem.Filesystem/Stat", &json!({"path": ""})).1["entry"]["path"].clone();
    let home = stat();
    assert_eq!(home, envd.unary("filesystem.Filesystem/Stat", &json!({"path": "~"})).1["entry"]["path"]);
    let (status, body) = envd.http("GET", "/files?path=", &[], b"");
    let told = String::from_utf8_lossy(&body).into_owned();
    assert!(status == 400 && told.contains(home.as_str().unwrap()) && told.contains("a directory"), "{told}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let settings = json!({"defaultWorkdir": dir.path()}).to_string();
    let headers = [("content-type", "application/json")];
    assert_eq!(envd.http("POST", "/init", &headers, settings.as_bytes()).0, 204);
    assert_eq!(stat(), json!(dir.path()));
    let list = envd.unary("filesystem.Filesystem/ListDir", &json!({})).1;
    assert_eq!(list["entries"][0]["path"], json!(dir.path().join("file")));
    // Relative paths begin at the home nevertheless.
    let (status, _) = envd.unary("filesystem.Filesystem/Stat", &json!({"path": "file"}));
    assert_eq!(status, 404);
    // What changes the file system wants to be told what.
    for (method, request) in [
        ("Remove", json!({"path": ""})),
        ("Move", json!({"source": "", "destination": "/tmp/x"})),
        ("Copy", json!({"source": "", "destination": "/tmp/x"})),
    ] {
        let (status, body) = envd.unary(&format!("filesystem.Filesystem/{method}"), &request);
        assert_eq!((status, &body["code"]), (400, &json!("invalid_argument")), "{method}");
    }
    assert!(dir.path().join("file").exists());
}
