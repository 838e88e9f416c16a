// SPDX-License-Identifier: Apache-2.0
//! The service filesystem.Filesystem: entries, directories, moves; and our extensions Copy, Chmod and Chown.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
};

use rustix::fs::{XattrFlags, setxattr};
use serde_json::{Value, json};

use crate::client::Envd;

fn call(envd: &Envd, method: &str, request: &Value) -> (u16, Value) {
    envd.unary(&format!("filesystem.Filesystem/{method}"), request)
}

fn code(envd: &Envd, method: &str, request: &Value) -> String {
    let (status, body) = call(envd, method, request);
    assert!(status >= 400, "{method} {request}: {body}");
    body["code"].as_str().unwrap().into()
}

/// A directory on another file system than temporary ones.
fn elsewhere() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
    let here = tempfile::tempdir().unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(dir.path()), device(here.path()), "/dev/shm must be a file system of its own");
    dir
}

#[test]
fn entries_are_made_moved_listed_and_removed_as_clients_expect() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = call(&envd, "MakeDir", &json!({"path": path("a/b")}));
    assert_eq!((made.0, &made.1["entry"]["type"]), (200, &json!("FILE_TYPE_DIRECTORY")), "{}", made.1);
    assert_eq!(code(&envd, "MakeDir", &json!({"path": path("a/b")})), "already_exists");
    fs::write(path("a/file"), "12345").unwrap();
    fs::set_permissions(path("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("file", path("a/link")).unwrap();
    symlink("absent", path("a/dangling")).unwrap();
    assert_eq!(code(&envd, "MakeDir", &json!({"path": path("a/file")})), "invalid_argument");
    let stat = |name: &str| call(&envd, "Stat", &json!({"path": path(name)})).1["entry"].clone();
    let file = stat("a/file");
    assert_eq!(
        (&file["size"], &file["mode"], &file["permissions"]),
        (&json!("5"), &json!(0o640), &json!("-rw-r-----"))
    );
    assert_eq!((&file["owner"], &file["isSymlink"]), (&json!("root"), &Value::Null));
    let link = stat("a/link");
    let real = fs::canonicalize(path("a/file")).unwrap();
    assert_eq!(
        (&link["type"], &link["isSymlink"], &link["symlinkTarget"]),
        (&json!("FILE_TYPE_FILE"), &json!(true), &json!(real))
    );
    assert_eq!(stat("a/dangling")["symlinkTarget"], json!(path("a/dangling")));
    assert_eq!(code(&envd, "Stat", &json!({"path": path("absent")})), "not_found");
    let list = |depth: u32| {
        let body = call(&envd, "ListDir", &json!({"path": dir.path(), "depth": depth})).1;
        body["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!((list(0), list(1)), (vec!["a".into()], vec!["a".into()]));
    assert_eq!(list(2), ["a", "b", "dangling", "file", "link"]);
    assert_eq!(code(&envd, "ListDir", &json!({"path": path("absent")})), "not_found");
    assert_eq!(code(&envd, "ListDir", &json!({"path": path("a/file")})), "invalid_argument");
    let moved = call(&envd, "Move", &json!({"source": path("a/file"), "destination": path("c/d/file")}));
    assert_eq!((moved.0, &moved.1["entry"]["path"]), (200, &json!(path("c/d/file"))));
    assert_eq!(
        code(&envd, "Move", &json!({"source": path("a/file"), "destination": path("x")})),
        "not_found"
    );
    for _ in 0..2 {
        assert_eq!(call(&envd, "Remove", &json!({"path": path("a")})), (200, json!({})));
        assert!(!path("a").exists());
    }
}

/// A tree with everything that a copy has to keep.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("sub/deep/file"), vec![7; 1_000_000]).unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("sub"), fs::Permissions::from_mode(0o1770)).unwrap();
    fs::hard_link(root.join("sub/deep/file"), root.join("same")).unwrap();
    symlink("../script", root.join("sub/link")).unwrap();
    symlink("/no/such", root.join("dangling")).unwrap();
    setxattr(root.join("script"), "user.e2b.k", b"v", XattrFlags::empty()).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("fifo")).status().unwrap().success());
    for path in ["script", "sub", "sub/deep/file"] {
        chown(root.join(path), Some(3), Some(4)).unwrap();
    }
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    for path in ["script", "sub"] {
        fs::File::open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

fn check(root: &Path) {
    assert!(fs::read(root.join("sub/deep/file")).unwrap() == vec![7; 1_000_000]);
    let mode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("sub"), mode("script") & 0o777), (0o1770, 0o751));
    assert_eq!(fs::read_link(root.join("sub/link")).unwrap(), Path::new("../script"));
    assert_eq!(fs::read_link(root.join("dangling")).unwrap(), Path::new("/no/such"));
    let inode = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    assert_eq!(inode("same"), inode("sub/deep/file"));
    assert!(fs::symlink_metadata(root.join("fifo")).unwrap().mode() & libc::S_IFMT == libc::S_IFIFO);
}

