// SPDX-License-Identifier: Apache-2.0
//! A page server that ends before its VMM: the sandbox fails with that cause, and its disk is kept.

use anyhow::{Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use wrenn_testkit::Stack;

use super::SUM;
use crate::cases::support::{post, resume, sh, wait_status};

/// Resumes a sandbox, kills its page server, and boots it from its disk, which has a tree with this checksum.
pub(super) async fn is_missed(stack: &Stack, id: &str, sum: &str) -> Result<()> {
    resume(stack, id).await?;
    kill_process(stack.page_server(id)?, Signal::KILL)?;
    let failed = wait_status(stack, id, &["error"], 15).await?;
    let message = failed["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("page server") && message.contains("memory false"), "{failed}");
    let booted = post(stack, id, "resume", &json!({"memory": false})).await?;
    ensure!(booted["status"] == "running" && booted["error"].is_null(), "{booted}");
    ensure!(sh(stack, id, SUM).await? == sum, "the tree is another one");
    Ok(())
}
