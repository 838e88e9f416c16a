// SPDX-License-Identifier: Apache-2.0
//! Reading and writing files.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, wait_until};

use crate::cases::support::leave_free;

/// Writes and reads 64 MiB, with a file name that must be escaped.
pub(crate) async fn large_files_come_back_as_they_went_in(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let content: Vec<u8> = (0..64_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = "new/dir/ä name & more";
    stack.api.write(&id, path, content.clone()).await?.expect(204)?;
    let back = stack.api.read(&id, path).await?.expect(200)?;
    anyhow::ensure!(back.bytes == content, "{} bytes came back", back.bytes.len());
    let owner = stack.api.exec(&id, &["stat", "-c", "%U", path]).await?;
    anyhow::ensure!(owner["stdout"] == "wrenn-user\n", "{owner}");
    stack.api.write(&id, path, Vec::new()).await?.expect(204)?;
    let empty = stack.api.read(&id, path).await?.expect(200)?;
    anyhow::ensure!(empty.bytes.is_empty(), "not truncated");
    stack.give_back(id);
    Ok(())
}

/// With the path in the query the parts of a form may come in any order, and its file may have any size; the
/// two paths must not differ.
pub(crate) async fn the_path_may_be_in_the_query(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let content = vec![b'x'; 3 << 20];
    let file = || Part::bytes(content.clone()).file_name("upload");
    let write = async |query: &str, form: Form| {
        let path = format!("/v1/sandboxes/{id}/files/write{query}");
        stack.api.send(stack.api.request(Method::POST, &path).multipart(form)).await
    };
    let query = "?path=a%20dir/%C3%A4";
    for form in [
        Form::new().part("file", file()),
        Form::new().part("file", file()).text("path", "a dir/ä"),
        Form::new().text("path", "a dir/ä").part("file", file()),
    ] {
        write(query, form).await?.expect(204)?;
        let back = stack.api.read(&id, "a dir/ä").await?.expect(200)?;
        anyhow::ensure!(back.bytes == content, "{} bytes came back", back.bytes.len());
        stack.api.exec(&id, &["rm", "-r", "a dir"]).await?;
    }
    for (query, form) in [
        (query, Form::new().part("file", file()).text("path", "other")),
        (query, Form::new().text("path", "other").part("file", file())),
        ("?path=", Form::new().part("file", file())),
        ("?path=%ff", Form::new().part("file", file())),
        ("", Form::new().part("file", file()).text("path", "a dir/ä")),
    ] {
        let reply = write(query, form).await?.expect_error(400, "invalid_request");
        reply.map_err(|error| error.context(format!("query {query:?}")))?;
    }
    // The parent directory was made before the content was known to be refused; what came of that is removed when the
    // sandbox sees the request break off.
    let nothing = wait_until("half a file is gone", Duration::from_secs(30), async || {
        let left =
            stack.api.exec(&id, &["find", "a dir", "-type", "f", "-o", "-name", "other"]).await.ok()?;
        (left["stdout"] == "").then_some(())
    });
    nothing.await?;
    stack.api.exec(&id, &["rm", "-r", "a dir"]).await?;
    stack.give_back(id);
    Ok(())
}

/// Missing files, directories, and a request body above the limit.
pub(crate) async fn a_file_that_is_not_there(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    stack.api.read(&id, "/no/such/file").await?.expect_error(404, "not_found")?;
    stack.api.read(&id, "/etc").await?.expect_error(400, "is_a_directory")?;
    let huge = vec![0; 101 << 20];
    stack.api.write(&id, "huge", huge).await?.expect_error(413, "too_large")?;
    let absent = stack.api.exec(&id, &["test", "-e", "huge"]).await?;
    anyhow::ensure!(absent["exit_code"] == 1, "half a file was left: {absent}");
    stack.give_back(id);
    Ok(())
}

/// Writing to a full disk fails with `insufficient_storage`, keeps the old file, and works again after files
/// are deleted.
pub(crate) async fn a_full_disk_of_a_guest(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"disk_size_mb": 512, "memory_mb": 256})).await?;
    stack.api.write(&id, "kept", b"as it was".to_vec()).await?.expect(204)?;
    leave_free(&stack, &id, 48).await?;
    let piece = vec![0x5a; 32 << 20];
    let mut refusal = None;
    for number in 0..2 {
        let reply = stack.api.write(&id, &format!("piece{number}"), piece.clone()).await?;
        if reply.status != 204 {
            refusal = Some((number, reply));
            break;
        }
    }
    let (number, reply) = refusal.ok_or_else(|| anyhow::anyhow!("64 MiB fit where 48 are free"))?;
    reply.expect_error(507, "insufficient_storage")?;
    let half = stack.api.exec(&id, &["test", "-e", &format!("piece{number}")]).await?;
    anyhow::ensure!(half["exit_code"] == 1, "half a file was left: {half}");
    // Replacing a file needs space for the new one; the old one must survive.
    stack.api.write(&id, "kept", piece).await?.expect_error(507, "insufficient_storage")?;
    let kept = stack.api.read(&id, "kept").await?.expect(200)?;
    anyhow::ensure!(kept.bytes == b"as it was", "{} bytes", kept.bytes.len());
    let freed = stack.api.exec(&id, &["sh", "-c", "rm piece*"]).await?;
    anyhow::ensure!(freed["exit_code"] == 0, "{freed}");
    stack.api.write(&id, "after", vec![1; 8 << 20]).await?.expect(204)?;
    stack.api.remove(&id).await?;
    Ok(())
}

