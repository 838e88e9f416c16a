// SPDX-License-Identifier: Apache-2.0
//! Files and directories of any size, as they are and as archives; what they become; changes; and URLs without a key.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::{TryStreamExt as _, stream};
use reqwest::{Method, header};
use rustix::process::Pid;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wrenn_api::{ChangeFile, CopyFile, FileOperation, FileWatchFrame, SandboxId, SignFile};
use wrenn_client::{Body, Client, FileChanges, ReadOptions, WriteOptions};
use wrenn_testkit::{Api, Stack, short_or_long, wait_until};

use crate::cases::support::{delete_wholly, leave_free, pause, sh};

/// Bytes of a piece of made content.
const PIECE: usize = 256 << 10;

fn client(stack: &Stack, id: &str) -> Result<(Client, SandboxId)> {
    Ok((Client::new(stack.api.url(), Some(stack.api.key()))?, id.parse()?))
}

/// A piece of content that is nowhere like itself.
fn piece(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..PIECE / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn hex(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Resident memory of a process in KiB.
fn resident(process: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A large file goes in and comes out whole, and no process on the way holds more than a part of it.
pub(crate) async fn a_large_file_is_streamed_both_ways(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (client, sandbox) = client(&stack, &id)?;
    let pieces = short_or_long(64 << 20, 1 << 30) / PIECE as u64;
    let processes = [stack.child("server")?, stack.child("agent")?];
    let before: Vec<u64> = processes.iter().map(|process| resident(*process)).collect::<Result<_>>()?;
    let watching = tokio::spawn(async move {
        let mut most = before.clone();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        // It ends with the test.
        for _ in 0..1_000_000 {
            tick.tick().await;
            for (most, process) in most.iter_mut().zip(&processes) {
                *most = (*most).max(resident(*process).unwrap_or_default());
            }
            if most.iter().zip(&before).any(|(most, before)| most - before > 48 << 10) {
                break;
            }
        }
        (before, most)
    });
    let mut sum = Sha256::new();
    (0..pieces).for_each(|number| sum.update(piece(number)));
    let sum = hex(sum);
    let content = stream::iter((0..pieces).map(|number| Ok::<_, std::io::Error>(piece(number))));
    let options = WriteOptions { size: Some(pieces * PIECE as u64), ..WriteOptions::default() };
    let written = client.write_file(sandbox, "large", &options, Body::wrap_stream(content)).await?;
    anyhow::ensure!(written.size == pieces * PIECE as u64 && written.sha256 == sum, "{written:?}, not {sum}");
    let told = sh(&stack, &id, "sha256sum ~wrenn-user/large").await?;
    anyhow::ensure!(told.starts_with(&sum), "{told}");
    let mut read = client.read_file(sandbox, "large", &ReadOptions::default()).await?;
    anyhow::ensure!(read.size == Some(written.size));
    let mut back = Sha256::new();
    while let Some(piece) = read.pieces.try_next().await? {
        back.update(&piece);
    }
    anyhow::ensure!(hex(back) == sum, "it came back as another");
    anyhow::ensure!(!watching.is_finished(), "a process grew: {:?}", watching.await);
    watching.abort();
    stack.api.remove(&id).await.map(drop)
}

/// Parts, versions and HEAD are as HTTP has them; what is no regular file has a code of its own.
pub(crate) async fn content_is_read_as_http_has_it(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let path = format!("/v1/sandboxes/{id}/files/content?path=dir/%C3%A4%20%26%20b");
    let put = stack.api.request(Method::PUT, &path).body("0123456789");
    let written = stack.api.send(put).await?.expect(200)?.json();
    anyhow::ensure!(
        written == json!({"size": 10, "sha256": hex(Sha256::new_with_prefix("0123456789"))}),
        "{written}"
    );
    let get = async |fields: &[(&str, &str)]| {
        let request = stack.api.request(Method::GET, &path);
        stack
            .api
            .send(fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
            .await
    };
    let whole = get(&[]).await?.expect(200)?;
    anyhow::ensure!(whole.bytes == b"0123456789", "{whole:?}");
    let field = |reply: &wrenn_testkit::Reply, name| -> String {
        reply
            .headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let (etag, modified) = (field(&whole, header::ETAG), field(&whole, header::LAST_MODIFIED));
    anyhow::ensure!(
        field(&whole, header::CONTENT_LENGTH) == "10" && etag.starts_with('"') && !modified.is_empty()
    );
    for (range, part, place) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
    ] {
        let reply = get(&[("range", range), ("if-range", &etag)]).await?.expect(206)?;
        anyhow::ensure!(
            reply.bytes == part.as_bytes() && field(&reply, header::CONTENT_RANGE) == place,
            "{reply:?}"
        );
    }
    anyhow::ensure!(
        get(&[("range", "bytes=2-4"), ("if-range", "\"other\"")]).await?.expect(200)?.bytes.len() == 10
    );
    let none = get(&[("range", "bytes=10-")]).await?.expect_error(416, "range_not_satisfiable")?;
    anyhow::ensure!(field(&none, header::CONTENT_RANGE) == "bytes */10", "{none:?}");
    let same = get(&[("if-none-match", &etag)]).await?.expect(304)?;
    anyhow::ensure!(same.bytes.is_empty() && field(&same, header::ETAG) == etag);
    get(&[("if-modified-since", &modified)]).await?.expect(304)?;
    let head = stack.api.send(stack.api.request(Method::HEAD, &path)).await?.expect(200)?;
    anyhow::ensure!(head.bytes.is_empty() && field(&head, header::CONTENT_LENGTH) == "10", "{head:?}");

    let of = |path: &str| format!("/v1/sandboxes/{id}/files/content?path={path}");
    stack.api.get(&of("/none")).await?.expect_error(404, "not_found")?;
    stack.api.get(&of("/etc")).await?.expect_error(400, "is_a_directory")?;
    stack.api.get(&of("/dev/null")).await?.expect_error(400, "invalid_request")?;
    let kernel = stack.api.get(&of("/proc/self/status")).await?.expect(200)?;
    anyhow::ensure!(kernel.bytes.starts_with(b"Name:"), "{kernel:?}");
    stack.api.get(&of("/sys/kernel/uevent_seqnum")).await?.expect(200)?;
    for query in ["", "?path=", "?path=a&path=b", "?path=a&mode=1", "?path=%ff", "?path=a&key=1"] {
        let path = format!("/v1/sandboxes/{id}/files/content{query}");
        stack.api.get(&path).await?.expect_error(400, "invalid_request").context(query)?;
    }
    for (field, status) in [("content-range", 400), ("if-match", 400), ("content-encoding", 415)] {
        let put = stack.api.request(Method::PUT, &path).header(field, "x").body("other");
        stack.api.send(put).await?.expect(status).context(field)?;
    }
    anyhow::ensure!(get(&[]).await?.bytes == whole.bytes, "it was changed");
    sh(&stack, &id, "rm -r ~wrenn-user/dir").await?;
    // The older routes have no limit for streams, and errors for what is not there.
    let form = || {
        reqwest::multipart::Form::new()
            .text("path", "/tmp/streamed")
            .part("file", reqwest::multipart::Part::bytes(vec![b'x'; 101 << 20]).file_name("upload"))
    };
    let stream = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/files/stream/write"));
    stack.api.send(stream.multipart(form())).await?.expect(204)?;
    anyhow::ensure!(
        sh(&stack, &id, "stat -c %s /tmp/streamed; rm /tmp/streamed").await? == (101 << 20).to_string()
    );
    let read = format!("/v1/sandboxes/{id}/files/stream/read");
    anyhow::ensure!(
        stack
            .api
            .post(&read, &json!({"path": "/etc/hostname"}))
            .await?
            .expect(200)?
            .bytes
            .starts_with(id.as_bytes())
    );
    stack.api.post(&read, &json!({"path": "/none"})).await?.expect_error(404, "not_found")?;
    stack.give_back(id);
    Ok(())
}

/// An upload that breaks off, or does not fit on the disk, leaves the old file and nothing else.
pub(crate) async fn a_failed_upload_leaves_the_old_file(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "disk_size_mb": 512})).await?;
    let (client, sandbox) = client(&stack, &id)?;
    client.write_file(sandbox, "/srv/kept", &WriteOptions::default(), "as it was").await?;
    let broken = stream::iter([Ok(vec![1; PIECE]), Err(std::io::Error::other("the test gives up"))]);
    let options = WriteOptions { size: Some(4 << 20), ..WriteOptions::default() };
    let error = client.write_file(sandbox, "/srv/kept", &options, Body::wrap_stream(broken)).await.err();
    anyhow::ensure!(error.is_some_and(|error| error.code().is_none()), "it was taken");
    let settled = async || (sh(&stack, &id, "ls -A /srv").await.ok()? == "kept").then_some(());
    wait_until("the half file to be gone", Duration::from_secs(20), settled).await?;
    anyhow::ensure!(sh(&stack, &id, "cat /srv/kept").await? == "as it was");

    leave_free(&stack, &id, 32).await?;
    let content =
        || Body::wrap_stream(stream::iter((0..4096).map(|_| Ok::<_, std::io::Error>(vec![5; PIECE]))));
    let full = client.write_file(sandbox, "/srv/kept", &WriteOptions::default(), content()).await;
    let full = full.err().context("a gigabyte fits on 512 MiB")?;
    anyhow::ensure!(full.code() == Some("insufficient_storage"), "{full}");
    anyhow::ensure!(sh(&stack, &id, "cat /srv/kept; ls -A /srv").await? == "as it waskept");
    // An archive of which one file does not fit.
    let large = archive(&[Item::file("small", 2), Item::file("large", 1 << 30)]);
    let full = client.write_archive(sandbox, "/srv/tree", Some("root"), Body::wrap_stream(large)).await;
    let full = full.err().context("a gigabyte fits on 512 MiB")?;
    anyhow::ensure!(
        full.code() == Some("insufficient_storage") && full.to_string().contains("large"),
        "{full}"
    );
    anyhow::ensure!(sh(&stack, &id, "ls -A /srv/tree").await? == "small");
    stack.api.remove(&id).await.map(drop)
}

/// Modes and owners are given, kept and changed; copies belong to their user.
pub(crate) async fn files_have_the_rights_that_are_given(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let (client, sandbox) = client(&stack, &id)?;
    let shown = async |path: &str| sh(&stack, &id, &format!("stat -c '%a %U %G' {path}")).await;
    let given = WriteOptions {
        mode: Some(0o4750),
        owner: Some("daemon".into()),
        group: Some("2".into()),
        ..WriteOptions::default()
    };
    client.write_file(sandbox, "/tmp/r/a", &given, "1").await?;
    anyhow::ensure!(shown("/tmp/r/a").await? == "4750 daemon bin");
    client.write_file(sandbox, "/tmp/r/a", &WriteOptions::default(), "2").await?;
    anyhow::ensure!(shown("/tmp/r/a").await? == "4750 daemon bin", "they are not kept");
    let of_root = WriteOptions { user: Some("root".into()), ..WriteOptions::default() };
    client.write_file(sandbox, "mine", &of_root, "3").await?;
    anyhow::ensure!(shown("/root/mine").await? == "644 root root");
    let nobody = WriteOptions { user: Some("nobody-at-all".into()), ..WriteOptions::default() };
    let error = client.write_file(sandbox, "x", &nobody, "4").await.err().context("written for nobody")?;
    anyhow::ensure!(error.code() == Some("user_not_found"), "{error}");

    let copy = CopyFile { source: "/tmp/r".into(), destination: "/tmp/r2/copy".into(), user: None };
    let entry = client.copy_file(sandbox, &copy).await?;
    anyhow::ensure!(
        entry.path == "/tmp/r2/copy" && shown("/tmp/r2/copy/a").await? == "750 wrenn-user wrenn-user"
    );
    let again = client.copy_file(sandbox, &copy).await.err().context("it was replaced")?;
    anyhow::ensure!(again.code() == Some("conflict"), "{again}");
    let wanted = ChangeFile {
        path: "/tmp/r2".into(),
        mode: Some("0711".into()),
        owner: Some("root".into()),
        recursive: true,
        ..ChangeFile::default()
    };
    let entry = client.change_file(sandbox, &wanted).await?;
    anyhow::ensure!(entry.mode == 0o711 && entry.owner == "root", "{entry:?}");
    anyhow::ensure!(shown("/tmp/r2/copy/a").await? == "711 root wrenn-user");
    for body in [
        json!({"path": "/tmp/r"}),
        json!({"path": "/tmp/r", "mode": "8"}),
        json!({"path": "/tmp/r", "mode": 420}),
    ] {
        let path = format!("/v1/sandboxes/{id}/files/permissions");
        stack
            .api
            .post(&path, &body)
            .await?
            .expect_error(400, "invalid_request")
            .with_context(|| body.to_string())?;
    }
    sh(&stack, &id, "rm -r /tmp/r /tmp/r2 /root/mine").await?;
    stack.give_back(id);
    Ok(())
}

/// Makes a tree with everything that files may have.
const TREE: &str = r#"
mkdir -p $D/empty $D/deep/er "$D/odd
name" && cd $D
i=0; while [ $i -lt $N ]; do [ $((i % 100)) = 0 ] && mkdir -p many/$((i / 100)); echo "file $i" > many/$((i / 100))/$i; i=$((i + 1)); done
echo secret > deep/er/mode; chmod 4711 deep/er/mode; printf 'x\ny' > "odd
name/$(printf 'a\tb\351')"; echo > "-rf *?"; echo a > $(printf 'n%.0s' $(seq 200))
p=long; while [ ${#p} -lt 900 ]; do p=$p/$(printf 'd%.0s' $(seq 60)); done; mkdir -p $p; echo end > $p/end
ln -s nowhere broken; ln -s /etc/passwd away; ln -s .. up; ln deep/er/mode hard; mkfifo -m 620 pipe
truncate -s 40M sparse; echo middle | dd of=sparse bs=1 seek=20000000 conv=notrunc 2> /dev/null
touch -d @1000000000 deep/er/mode deep/er; touch -h -d @5 broken; chmod 555 deep/er; chmod 1777 empty"#;

/// Describes a tree: of each entry its name, kind, mode, owner, time, number of names and link, and its content.
const SHOW: &str = r"cd $D && find . -print0 | LC_ALL=C sort -z | xargs -0 stat -c '%N %F %a %U %h %Y' > /tmp/shown
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >> /tmp/shown; sha256sum < /tmp/shown";

/// A directory is read and unpacked as an archive, and is the same in every respect.
pub(crate) async fn a_directory_comes_back_as_it_went_out(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 512})).await?;
    let (client, sandbox) = client(&stack, &id)?;
    let files = short_or_long(300, 10_000);
    sh(&stack, &id, &format!("D=/srv/tree N={files}; {TREE}")).await?;
    let mut read = client.read_archive(sandbox, "/srv/tree", Some("root")).await?;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("tree.tar");
    let mut file = fs::File::create(&archive)?;
    while let Some(piece) = read.pieces.try_next().await? {
        std::io::Write::write_all(&mut file, &piece)?;
    }
    anyhow::ensure!(file.metadata()?.len() < 30 << 20, "holes are in it: {} bytes", file.metadata()?.len());
    // Other programs read it.
    let listed = std::process::Command::new("tar").arg("tf").arg(&archive).output()?;
    anyhow::ensure!(listed.status.success() && listed.stdout.len() > 3000, "{listed:?}");
    let content = tokio::fs::read(&archive).await?;
    let size = content.len() as u64;
    let written = client.write_archive(sandbox, "/srv/back", Some("root"), content.clone()).await?;
    anyhow::ensure!(written.size == size && written.entries > files, "{written:?}");
    anyhow::ensure!(written.sha256 == hex(Sha256::new_with_prefix(&content)));
    let (before, after) = (
        sh(&stack, &id, &format!("D=/srv/tree; {SHOW}")).await?,
        sh(&stack, &id, &format!("D=/srv/back; {SHOW}")).await?,
    );
    anyhow::ensure!(before == after && !before.is_empty(), "{before} became {after}");
    let holes = sh(&stack, &id, "du -k /srv/back/sparse | cut -f1").await?;
    anyhow::ensure!(holes.parse::<u64>()? < 1024, "{holes} KiB");
    // What another tar has made, with its owners and without.
    fs::create_dir(dir.path().join("made"))?;
    fs::write(dir.path().join("made/file"), "content")?;
    let made = std::process::Command::new("tar")
        .args(["c", "--format=pax", "--numeric-owner", "--owner=77", "--group=78", "made"])
        .current_dir(dir.path())
        .output()?;
    anyhow::ensure!(made.status.success(), "{made:?}");
    let user = sh(&stack, &id, "echo $(id -u wrenn-user) $(id -g wrenn-user)").await?;
    for (by, path, owner) in [(Some("root"), "/srv/owned", "77 78"), (None, "unowned", user.as_str())] {
        client.write_archive(sandbox, path, by, made.stdout.clone()).await?;
        let shown = sh(&stack, &id, &format!("cd ~wrenn-user; stat -c '%u %g' {path}/made/file")).await?;
        anyhow::ensure!(shown == owner, "{path}: {shown}, not {owner}");
    }
    // With the rights of the user only.
    let refused =
        client.read_archive(sandbox, "/root", None).await.err().context("another's directory was read")?;
    anyhow::ensure!(refused.code() == Some("forbidden"), "{refused}");
    let refused =
        client.write_archive(sandbox, "/srv/theirs", None, made.stdout).await.err().context("written")?;
    anyhow::ensure!(refused.code() == Some("forbidden"), "{refused}");
    for (path, code) in [("/none", "not_found"), ("/etc/passwd", "not_a_directory")] {
        let error = client.read_archive(sandbox, path, None).await.err().context(path.to_owned())?;
        anyhow::ensure!(error.code() == Some(code), "{error}");
    }
    let device =
        client.read_archive(sandbox, "/dev", Some("root")).await.err().context("devices were read")?;
    anyhow::ensure!(
        device.code() == Some("invalid_request") && device.to_string().contains("device"),
        "{device}"
    );
    stack.api.remove(&id).await.map(drop)
}

