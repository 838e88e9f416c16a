// SPDX-License-Identifier: Apache-2.0
//! Metadata of files: given with uploads, kept as extended attributes, shown by all that describes a file.

use std::{fs, path::Path};

use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use serde_json::{Value, json};

use crate::client::Envd;

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=B");

fn url(path: &Path, more: &str) -> String {
    format!("/files?path={}{more}", path.display())
}

fn stat(envd: &Envd, path: &Path) -> Value {
    let (status, body) = envd.unary("filesystem.Filesystem/Stat", &json!({"path": path}));
    assert_eq!(status, 200, "{body}");
    body["entry"]["metadata"].clone()
}

#[test]
fn metadata_of_an_upload_is_shown_kept_by_a_rename_and_replaced_by_the_next_upload() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for way in ["", "&atomic=true"] {
        let headers = [OCTETS, ("X-Metadata-Author", "mish"), ("x-metadata-PURPOSE", "a test; of ~")];
        let written = envd.answer("POST", &url(&file, way), &headers, b"content");
        let wanted = json!({"author": "mish", "purpose": "a test; of ~"});
        assert_eq!((written.status, &written.json()[0]["metadata"]), (200, &wanted), "{way}");
        let mut value = [0; 64];
        let length = getxattr(&file, "user.e2b.author", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"mish");
        assert_eq!(stat(&envd, &file), wanted);
        let list = envd.unary("filesystem.Filesystem/ListDir", &json!({"path": dir.path()})).1;
        assert_eq!(list["entries"][0]["metadata"], wanted);
        let moved = dir.path().join("moved");
        let request = json!({"source": file, "destination": moved});
        let (status, body) = envd.unary("filesystem.Filesystem/Move", &request);
        assert_eq!((status, &body["entry"]["metadata"]), (200, &wanted));
        fs::rename(&moved, &file).unwrap();
        // Keys that are not given again go, and others' attributes stay.
        setxattr(&file, "user.other", b"x", XattrFlags::empty()).unwrap();
        let headers = [OCTETS, ("x-metadata-author", "ann")];
        assert_eq!(envd.http("POST", &url(&file, ""), &headers, b"more").0, 200);
        assert_eq!(stat(&envd, &file), json!({"author": "ann"}));
        let written = envd.answer("POST", &url(&file, ""), &[OCTETS], b"less");
        assert_eq!(written.json()[0], json!({"name": "file", "path": file, "type": "file"}));
        assert!(stat(&envd, &file).is_null());
        let mut names = [0; 256];
        let length = listxattr(&file, &mut names[..]).unwrap();
        assert!(String::from_utf8_lossy(&names[..length]).contains("user.other\0"));
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn all_files_of_a_form_get_the_same_metadata() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let part = |name: &str| {
        let path = dir.path().join(name);
        format!(
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\r\n{name}\r\n",
            path.display()
        )
    };
    let form = [part("one"), part("two"), "--B--\r\n".into()].concat();
    let written = envd.answer("POST", "/files", &[FORM, ("x-metadata-k", "v")], form.as_bytes());
    assert_eq!(written.status, 200);
    for (index, name) in ["one", "two"].iter().enumerate() {
        assert_eq!(written.json()[index]["metadata"], json!({"k": "v"}));
        assert_eq!(stat(&envd, &dir.path().join(name)), json!({"k": "v"}));
    }
}

#[test]
fn invalid_metadata_is_refused_before_anything_is_written() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "before").unwrap();
    let (long, large) = (format!("x-metadata-{}", "k".repeat(247)), "v".repeat(4096));
    for header in
        [("x-metadata-a", "tab\there"), ("x-metadata-a", "é"), (&*long, "v"), ("x-metadata-a", &*large)]
    {
        let (status, body) = envd.http("POST", &url(&file, ""), &[OCTETS, header], b"after");
        assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
        assert_eq!(fs::read(&file).unwrap(), b"before");
    }
}

#[test]
fn what_a_program_in_the_guest_sets_is_shown() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::symlink("file", &link).unwrap();
    setxattr(&file, "user.e2b.set", "in the guest é".as_bytes(), XattrFlags::empty()).unwrap();
    setxattr(dir.path(), "user.e2b.kind", b"directory", XattrFlags::empty()).unwrap();
    assert_eq!(stat(&envd, &file), json!({"set": "in the guest é"}));
    assert_eq!(stat(&envd, &link), json!({"set": "in the guest é"}));
    assert_eq!(stat(&envd, dir.path()), json!({"kind": "directory"}));
    // A file system without attributes is none that cannot be written.
    let written =
        envd.answer("POST", "/files?path=/proc/self/comm", &[OCTETS, ("x-metadata-a", "1")], b"envd");
    assert!(written.status != 500, "{}", String::from_utf8_lossy(&written.body));
}