#[test]
fn a_copy_keeps_modes_links_and_metadata_and_belongs_to_the_caller() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    plant(&path("tree"));
    let request = json!({"source": path("tree"), "destination": path("new/copy")});
    // "nobody:" in base 64.
    let headers = [("content-type", "application/json"), ("authorization", "Basic bm9ib2R5Og==")];
    let answer = envd.answer("POST", "/filesystem.Filesystem/Copy", &headers, request.to_string().as_bytes());
    assert_eq!(
        (answer.status, &answer.json()["entry"]["path"]),
        (200, &json!(path("new/copy"))),
        "{}",
        answer.json()
    );
    check(&path("new/copy"));
    for name in ["", "script", "sub", "sub/deep/file", "sub/link", "fifo"] {
        let meta = fs::symlink_metadata(path("new/copy").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (65534, 65534), "{name}");
    }
    // Of another owner's program, which it would run as.
    assert_eq!(fs::metadata(path("new/copy/script")).unwrap().mode() & 0o7777, 0o751);
    let entry = call(&envd, "Stat", &json!({"path": path("new/copy/script")})).1;
    assert_eq!(entry["entry"]["metadata"], json!({"k": "v"}));
    check(&path("tree"));
    // One file; a link itself.
    for name in ["script", "dangling"] {
        let request = json!({"source": path("tree").join(name), "destination": path(name)});
        assert_eq!(call(&envd, "Copy", &request).0, 200);
    }
    assert_eq!(fs::read_link(path("dangling")).unwrap(), Path::new("/no/such"));
    assert_eq!(fs::read(path("script")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn a_copy_that_cannot_be_made_leaves_nothing() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    plant(&path("tree"));
    fs::write(path("there"), "before").unwrap();
    symlink("nowhere", path("link")).unwrap();
    let copy = |from: &Path, to: &Path| code(&envd, "Copy", &json!({"source": from, "destination": to}));
    assert_eq!(copy(&path("absent"), &path("x")), "not_found");
    assert_eq!(copy(&path("tree"), &path("there")), "already_exists");
    assert_eq!(copy(&path("tree"), &path("link")), "already_exists");
    assert_eq!(copy(&path("tree"), &path("tree/sub/copy")), "invalid_argument");
    assert_eq!(copy(&path("tree"), &path("tree/new/copy")), "invalid_argument");
    // A file system without room for all of it.
    let small = path("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=512k", "none"];
    assert!(
        Command::new("mount").args(mount).arg(&small).status().unwrap().success(),
        "this test needs root"
    );
    let full = copy(&path("tree"), &small.join("copy"));
    let left = fs::read_dir(&small).unwrap().count();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    assert_eq!((&*full, left), ("resource_exhausted", 0));
    assert_eq!(fs::read(path("there")).unwrap(), b"before");
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["link", "small", "there", "tree"]);
}