/// An entry of a made archive.
struct Item {
    kind: u8,
    name: String,
    link: String,
    size: u64,
}

impl Item {
    fn file(name: &str, size: u64) -> Self {
        Self { kind: b'0', name: name.to_owned(), link: String::new(), size }
    }

    fn link(kind: u8, name: &str, link: &str) -> Self {
        Self { kind, name: name.to_owned(), link: link.to_owned(), size: 0 }
    }

    fn header(&self) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..self.name.len()].copy_from_slice(self.name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{:011o}", self.size).as_bytes());
        block[136..147].copy_from_slice(b"00000000001");
        block[148..156].fill(b' ');
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(self.link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// An archive, whose files are zeros.
fn archive(items: &[Item]) -> impl futures::Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    let parts: Vec<(Vec<u8>, u64)> =
        items.iter().map(|item| (item.header(), item.size.next_multiple_of(512))).collect();
    let pieces = parts.into_iter().flat_map(|(header, size)| {
        let content = (0..size).step_by(PIECE).map(move |at| vec![0; PIECE.min((size - at) as usize)]);
        std::iter::once(header).chain(content)
    });
    stream::iter(pieces.chain([vec![0; 1024]]).map(Ok))
}

/// Archives that lead out of their directory, through links or to devices are refused, and nothing is written outside.
pub(crate) async fn hostile_archives_write_nothing_outside(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let (client, sandbox) = client(&stack, &id)?;
    sh(&stack, &id, "mkdir /srv/out && echo as it was > /srv/out/victim").await?;
    let before = sh(&stack, &id, "cat /srv/out/victim; ls -l --time-style=full-iso /srv/out").await?;
    for items in [
        vec![Item::file("/srv/out/victim", 4)],
        vec![Item::file("../out/victim", 4)],
        vec![Item::link(b'5', "a", ""), Item::file("a/../../out/new", 4)],
        vec![Item::link(b'2', "a", "/srv/out"), Item::file("a/new", 4)],
        vec![Item::link(b'2', "a", "../out"), Item::link(b'5', "a/new", "")],
        vec![Item::link(b'1', "a", "/srv/out/victim")],
        vec![Item::link(b'1', "a", "../out/victim"), Item::file("a", 4)],
        vec![Item::link(b'2', "a", "/srv/out"), Item::link(b'1', "b", "a/victim")],
        vec![Item::link(b'3', "device", "")],
        vec![Item::link(b'4', "device", "")],
    ] {
        let names: Vec<_> = items.iter().map(|item| item.name.clone()).collect();
        let body = Body::wrap_stream(archive(&items));
        let error = client.write_archive(sandbox, "/srv/in", Some("root"), body).await.err();
        let error = error.with_context(|| format!("{names:?} was unpacked"))?;
        let named = names.iter().any(|name| error.to_string().contains(name.as_str()));
        anyhow::ensure!(error.code() == Some("invalid_request") && named, "{names:?}: {error}");
        sh(&stack, &id, "rm -rf /srv/in").await?;
    }
    for bytes in [&b"no archive at all"[..], &[0; 100], &[7; 4096]] {
        let error =
            client.write_archive(sandbox, "/srv/in", Some("root"), bytes).await.err().context("unpacked")?;
        anyhow::ensure!(error.code() == Some("invalid_request"), "{error}");
    }
    let after = sh(&stack, &id, "cat /srv/out/victim; ls -l --time-style=full-iso /srv/out").await?;
    anyhow::ensure!(before == after, "{before}\n{after}");
    sh(&stack, &id, "rm -r /srv/out /srv/in").await?;
    stack.give_back(id);
    Ok(())
}

/// Waits for a change.
async fn seen(changes: &mut FileChanges, wanted: &FileWatchFrame) -> Result<()> {
    let mut all = Vec::new();
    let looking = async {
        loop {
            let change = changes.next().await?;
            if change == *wanted {
                return anyhow::Ok(());
            }
            all.push(change);
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(30), looking).await;
    looked.with_context(|| format!("no {wanted:?}, but {all:?}"))?
}

/// What happens in a directory is told as it happens, until the sandbox is paused.
pub(crate) async fn changes_are_told_as_they_happen(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (client, sandbox) = client(&stack, &id)?;
    sh(&stack, &id, "mkdir -p /srv/dir/sub").await?;
    let mut changes = client.watch_files(sandbox, "/srv/dir", true).await?;
    anyhow::ensure!(changes.next().await? == FileWatchFrame::Start);
    for (script, change) in [
        ("echo > new", FileWatchFrame::Create { name: "new".into() }),
        ("echo x >> new", FileWatchFrame::Write { name: "new".into() }),
        ("chmod 600 new", FileWatchFrame::Chmod { name: "new".into() }),
        ("mv new sub/other", FileWatchFrame::Rename { name: "new".into() }),
        ("echo > sub/deep", FileWatchFrame::Create { name: "sub/deep".into() }),
        ("rm sub/deep", FileWatchFrame::Remove { name: "sub/deep".into() }),
    ] {
        sh(&stack, &id, &format!("cd /srv/dir && {script}")).await?;
        seen(&mut changes, &change).await.context(script)?;
    }
    let mut flat = client.watch_files(sandbox, "/srv/dir", false).await?;
    anyhow::ensure!(flat.next().await? == FileWatchFrame::Start);
    sh(&stack, &id, "cd /srv/dir && echo > sub/unseen && echo > seen").await?;
    anyhow::ensure!(flat.next().await? == FileWatchFrame::Create { name: "seen".into() });
    for (path, code) in [("/none", "not_found"), ("/etc/passwd", "invalid_request")] {
        let error = client.watch_files(sandbox, path, false).await.err().context(path.to_owned())?;
        anyhow::ensure!(error.code() == Some(code), "{error}");
    }
    pause(&stack, &id).await?;
    let ended = async {
        loop {
            if let Err(error) = changes.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), ended).await.context("it goes on")?;
    anyhow::ensure!(error.code() == Some("invalid_state"), "{error}");
    stack.api.remove(&id).await.map(drop)
}

/// A signed URL does what it was signed for, without a key, for its time, and nothing else.
pub(crate) async fn a_signed_url_opens_one_file(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (client, sandbox) = client(&stack, &id)?;
    let anybody = Api::new(stack.api.url(), "");
    let send = async |method: Method, url: &str, body: &'static str| {
        let place = url.strip_prefix(stack.api.url()).context("another server")?.to_owned();
        anybody.send(anybody.request(method, &place).body(body)).await
    };
    let sign = async |path: &str, operation, expires| {
        let what = SignFile {
            path: path.into(),
            operation,
            expires_in_sec: Some(expires),
            user: Some("root".into()),
        };
        client.sign_file(sandbox, &what).await
    };
    let write = sign("up & down/ä", FileOperation::Write, 600).await?;
    anyhow::ensure!(write.method == "PUT", "{write:?}");
    send(Method::PUT, &write.url, "hello").await?.expect(200)?;
    anyhow::ensure!(sh(&stack, &id, "cat '/root/up & down/ä'").await? == "hello");
    let read = sign("up & down/ä", FileOperation::Read, 600).await?;
    anyhow::ensure!(send(Method::GET, &read.url, "").await?.expect(200)?.bytes == b"hello");
    anyhow::ensure!(send(Method::HEAD, &read.url, "").await?.expect(200)?.bytes.is_empty());
    let other = stack.borrow_sandbox().await?;
    for (method, url) in [
        (Method::PUT, read.url.clone()),
        (Method::GET, write.url.clone()),
        (Method::GET, read.url.replace("path=up", "path=down")),
        (Method::GET, read.url.replace("user=root", "user=wrenn-user")),
        (Method::GET, read.url.replace("&user=root", "")),
        (Method::GET, read.url.replace("expires=1", "expires=2")),
        (Method::GET, read.url.replace("key=", "key=9")),
        (Method::GET, format!("{}0", read.url)),
        (Method::GET, read.url.replace(&id, &other)),
        (Method::GET, read.url.replace("/content", "/archive")),
        (Method::PUT, format!("{}&mode=4755", write.url)),
    ] {
        let reply = send(method.clone(), &url, "evil").await?;
        reply.expect_error(403, "signature_invalid").with_context(|| format!("{method} {url}"))?;
    }
    stack.give_back(other);
    anyhow::ensure!(sh(&stack, &id, "cat '/root/up & down/ä'").await? == "hello", "it was changed");
    let short = sign("up & down/ä", FileOperation::Read, 1).await?;
    let expired = async || {
        let reply = send(Method::GET, &short.url, "").await.ok()?;
        (reply.status != 200).then_some(reply)
    };
    let expired = wait_until("the end of the URL", Duration::from_secs(20), expired).await?;
    expired.expect_error(403, "signature_expired")?;
    for seconds in [0, 604_801] {
        let error = sign("x", FileOperation::Read, seconds).await.err().context("it was signed")?;
        anyhow::ensure!(error.code() == Some("invalid_request"), "{error}");
    }
    // A new key signs, and the old one still counts until it is revoked.
    let rotate = async |args: &'static [&'static str]| {
        let stack = stack.clone();
        let output = tokio::task::spawn_blocking(move || stack.wrenn(args)).await??;
        anyhow::ensure!(output.status.success(), "{output:?}");
        anyhow::Ok(())
    };
    rotate(&["rotate-signing-key"]).await?;
    let renewed = async || {
        let signed = sign("up & down/ä", FileOperation::Read, 600).await.ok()?;
        let key =
            |url: &str| url.split("key=").nth(1).and_then(|rest| rest.split('&').next()).map(str::to_owned);
        (key(&signed.url) != key(&read.url)).then_some(signed)
    };
    let renewed = wait_until("the new key", Duration::from_secs(20), renewed).await?;
    for url in [&read.url, &renewed.url] {
        send(Method::GET, url, "").await?.expect(200)?;
    }
    rotate(&["rotate-signing-key", "--revoke"]).await?;
    let revoked = async || {
        let reply = send(Method::GET, &read.url, "").await.ok()?;
        (reply.status == 403).then_some(reply)
    };
    let revoked = wait_until("the end of the old key", Duration::from_secs(20), revoked).await?;
    revoked.expect_error(403, "signature_invalid")?;
    let last = sign("up & down/ä", FileOperation::Read, 600).await?;
    send(Method::GET, &last.url, "").await?.expect(200)?;
    stack.api.remove(&id).await?;
    send(Method::GET, &last.url, "").await?.expect_error(403, "signature_invalid")?;
    Ok(())
}

