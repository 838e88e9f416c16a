// SPDX-License-Identifier: Apache-2.0
//! A VMM that does not answer any more: operations end with a cause, and no disk is lost.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::{Frozen, Stack};

use super::small;
use crate::cases::support::{delete_wholly, nothing_remains, post, sh, wait_status};

/// Longer than all limits of a pause together.
const LIMIT: Duration = Duration::from_secs(90);

/// A pause ends although the VMM is stuck; the sandbox says why and boots from its disk, or is deleted while it is stuck.
pub(crate) async fn a_vmm_that_hangs_ends_no_sandbox(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    sh(&stack, &id, "echo kept > /root/note; sync").await?;
    for deleted in [false, true] {
        let frozen = Frozen::new(stack.vmm(&id)?)?;
        let pause = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/pause"));
        let answered = stack.api.send(pause.timeout(LIMIT)).await.context("the pause does not end")?;
        ensure!(answered.status >= 500, "a pause of a VMM that is stuck: {}", answered.status);
        let failed = wait_status(&stack, &id, &["error"], 30).await?;
        ensure!(failed["error"]["message"].as_str().is_some_and(|why| !why.is_empty()), "{failed}");
        if deleted {
            delete_wholly(&stack, &id).await?;
            drop(frozen);
        } else {
            post(&stack, &id, "resume", &json!({"memory": false})).await?;
            drop(frozen);
            ensure!(sh(&stack, &id, "cat /root/note").await? == "kept", "the file is gone");
        }
    }
    nothing_remains(&stack, &id).await
}
