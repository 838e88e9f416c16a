// SPDX-License-Identifier: Apache-2.0
//! `/files/compose`, and what forms and content types are taken.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde_json::{Value, json};

use crate::client::Envd;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const FORM: [(&str, &str); 1] = [("content-type", "multipart/form-data; boundary=B")];

fn compose(envd: &Envd, request: &Value) -> (u16, Value) {
    let answer = envd.answer("POST", "/files/compose", &JSON, request.to_string().as_bytes());
    (answer.status, answer.json())
}

fn part(name: &str, path: &Path, content: &str) -> String {
    let path = path.display();
    format!(
        "--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{path}\"\r\n\r\n{content}\r\n"
    )
}

#[test]
fn parts_are_joined_in_order_and_removed() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let contents: Vec<Vec<u8>> = (0..5_u8).map(|i| vec![i; 1_000_000 + usize::from(i)]).collect();
    let sources: Vec<_> = (0..5).map(|i| path(&format!("part{i}"))).collect();
    for (source, content) in sources.iter().zip(&contents) {
        fs::write(source, content).unwrap();
    }
    let request = json!({"source_paths": sources, "destination": path("new/whole"), "username": "nobody"});
    let (status, entry) = compose(&envd, &request);
    assert_eq!((status, &entry), (200, &json!({"name": "whole", "path": path("new/whole"), "type": "file"})));
    assert!(fs::read(path("new/whole")).unwrap() == contents.concat());
    let meta = fs::metadata(path("new/whole")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (65534, 0o644));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the parts are removed");
}

#[test]
fn what_cannot_be_joined_changes_nothing() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("part"), "part").unwrap();
    fs::write(path("whole"), "before").unwrap();
    fs::hard_link(path("whole"), path("same")).unwrap();
    for (sources, destination, wanted) in [
        (vec![path("part"), path("absent")], path("whole"), 404),
        (vec![path("part"), dir.path().to_owned()], path("whole"), 400),
        (vec![path("part"), path("whole")], path("whole"), 400),
        (vec![path("part"), path("same")], path("whole"), 400),
        (vec![], path("whole"), 400),
        (vec![path("part")], "".into(), 400),
        (vec![path("part")], dir.path().to_owned(), 400),
    ] {
        let (status, body) = compose(&envd, &json!({"source_paths": sources, "destination": destination}));
        assert_eq!(status, wanted, "{sources:?} {body}");
        assert_eq!(body["code"], wanted);
    }
    let request = json!({"source_paths": [path("part")], "destination": path("x"), "username": "nosuchuser"});
    assert_eq!(compose(&envd, &request).0, 401);
    assert_eq!(envd.http("POST", "/files/compose", &JSON, b"{").0, 400);
    assert_eq!(fs::read(path("whole")).unwrap(), b"before");
    assert_eq!(fs::read(path("part")).unwrap(), b"part");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    let settings = json!({"accessToken": "secret"}).to_string();
    assert_eq!(envd.http("POST", "/init", &JSON, settings.as_bytes()).0, 204);
    assert_eq!(compose(&envd, &json!({"source_paths": [path("part")], "destination": path("x")})).0, 401);
}

#[test]
fn a_form_without_files_writes_none_and_one_path_twice_is_an_error() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let other = [part("other", &file, "x"), "--B--\r\n".into()].concat();
    let empty = "--B--\r\n";
    for form in [&*other, empty] {
        let answer = envd.answer("POST", "/files", &FORM, form.as_bytes());
        assert_eq!((answer.status, answer.json()), (200, json!([])), "{form}");
    }
    assert!(!file.exists());
    let twice = [
        part("file", &file, "first"),
        part("file", &dir.path().join("./file"), "second"),
        "--B--\r\n".into(),
    ];
    let answer = envd.answer("POST", "/files", &FORM, twice.concat().as_bytes());
    assert_eq!(answer.status, 400);
    assert_eq!(fs::read(&file).unwrap(), b"first");
    let both =
        [part("file", Path::new("a"), "first"), part("file", Path::new("b"), "second"), "--B--\r\n".into()];
    let url = format!("/files?path={}", file.display());
    assert_eq!(envd.http("POST", &url, &FORM, both.concat().as_bytes()).0, 400);
}

#[test]
fn other_content_types_are_refused() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let url = format!("/files?path={}", file.display());
    for kind in ["text/plain", "application/json", "multipart/mixed; boundary=B", ""] {
        let (status, body) = envd.http("POST", &url, &[("content-type", kind)], b"x");
        assert_eq!(status, 400, "{kind}: {}", String::from_utf8_lossy(&body));
    }
    assert!(!file.exists());
    for kind in ["application/octet-stream", "Application/Octet-Stream; x=y"] {
        assert_eq!(envd.http("POST", &url, &[("content-type", kind)], b"x").0, 200, "{kind}");
    }
    // A path is needed, and an empty one is a directory.
    assert_eq!(envd.http("POST", "/files", &[("content-type", "application/octet-stream")], b"x").0, 400);
    assert_eq!(
        envd.http("POST", "/files?path=", &[("content-type", "application/octet-stream")], b"x").0,
        400
    );
}