/// Name, kind and mode, link, and content.
type Entry = (String, u32, Option<String>, Vec<u8>);

/// All of a local tree.
fn tree(dir: &Path) -> Result<BTreeSet<Entry>> {
    let (mut all, mut open) = (BTreeSet::new(), vec![String::new()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(dir.join(&at))? {
            let name = format!("{at}{}", entry?.file_name().to_string_lossy());
            let meta = fs::symlink_metadata(dir.join(&name))?;
            let link = fs::read_link(dir.join(&name)).ok().map(|link| link.to_string_lossy().into_owned());
            let content = if meta.is_file() { fs::read(dir.join(&name))? } else { Vec::new() };
            if meta.is_dir() {
                open.push(format!("{name}/"));
            }
            all.insert((name, meta.mode(), link, content));
        }
    }
    Ok(all)
}

/// Directories are copied by the rules of cp, both ways, and patterns and several sources are understood.
pub(crate) async fn the_command_line_copies_directories(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "name": "copied"})).await?;
    let dir = tempfile::tempdir()?;
    let local = |name: &str| dir.path().join(name).display().to_string();
    let there = |path: &str| format!("copied:{path}");
    let files = short_or_long(60, 10_000);
    fs::create_dir_all(local("tree/sub"))?;
    for number in 0..files {
        fs::write(local(&format!("tree/sub/{number}.txt")), format!("content {number}\n"))?;
    }
    fs::write(local("tree/odd \n name"), "odd")?;
    fs::set_permissions(local("tree/odd \n name"), std::os::unix::fs::PermissionsExt::from_mode(0o751))?;
    std::os::unix::fs::symlink("../nowhere", local("tree/link"))?;
    let cp = async |args: &[&str]| {
        let args: Vec<String> =
            [&["sandbox", "cp"], args].concat().iter().map(|&arg| arg.to_owned()).collect();
        let stack = stack.clone();
        tokio::task::spawn_blocking(move || stack.wrenn(&args.iter().map(String::as_str).collect::<Vec<_>>()))
            .await?
    };
    let done = async |args: &[&str]| {
        let output = cp(args).await?;
        anyhow::ensure!(output.status.success(), "{args:?}: {output:?}");
        anyhow::Ok(output.stdout)
    };
    let by_id = cp(&[&local("tree/sub/0.txt"), &format!("{id}:/tmp/0")]).await?;
    anyhow::ensure!(by_id.status.success(), "{by_id:?}");
    // A new name, then into what is there, and its content into what is there.
    for (from, to, place) in [
        ("tree", "new", "new"),
        ("tree", "new", "new/tree"),
        ("tree/.", "new", "new"),
        ("tree", "", "tree"),
        ("tree/", "dir/", "dir"),
    ] {
        done(&["-r", &local(from), &there(to)]).await.context(place)?;
        let back = tempfile::tempdir()?;
        done(&[&there(place), &back.path().join("back").display().to_string()]).await.context(place)?;
        let expected = tree(&dir.path().join("tree"))?;
        let mut got = tree(&back.path().join("back"))?;
        if place == "new" {
            got.retain(|(name, ..)| !name.starts_with("tree"));
        }
        anyhow::ensure!(got == expected, "{place}: {} of {}", got.len(), expected.len());
    }
    fs::create_dir(local("into"))?;
    done(&[&there("tree"), &local("into")]).await?;
    anyhow::ensure!(tree(&dir.path().join("into/tree"))? == tree(&dir.path().join("tree"))?);
    done(&[&there("tree/sub/1?.txt"), &there("tree/sub/2*"), &local("into")]).await?;
    anyhow::ensure!(
        fs::read(local("into/15.txt"))? == b"content 15\n" && Path::new(&local("into/2.txt")).exists()
    );
    done(&[&local("into/15.txt"), &local("tree/sub"), &there("several/")]).await?;
    let listed = sh(&stack, &id, "ls ~wrenn-user/several; ls ~wrenn-user/several/sub | wc -l").await?;
    anyhow::ensure!(listed == format!("15.txt\nsub\n{files}"), "{listed}");
    let archive = done(&[&there("tree"), "-"]).await?;
    anyhow::ensure!(archive.len() > 60_000 && archive[257..262] == *b"ustar", "{} bytes", archive.len());
    done(&["-u", "root", &local("tree"), &there("/srv/of-root")]).await?;
    anyhow::ensure!(
        sh(&stack, &id, "stat -c '%U %a' '/srv/of-root/sub'; rm -r /srv/of-root").await?.starts_with("root ")
    );
    for (args, told) in [
        (vec![local("tree"), there("/srv/denied")], "ermission denied"),
        (vec![local("tree"), there("/etc/passwd")], "not a directory"),
        (vec![there("tree"), local("into/15.txt")], "not a directory"),
        (vec![there("tree/sub/none*"), local("into")], "matches"),
        (vec![there("none"), local("into")], "not_found"),
        (vec![local("none"), there("x")], "none"),
        (vec!["no-such:x".to_owned(), local("into")], "before the colon is taken for a sandbox"),
        (vec![local("into/15.txt"), "no-such:x".to_owned()], "before the colon is taken for a sandbox"),
        (vec![local("into/15.txt"), local("into/2.txt"), there("nothing")], "not a directory"),
    ] {
        let output = cp(&args.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.code() == Some(1) && text.contains(told), "{args:?}: {text}");
    }
    delete_wholly(&stack, &id).await
}

