// SPDX-License-Identifier: Apache-2.0
//! Reading and writing files.

use std::sync::Arc;

use anyhow::Result;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;
use wrenn_testkit::Stack;

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
    // The parent directory was made before the content was known to be refused.
    let left = stack.api.exec(&id, &["find", "a dir", "-type", "f", "-o", "-name", "other"]).await?;
    anyhow::ensure!(left["stdout"] == "", "{left}");
    stack.api.exec(&id, &["rm", "-r", "a dir"]).await?;
    stack.give_back(id);
    Ok(())
}

/// Missing files, directories, and a request body above the limit.
pub(crate) async fn a_file_that_is_not_there(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    stack.api.read(&id, "/no/such/file").await?.expect_error(404, "not_found")?;
    stack.api.read(&id, "/etc").await?.expect_error(400, "invalid_request")?;
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
    let piece = vec![0x5a; 64 << 20];
    let mut refusal = None;
    for number in 0..8 {
        let reply = stack.api.write(&id, &format!("piece{number}"), piece.clone()).await?;
        if reply.status != 204 {
            refusal = Some((number, reply));
            break;
        }
    }
    let (number, reply) = refusal.ok_or_else(|| anyhow::anyhow!("512 MiB fit on a disk of 512 MiB"))?;
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