#[test]
fn a_move_to_another_file_system_keeps_all() {
    let envd = Envd::start();
    let (dir, other) = (tempfile::tempdir().unwrap(), elsewhere());
    plant(&dir.path().join("tree"));
    let (from, to) = (dir.path().join("tree"), other.path().join("new/tree"));
    let (status, body) = call(&envd, "Move", &json!({"source": from, "destination": to}));
    assert_eq!(status, 200, "{body}");
    assert!(!from.exists());
    check(&to);
    for path in ["script", "sub"] {
        let meta = fs::metadata(to.join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mtime()), (3, 4, 1_000_000), "{path}");
    }
    assert_eq!(fs::metadata(to.join("script")).unwrap().mode() & 0o7777, 0o4751);
    // It replaces a file, as a rename does.
    fs::write(&from, "after").unwrap();
    fs::File::create(other.path().join("file")).unwrap().write_all(b"before").unwrap();
    let request = json!({"source": from, "destination": other.path().join("file")});
    assert_eq!(call(&envd, "Move", &request).0, 200);
    assert_eq!(fs::read(other.path().join("file")).unwrap(), b"after");
}

#[test]
fn modes_and_owners_are_changed_without_following_links_below() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("tree/sub")).unwrap();
    for name in ["tree/sub/file", "outside"] {
        fs::write(path(name), "x").unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    symlink("../outside", path("tree/link")).unwrap();
    symlink("absent", path("tree/dangling")).unwrap();
    symlink("outside", path("link")).unwrap();
    let meta = |name: &str| fs::symlink_metadata(path(name)).unwrap();
    let mode = |name: &str| meta(name).mode() & 0o7777;
    let (status, body) = call(&envd, "Chmod", &json!({"path": path("tree/sub/file"), "mode": 0o2755}));
    assert_eq!((status, &body["entry"]["mode"], mode("tree/sub/file")), (200, &json!(0o2755), 0o2755));
    assert_eq!(call(&envd, "Chmod", &json!({"path": path("tree"), "mode": 0o700, "recursive": true})).0, 200);
    assert_eq!(
        (mode("tree"), mode("tree/sub"), mode("tree/sub/file"), mode("outside")),
        (0o700, 0o700, 0o700, 0o600)
    );
    // A link that is named itself is followed, as programs do it.
    assert_eq!(call(&envd, "Chmod", &json!({"path": path("link"), "mode": 0o644})).0, 200);
    assert_eq!(mode("outside"), 0o644);

    let owner = |name: &str| (meta(name).uid(), meta(name).gid());
    let request = json!({"path": path("tree"), "owner": "nobody", "group": "12", "recursive": true});
    let (status, body) = call(&envd, "Chown", &request);
    assert_eq!((status, &body["entry"]["owner"]), (200, &json!("nobody")), "{body}");
    for name in ["tree", "tree/sub", "tree/sub/file", "tree/link", "tree/dangling"] {
        assert_eq!(owner(name), (65534, 12), "{name}");
    }
    assert_eq!(owner("outside"), (0, 0));
    assert_eq!(call(&envd, "Chown", &json!({"path": path("tree/sub"), "group": "daemon"})).0, 200);
    assert_eq!((owner("tree/sub").0, owner("tree/sub/file")), (65534, (65534, 12)));
    assert_ne!(owner("tree/sub").1, 12);

    for (method, request, wanted) in [
        ("Chmod", json!({"path": path("absent"), "mode": 0o600}), "not_found"),
        ("Chmod", json!({"path": path("tree"), "mode": 0o10_000}), "invalid_argument"),
        ("Chown", json!({"path": path("absent"), "owner": "0"}), "not_found"),
        ("Chown", json!({"path": path("tree"), "owner": "nosuchuser"}), "invalid_argument"),
        ("Chown", json!({"path": path("tree"), "group": "nosuchgroup"}), "invalid_argument"),
        ("Chown", json!({"path": path("tree")}), "invalid_argument"),
    ] {
        assert_eq!(code(&envd, method, &request), wanted, "{method} {request}");
    }
}
