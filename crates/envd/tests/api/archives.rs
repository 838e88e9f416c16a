// SPDX-License-Identifier: Apache-2.0
//! Directories as archives over plain HTTP, and the rights that files get.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink},
    path::Path,
};

use serde_json::json;

use crate::client::{Envd, eventually, resident};

fn url(path: &Path, more: &str) -> String {
    format!("/files/archive?path={}{more}", path.display())
}

#[test]
fn a_directory_comes_back_as_it_was_and_memory_stays_small() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("new/to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/large"), vec![7; 48 << 20]).unwrap();
    fs::write(from.join("tool"), "content").unwrap();
    fs::set_permissions(from.join("tool"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("sub/large", from.join("link")).unwrap();
    let before = resident(&envd);
    let answer = envd.answer("GET", &url(&from, ""), &[], b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-tar")));
    let (status, told) = envd.http("PUT", &url(&to, ""), &[], &answer.body);
    assert_eq!(
        (status, serde_json::from_slice(&told).ok()),
        (200, Some(json!({"entries": 5, "bytes": (48 << 20) + 7})))
    );
    assert!(fs::read(to.join("sub/large")).unwrap() == vec![7; 48 << 20]);
    assert_eq!(fs::metadata(to.join("tool")).unwrap().mode() & 0o777, 0o751);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/large"));
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more are resident");
}

#[test]
fn what_cannot_be_packed_or_unpacked_is_named() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let told = |method: &str, path: &Path, body: &[u8]| {
        let (status, body) = envd.http(method, &url(path, ""), &[], body);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body["reason"].as_str().unwrap_or_default().to_owned(), body["message"].to_string())
    };
    let (status, reason, message) = told("GET", &dir.path().join("file"), b"");
    assert_eq!((status, reason.as_str()), (400, "not_a_directory"), "{message}");
    assert_eq!(told("GET", &dir.path().join("none"), b"").0, 404);
    let (status, _, message) = told("GET", Path::new("/dev"), b"");
    assert!(status == 400 && message.contains("device"), "{message}");
    assert_eq!(told("PUT", &dir.path().join("file"), &[0; 1024]).1, "not_a_directory");
    let (status, _, message) = told("PUT", &dir.path().join("new"), b"no archive");
    assert!(status == 400 && message.contains("archive"), "{message}");
    // One that breaks off leaves no half file.
    let whole = envd.answer("GET", &url(dir.path(), ""), &[], b"").body;
    let half = dir.path().join("half");
    let mut stream = envd.start_sending("PUT", &url(&half, ""), &[], whole.len());
    stream.write_all(&whole[..whole.len() / 2]).unwrap();
    eventually("it has begun", || half.is_dir());
    drop(stream);
    let files = || {
        fs::read_dir(&half)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains("wrenn"))
            .count()
    };
    eventually("its temporary file is removed", || files() == 0);
}

/// Numbers of user and group of a path, not of what a link leads to.
fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[test]
fn an_archive_is_unpacked_for_the_owner_that_is_named() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let (from, above) = (dir.path().join("from"), dir.path().join("above"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/tool"), "content").unwrap();
    fs::set_permissions(from.join("sub/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("sub/tool", from.join("link")).unwrap();
    let archive = envd.answer("GET", &url(&from, "&username=root"), &[], b"").body;
    fs::create_dir(&above).unwrap();
    chown(&above, Some(7), Some(8)).unwrap();
    let to = above.join("new/to");
    let put = |more: &str| envd.http("PUT", &url(&to, more), &[], &archive).0;
    assert_eq!(put("&username=root&owner=3&group=4"), 200);
    assert_eq!(owner(&above), (7, 8), "it was there");
    for made in ["..", ".", "sub", "sub/tool", "link"] {
        assert_eq!(owner(&to.join(made)), (3, 4), "{made}");
    }
    assert_eq!(fs::metadata(to.join("sub/tool")).unwrap().mode() & 0o7777, 0o4755);
    // What is replaced has the new owner, and a directory keeps its own. A user brings its group.
    chown(to.join("sub"), Some(7), Some(8)).unwrap();
    lchown(to.join("link"), Some(7), Some(8)).unwrap();
    assert_eq!(put("&username=root&owner=nobody"), 200);
    let nobody = (65534, 65534);
    assert_eq!(["sub", "sub/tool", "link"].map(|name| owner(&to.join(name))), [(7, 8), nobody, nobody]);
    assert_eq!(put("&username=root&group=4"), 200);
    assert_eq!(owner(&to.join("link")), (0, 4));
    // A number that nobody has.
    assert_eq!(put("&username=root&owner=4242"), 200);
    assert_eq!(owner(&to.join("link")), (4242, 4242));
}

#[test]
fn an_owner_that_cannot_be_given_is_refused_before_anything_is_written() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let archive = envd.answer("GET", &url(dir.path(), ""), &[], b"").body;
    let to = dir.path().join("to");
    let put = |more: &str| {
        let (status, told) = envd.http("PUT", &url(&to, more), &[], &archive);
        (status, String::from_utf8_lossy(&told).into_owned())
    };
    let names = ["owner=no-such-user", "group=no-such-group"];
    for unknown in names.into_iter().chain(["owner=4294967295", "owner=0&group=4294967295"]) {
        let (status, told) = put(&format!("&username=root&{unknown}"));
        assert!(status == 400 && told.contains('\''), "{unknown}: {status} {told}");
    }
    for others in ["owner=root", "owner=nobody&group=0", "group=0"] {
        let (status, told) = put(&format!("&username=nobody&{others}"));
        assert!(status == 403 && told.contains("only root"), "{others}: {status} {told}");
    }
    assert!(!to.exists());
    assert_eq!(put("&username=nobody&owner=nobody").0, 200);
    assert_eq!((owner(&to), owner(&to.join("file"))), ((65534, 65534), (65534, 65534)));
}

#[test]
fn rights_are_given_and_need_the_token() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let octets = ("content-type", "application/octet-stream");
    let place = |more: &str| format!("/files?path={}&atomic=true{more}", file.display());
    assert_eq!(envd.http("POST", &place("&mode=2750&group=2"), &[octets], b"1").0, 200);
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2750, 2));
    assert_eq!(envd.http("POST", &place(""), &[octets], b"2").0, 200);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o2750, "it is not kept");
    for wrong in ["&mode=8", "&mode=77777", "&owner=nobody-at-all"] {
        assert_eq!(envd.http("POST", &place(wrong), &[octets], b"3").0, 400, "{wrong}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"2");
}
