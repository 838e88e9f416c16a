//! Files in and out.

use std::sync::Arc;

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::Stack;

/// 64 MiB, and a name that needs care.
pub(crate) async fn large_files_come_back_as_they_went_in(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({})).await?;
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
    stack.api.remove(&id).await?;
    Ok(())
}

/// Missing files, directories, and a body above the limit.
pub(crate) async fn a_file_that_is_not_there(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({})).await?;
    stack.api.read(&id, "/no/such/file").await?.expect_error(404, "not_found")?;
    stack.api.read(&id, "/etc").await?.expect_error(400, "invalid_request")?;
    let huge = vec![0; 101 << 20];
    stack.api.write(&id, "huge", huge).await?.expect_error(413, "too_large")?;
    let absent = stack.api.exec(&id, &["test", "-e", "huge"]).await?;
    anyhow::ensure!(absent["exit_code"] == 1, "half a file was left: {absent}");
    stack.api.remove(&id).await?;
    Ok(())
}
