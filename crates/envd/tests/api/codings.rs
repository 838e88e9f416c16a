// SPDX-License-Identifier: Apache-2.0
//! gzip: of uploads and of downloads.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use crate::client::{Envd, resident};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=B");
const GZIPPED: (&str, &str) = ("content-encoding", "gzip");
const GZIP: (&str, &str) = ("accept-encoding", "gzip, deflate");

fn url(path: &Path) -> String {
    format!("/files?path={}", path.display())
}

fn zip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn unzip(zipped: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(zipped).read_to_end(&mut content).unwrap();
    content
}

/// Content that can be compressed.
fn text(size: usize) -> Vec<u8> {
    (0..).flat_map(|i: u32| format!("line {i}\n").into_bytes()).take(size).collect()
}

/// Content that cannot.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

#[test]
fn gzipped_uploads_are_stored_as_their_content() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for content in [text(3_000_000), noise(300_000), Vec::new()] {
        let (status, body) = envd.http("POST", &url(&file), &[OCTETS, GZIPPED], &zip(&content));
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        assert!(fs::read(&file).unwrap() == content);
        let form = [
            b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n",
            &*content,
            b"\r\n--B--\r\n",
        ];
        fs::remove_file(&file).unwrap();
        let (status, body) = envd.http("POST", &url(&file), &[FORM, GZIPPED], &zip(&form.concat()));
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        assert!(fs::read(&file).unwrap() == content);
    }
}

#[test]
fn other_codings_and_broken_gzip_are_refused_and_leave_the_old_file() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "before").unwrap();
    let url = format!("{}&atomic=true", url(&file));
    for coding in ["br", "deflate", "gzip, gzip", "zstd"] {
        let (status, body) = envd.http("POST", &url, &[OCTETS, ("content-encoding", coding)], b"x");
        assert_eq!(status, 400, "{coding}");
        assert!(String::from_utf8_lossy(&body).contains(coding));
    }
    let zipped = zip(&text(100_000));
    for broken in [&zipped[..zipped.len() - 3], b"not gzip", b""] {
        assert_eq!(envd.http("POST", &url, &[OCTETS, GZIPPED], broken).0, 400);
    }
    assert_eq!(envd.http("POST", &url, &[OCTETS, ("content-encoding", "identity")], b"after").0, 200);
    assert_eq!(fs::read(&file).unwrap(), b"after");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_bomb_takes_no_memory_and_is_bounded_as_any_form_is() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    envd.http("POST", &url(&file), &[OCTETS, GZIPPED], &zip(&text(100_000)));
    let before = resident(&envd);
    // As much content as a file of that size would have, in 256 KiB.
    let bomb = zip(&vec![0; 256 << 20]);
    assert!(bomb.len() < 300 << 10);
    assert_eq!(envd.http("POST", &url(&file), &[OCTETS, GZIPPED], &bomb).0, 200);
    assert_eq!(fs::metadata(&file).unwrap().len(), 256 << 20);
    // Within a form's headers it is refused as such headers are.
    let mut form = b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nX: ".to_vec();
    form.resize(256 << 20, b'a');
    let (status, _) = envd.http("POST", &url(&file), &[FORM, GZIPPED], &zip(&form));
    assert_eq!(status, 400);
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more are resident");
}

#[test]
fn downloads_are_gzipped_when_the_client_asks() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.txt");
    // Short, one piece, and many.
    for content in [Vec::new(), b"hello".to_vec(), text(65_536), text(3_000_000)] {
        fs::write(&file, &content).unwrap();
        let zipped = envd.answer("GET", &url(&file), &[GZIP], b"");
        assert_eq!(
            (zipped.status, zipped.header("content-encoding")),
            (200, Some("gzip")),
            "{}",
            content.len()
        );
        assert_eq!(zipped.header("vary"), Some("Accept-Encoding"));
        assert_eq!(zipped.header("content-type"), Some("text/plain; charset=utf-8"));
        assert!(unzip(&zipped.body) == content);
        let plain = envd.answer("GET", &url(&file), &[], b"");
        assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("Accept-Encoding")));
        assert!(plain.body == content);
        let head = envd.answer("HEAD", &url(&file), &[GZIP], b"");
        assert_eq!((head.status, head.header("content-encoding"), head.body.len()), (200, Some("gzip"), 0));
    }
    // What the kernel makes up, whose size is unknown.
    let zipped = envd.answer("GET", "/files?path=/proc/kallsyms", &[GZIP], b"");
    assert!(unzip(&zipped.body) == fs::read("/proc/kallsyms").unwrap());
}

#[test]
fn what_does_not_get_smaller_is_sent_as_it_is_unless_that_is_excluded() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let content = noise(300_000);
    fs::write(&file, &content).unwrap();
    let plain = envd.answer("GET", &url(&file), &[GZIP], b"");
    assert_eq!((plain.header("content-encoding"), plain.header("content-length")), (None, Some("300000")));
    assert!(plain.body == content);
    let zipped = envd.answer("GET", &url(&file), &[("accept-encoding", "gzip, identity;q=0")], b"");
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert!(unzip(&zipped.body) == content);
    for none in ["identity;q=0", "*;q=0", "br, identity;q=0"] {
        assert_eq!(envd.http("GET", &url(&file), &[("accept-encoding", none)], b"").0, 406, "{none}");
    }
}

#[test]
fn ranges_are_those_of_the_file() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let content = text(200_000);
    fs::write(&file, &content).unwrap();
    for (asked, part) in
        [("bytes=10-19", 10..20), ("bytes=100000-", 100_000..200_000), ("bytes=-5", 199_995..200_000)]
    {
        let answer = envd.answer("GET", &url(&file), &[GZIP, ("range", asked)], b"");
        assert_eq!((answer.status, answer.header("content-encoding")), (206, None));
        assert!(answer.body == content[part], "{asked}");
    }
}

/// Each compression takes memory; clients that do not read must not take all of it.
#[test]
fn only_so_many_downloads_are_compressed_at_a_time() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    // More than the sockets hold, also compressed.
    let content: Vec<u8> = noise(16 << 20).into_iter().map(|byte| byte & 15).collect();
    fs::write(&file, &content).unwrap();
    let before = resident(&envd);
    let clients: Vec<_> = (0..60).map(|_| envd.send("GET", &url(&file), &[GZIP], b"")).collect();
    let heads: Vec<_> = clients
        .iter()
        .map(|mut stream| {
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            String::from_utf8_lossy(&head[..read]).to_lowercase()
        })
        .collect();
    let zipped = heads.iter().filter(|head| head.contains("content-encoding: gzip")).count();
    assert_eq!((zipped, heads.iter().filter(|head| head.starts_with("http/1.1 200")).count()), (16, 60));
    let grown = resident(&envd).saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB more are resident");
    drop(clients);
    crate::client::eventually("places are free again", || {
        envd.answer("GET", &url(&file), &[GZIP], b"").header("content-encoding") == Some("gzip")
    });
}