/// Directories are made, listed, moved and removed; entries are described as they are.
pub(crate) async fn entries_are_listed_moved_and_removed(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let call = async |verb: &str, body: Value| {
        stack.api.post(&format!("/v1/sandboxes/{id}/files/{verb}"), &body).await
    };
    let made = call("mkdir", json!({"path": "tree/a/b"})).await?.expect(200)?.json()["entry"].clone();
    anyhow::ensure!(
        made["type"] == "directory"
            && made["name"] == "b"
            && made["path"].as_str().is_some_and(|path| path.ends_with("/tree/a/b")),
        "{made}"
    );
    call("mkdir", json!({"path": "tree/a"})).await?.expect_error(409, "conflict")?;
    stack.api.write(&id, "tree/file", b"hello\n".to_vec()).await?.expect(204)?;
    call("mkdir", json!({"path": "tree/file"})).await?.expect_error(400, "invalid_request")?;
    stack.api.exec(&id, &["sh", "-c", "cd tree && chmod 640 file && ln -s file link && ln -s nowhere broken && mkfifo pipe && touch -d @1000 file"]).await?;
    let owner =
        stack.api.exec(&id, &["sh", "-c", "printf %s:%s $(id -un) $(id -gn)"]).await?["stdout"].clone();
    let names = |listed: &Value| -> Vec<String> {
        listed["entries"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| entry["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let listed = call("list", json!({"path": "tree"})).await?.expect(200)?.json();
    anyhow::ensure!(names(&listed) == ["a", "broken", "file", "link", "pipe"], "{listed}");
    anyhow::ensure!(call("list", json!({"path": "tree", "depth": 0})).await?.expect(200)?.json() == listed);
    let deep = call("list", json!({"path": "tree", "depth": 2})).await?.expect(200)?.json();
    anyhow::ensure!(names(&deep) == ["a", "b", "broken", "file", "link", "pipe"], "{deep}");
    let [_, broken, file, link, pipe] = &listed["entries"].as_array().context("entries")?[..] else {
        anyhow::bail!("{listed}")
    };
    anyhow::ensure!(
        file["type"] == "file"
            && file["size"] == 6
            && file["mode"] == 0o640
            && file["permissions"] == "-rw-r-----"
            && file["modified_at"] == 1000
            && owner
                == format!(
                    "{}:{}",
                    file["owner"].as_str().unwrap_or_default(),
                    file["group"].as_str().unwrap_or_default()
                ),
        "{file}, of {owner}"
    );
    anyhow::ensure!(
        link["type"] == "file" && link["symlink_target"] == file["path"] && broken["type"] == "symlink",
        "{link} {broken}"
    );
    anyhow::ensure!(pipe["type"] == "file" && file.get("symlink_target").is_none(), "{pipe}");
    anyhow::ensure!(call("stat", json!({"path": "tree/file"})).await?.expect(200)?.json()["entry"] == *file);

    let moved = call("move", json!({"source": "tree/file", "destination": "tree/new/name"}))
        .await?
        .expect(200)?
        .json();
    anyhow::ensure!(moved["entry"]["name"] == "name" && moved["entry"]["mode"] == 0o640, "{moved}");
    call("stat", json!({"path": "tree/file"})).await?.expect_error(404, "not_found")?;
    anyhow::ensure!(stack.api.read(&id, "tree/new/name").await?.expect(200)?.bytes == b"hello\n".as_slice());
    call("move", json!({"source": "tree/none", "destination": "x"})).await?.expect_error(404, "not_found")?;
    call("remove", json!({"path": "tree/link"})).await?.expect(204)?;
    call("remove", json!({"path": "tree"})).await?.expect(204)?;
    call("remove", json!({"path": "tree"})).await?.expect_error(404, "not_found")?;
    call("list", json!({"path": "tree"})).await?.expect_error(404, "not_found")?;
    call("list", json!({"path": "/etc/passwd"})).await?.expect_error(400, "invalid_request")?;
    for body in [
        json!({}),
        json!({"path": ""}),
        json!({"path": "a\u{0}"}),
        json!({"path": "a", "depth": 65}),
        json!({"path": "a", "deep": 1}),
    ] {
        call("list", body.clone())
            .await?
            .expect_error(400, "invalid_request")
            .with_context(|| body.to_string())?;
    }
    stack.give_back(id);
    Ok(())
}
