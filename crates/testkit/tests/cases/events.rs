// SPDX-License-Identifier: Apache-2.0
//! Event stream of a sandbox's life.

use std::sync::Arc;

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::{Event, Events, Stack};

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// Events arrive in order; a client that resumes gets exactly the events after the last one it saw.
pub(crate) async fn a_life_is_told_in_order_and_resumed_anywhere(stack: Arc<Stack>) -> Result<()> {
    let mut events = Events::open(&stack.api, None).await?;
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    stack.api.remove(&id).await?;
    let (own, ids) = events.until(&id, "sandbox.stopped").await?;
    let expected = ["sandbox.starting", "sandbox.running", "sandbox.stopping", "sandbox.stopped"];
    anyhow::ensure!(kinds(&own) == expected, "{own:#?}");
    for event in &own {
        let status = event.data["sandbox"]["status"].as_str().unwrap_or_default();
        anyhow::ensure!(
            event.data["type"] == event.kind.as_str() && event.kind.ends_with(status),
            "{event:?}"
        );
    }
    for seen in [&own[0].id, &own[1].id, &own[2].id] {
        let mut resumed = Events::open(&stack.api, Some(seen)).await?;
        let (_, again) = resumed.until(&id, "sandbox.stopped").await?;
        let after = ids.iter().skip_while(|&event| event != seen).skip(1);
        anyhow::ensure!(after.eq(&again), "after {seen} of {ids:?} came {again:?}");
    }
    Ok(())
}

/// Event ids that no stream has are rejected.
pub(crate) async fn a_place_that_is_none_is_refused(stack: Arc<Stack>) -> Result<()> {
    for id in ["x", "$", "1-", "-1", "1-2-3", "1 2", "99999999999999999999999", "", "0-*"] {
        let request = stack.api.request(Method::GET, "/v1/events/stream").header("Last-Event-ID", id);
        // A stream opened by mistake would never end.
        let response = request.send().await?;
        anyhow::ensure!(response.status() == 400, "Last-Event-ID {id:?}: {}", response.status());
    }
    Ok(())
}
