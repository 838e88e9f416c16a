// SPDX-License-Identifier: Apache-2.0
//! What a sandbox keeps over its pauses, and what it shares with no other one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wrenn_testkit::{Stack, envd::address_and_token};

use crate::cases::support::record;

/// Fields of a record that no pause changes.
const LASTING: [&str; 12] = [
    "name",
    "labels",
    "template",
    "vcpus",
    "memory_mb",
    "disk_size_mb",
    "timeout_sec",
    "on_timeout",
    "auto_resume",
    "public_ports",
    "created_at",
    "started_at",
];

/// Fails unless the sandbox is the one of this record, and its commands run as the default user.
pub(super) async fn is_the_same(stack: &Stack, id: &str, before: &Value) -> Result<()> {
    let now = record(stack, id).await.context("no record")?;
    for field in LASTING {
        ensure!(now[field] == before[field], "{field} is {}, and was {}", now[field], before[field]);
    }
    // A pause and a resume add theirs.
    let metadata = before["metadata"].as_object().context("no metadata")?;
    for (name, value) in metadata {
        ensure!(now["metadata"][name] == *value, "{name} is {}, and was {value}", now["metadata"][name]);
    }
    let user = stack.api.exec(id, &["id", "-un"]).await?;
    ensure!(user["stdout"] == "wrenn-user\n", "another default user: {user}");
    Ok(())
}

/// Fails unless the envd of each of these running sandboxes takes its own token, and none of the others'.
pub(super) async fn each_has_its_own_token(stack: &Stack, ids: &[&String]) -> Result<()> {
    let all = ids.iter().map(|id| address_and_token(stack, id)).collect::<Result<Vec<_>>>()?;
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
    for (at, (address, _)) in all.iter().enumerate() {
        for (of, (_, token)) in all.iter().enumerate() {
            let request = http.get(format!("http://{address}/envs")).header("x-access-token", token);
            let status = stack.api.send(request).await?.status;
            let expected = if at == of { 200 } else { 401 };
            ensure!(status == expected, "{} answers the token of {} with {status}", ids[at], ids[of]);
        }
    }
    Ok(())
}
