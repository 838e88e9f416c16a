// SPDX-License-Identifier: Apache-2.0
//! Reading and writing files over plain HTTP.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
};

use crate::client::{Envd, eventually};

const OCTETS: [(&str, &str); 1] = [("content-type", "application/octet-stream")];

fn url(path: &Path, more: &str) -> String {
    format!("/files?path={}{more}", path.display())
}

#[test]
fn files_come_back_as_written_and_a_broken_upload_leaves_the_old_one() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new/file");
    let url = url(&file, "&atomic=true");
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(envd.http("POST", &url, &OCTETS, &content).0, 200);
    assert!(envd.http("GET", &url, &[], b"").1 == content);
    assert_eq!(envd.http("GET", &url, &[("range", "bytes=10-19")], b""), (206, content[10..20].to_vec()));
    let folder = |path: &Path| format!("/files?path={}", path.display());
    assert_eq!(envd.http("GET", &folder(dir.path()), &[], b"").0, 400);
    assert_eq!(envd.http("GET", "/files?path=/no/such", &[], b"").0, 404);

    let mut stream = TcpStream::connect(&envd.address).unwrap();
    let head = format!(
        "POST {url} HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\ncontent-length: 1000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![1; 100_000]).unwrap();
    let entries = || fs::read_dir(file.parent().unwrap()).unwrap().count();
    eventually("the upload has begun", || entries() == 2);
    drop(stream);
    eventually("its temporary file is removed", || entries() == 1);
    assert!(fs::read(&file).unwrap() == content);
}

#[test]
fn files_that_the_kernel_makes_up_are_read_to_their_end() {
    let envd = Envd::start();
    // Without a size, with a wrong size, and larger than one piece.
    for path in [
        "/proc/version",
        "/proc/filesystems",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/kallsyms",
    ] {
        let path = Path::new(path);
        let content = fs::read(path).unwrap();
        assert!(!content.is_empty());
        let (status, read) = envd.http("GET", &url(path, ""), &[], b"");
        assert!(status == 200 && read == content, "{}: {status}, {} bytes", path.display(), read.len());
        // A range of a file without a size returns all of it.
        let (status, read) = envd.http("GET", &url(path, ""), &[("range", "lines=0-3")], b"");
        assert!(status == 200 && read == content);
    }
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert_eq!(envd.http("GET", &url(&empty, ""), &[], b""), (200, Vec::new()));
}

#[test]
fn a_file_that_grows_or_shrinks_is_given_whole_or_breaks_off() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    // Larger than the socket buffers, so that the file changes while it is read.
    let size = 64 << 20;
    let read = |change: &dyn Fn(&fs::File)| {
        fs::write(&path, vec![7; size]).unwrap();
        let stream = envd.send("GET", &url(&path, ""), &[], b"");
        let mut first = [0; 4];
        std::io::Read::read_exact(&mut &stream, &mut first).unwrap();
        change(&fs::OpenOptions::new().append(true).open(&path).unwrap());
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut &stream, &mut rest);
        let body = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8_lossy(&rest[..body]).to_lowercase(), rest.len() - body)
    };
    let (head, grown) = read(&|file| (&mut &*file).write_all(&[8; 1000]).unwrap());
    assert!(head.contains(&format!("content-length: {size}\r\n")) && grown == size, "{head} {grown}");
    let (head, shrunk) = read(&|file| file.set_len(1000).unwrap());
    assert!(head.contains(&format!("content-length: {size}\r\n")) && shrunk < size, "{head} {shrunk}");
}

#[test]
fn a_file_that_exists_keeps_its_owner_and_mode_and_a_new_one_is_the_users() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    for atomic in ["&username=nobody", "&username=nobody&atomic=true"] {
        fs::write(&old, "before").unwrap();
        chown(&old, Some(3), Some(4)).unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o4750)).unwrap();
        let _ = fs::remove_file(&new);
        for path in [&old, &new] {
            assert_eq!(envd.http("POST", &url(path, atomic), &OCTETS, b"after").0, 200);
            assert_eq!(fs::read(path).unwrap(), b"after");
        }
        let meta = fs::metadata(&old).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (3, 4), "{atomic}");
        assert_eq!(meta.mode() & 0o750, 0o750, "{atomic}: {:o}", meta.mode());
        let (meta, nobody) = (fs::metadata(&new).unwrap(), 65534);
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (nobody, 0o644), "{atomic}");
    }
}

#[test]
fn links_are_followed() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "before").unwrap();
    fs::hard_link(path("file"), path("other")).unwrap();
    symlink("file", path("link")).unwrap();
    symlink("absent", path("dangling")).unwrap();
    symlink("/no/such/directory/file", path("nowhere")).unwrap();
    for way in ["", "&atomic=true"] {
        for link in ["link", "dangling"] {
            assert_eq!(envd.http("POST", &url(&path(link), way), &OCTETS, way.as_bytes()).0, 200);
            assert!(fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link} {way}");
        }
        assert_eq!(fs::read(path("file")).unwrap(), way.as_bytes());
        assert_eq!(fs::read(path("absent")).unwrap(), way.as_bytes());
        assert_eq!(envd.http("POST", &url(&path("nowhere"), way), &OCTETS, b"x").0, 404);
        fs::remove_file(path("absent")).unwrap();
    }
    // Writing in place also changes the other hard link; replacing does not.
    assert_eq!(fs::read(path("other")).unwrap(), b"");
    assert_eq!(envd.http("POST", &url(Path::new("/dev/null"), "&atomic=true"), &OCTETS, b"x").0, 400);
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left.len(), 5, "{left:?}");
}

/// As clients do that read no answer before they have sent all.
#[test]
fn a_refused_upload_is_answered_whatever_was_sent() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let content = vec![7; 32 << 20];
    let octets = [("content-type", "application/octet-stream")];
    for (method, path) in
        [("POST", url(dir.path(), "")), ("PUT", format!("/files/archive?path={}", dir.path().display()))]
    {
        for _ in 0..4 {
            let (status, body) = envd.http(method, &path, &octets, &content);
            assert_eq!(status, 400, "{method}: {}", String::from_utf8_lossy(&body));
        }
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [&fifo, Path::new("/dev/null"), dir.path()] {
        assert_eq!(envd.http("GET", &url(path, ""), &[], b"").0, 400);
        assert_eq!(envd.http("POST", &url(path, ""), &OCTETS, b"x").0, 400);
    }
}