/// Entries are copied, changed, watched and signed by commands.
pub(crate) async fn the_command_line_works_with_files(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let run = async |args: Vec<String>| {
        let stack = stack.clone();
        let words: Vec<String> = ["sandbox", "files"].map(str::to_owned).into_iter().chain(args).collect();
        tokio::task::spawn_blocking(move || {
            stack.wrenn(&words.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .await?
    };
    sh(&stack, &id, "mkdir /tmp/f && echo hello > /tmp/f/a && chown -R wrenn-user /tmp/f").await?;
    let mut command = stack.command(&["--json", "sandbox", "files", "watch", "-r", &id, "/tmp/f"])?;
    let mut watching =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    let (output, errors) =
        (watching.stdout.take().context("no output")?, watching.stderr.take().context("no errors")?);
    let told = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(errors), &mut line).map(|_| line)
    });
    anyhow::ensure!(told.await??.contains("watching /tmp/f"));
    for (args, told) in [
        (vec!["cp", &id, "/tmp/f/a", "/tmp/f/b"], ""),
        (vec!["chmod", &id, "0640", "/tmp/f/b"], ""),
        (vec!["chown", &id, "daemon:bin", "/tmp/f/b"], ""),
        (vec!["stat", &id, "/tmp/f/b"], "-rw-r-----"),
        (vec!["cat", "--range", "bytes=1-2", &id, "/tmp/f/b"], "el"),
        (vec!["sign", &id, "/tmp/f/b", "--expires", "1m"], "signature="),
    ] {
        let output = run(args.iter().map(|&arg| arg.to_owned()).collect()).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success() && text.contains(told), "{args:?}: {output:?}");
    }
    anyhow::ensure!(sh(&stack, &id, "stat -c '%U %G' /tmp/f/b").await? == "daemon bin");
    let line = tokio::task::spawn_blocking(move || {
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
        lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("\"b\"")))
    });
    let line = tokio::time::timeout(Duration::from_secs(30), line).await??.context("no change")??;
    anyhow::ensure!(serde_json::from_str::<Value>(&line)?["name"] == "b", "{line}");
    rustix::process::kill_process(Pid::from_child(&watching), rustix::process::Signal::INT)?;
    let status = tokio::task::spawn_blocking(move || watching.wait()).await??;
    anyhow::ensure!(status.code() == Some(130), "{status}");
    sh(&stack, &id, "rm -r /tmp/f").await?;
    stack.give_back(id);
    Ok(())
}
