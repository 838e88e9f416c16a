// SPDX-License-Identifier: Apache-2.0
//! Case of the event stream of a sandbox's life.

use std::sync::Arc;

use anyhow::{Result, ensure};
use wrenn_control::Limits;
use wrenn_testkit::{Event, Events};

use crate::{fixture::Fixture, stores::Stores};

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// Events arrive in order; a client that resumes gets exactly the events after the last one it saw.
pub(crate) async fn a_life_is_told_in_order_and_resumed_anywhere(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.create().await?;
    fixture.api.remove(&id).await?;
    let (own, ids) = events.until(&id, "sandbox.stopped").await?;
    let expected = ["sandbox.starting", "sandbox.running", "sandbox.stopping", "sandbox.stopped"];
    ensure!(kinds(&own) == expected, "{own:#?}");
    for event in &own {
        let status = event.data["sandbox"]["status"].as_str().unwrap_or_default();
        ensure!(event.data["type"] == event.kind.as_str() && event.kind.ends_with(status), "{event:?}");
    }
    for seen in [&own[0].id, &own[1].id, &own[2].id] {
        let mut resumed = Events::open(&fixture.api, Some(seen)).await?;
        let (_, again) = resumed.until(&id, "sandbox.stopped").await?;
        let after = ids.iter().skip_while(|&event| event != seen).skip(1);
        ensure!(after.eq(&again), "after {seen} of {ids:?} came {again:?}");
    }
    fixture.stop().await
}
