// SPDX-License-Identifier: Apache-2.0
//! What a client of the event stream costs the control plane: memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use reqwest::{Method, Response};
use rustix::process::{Resource, Rlimit, setrlimit};
use wrenn_testkit::{Setup, Stack};

use crate::{idle::resident, row::Row};

/// Clients before the first measurement, so that one-time allocations are not counted.
const FIRST: usize = 100;
/// Clients between the two measurements.
const MORE: usize = 1000;
/// Clients that connect at a time.
const AT_ONCE: usize = 50;
/// Pause after the last client, in which background work ends.
const SETTLE: Duration = Duration::from_secs(5);
/// Open files that as many connections need.
const FILES: u64 = 8192;

/// Configuration of a Wrenn that has room for so many clients of one address and one team.
pub(crate) fn setup() -> Setup {
    let keys = ["EVENT_STREAMS", "CONNECTIONS", "CONNECTIONS_PER_ADDRESS"];
    let env = keys.map(|key| (format!("WRENN_SERVER_{key}"), "4096".to_owned()));
    Setup { env: env.into(), open_files: Some(FILES), ..Setup::default() }
}

/// Compares the server with few and with many clients.
pub(crate) async fn memory(stack: &Stack) -> Result<Row> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: Some(FILES) })?;
    let server = stack.child("server")?;
    let first = open(stack, FIRST).await?;
    let before = resident(server)?;
    let more = open(stack, MORE).await?;
    let after = resident(server)?;
    drop((first, more));
    let each = (after - before) / MORE as f64;
    Ok(Row::figure(
        "control plane's resident memory for a client of the event stream (KiB)",
        "KiB",
        each,
        MORE,
        30.0,
    ))
}

/// Opens so many event streams.
async fn open(stack: &Stack, count: usize) -> Result<Vec<Response>> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = (0..AT_ONCE.min(count - all.len())).map(|_| one(stack));
        all.extend(try_join_all(some).await?);
    }
    tokio::time::sleep(SETTLE).await;
    Ok(all)
}

async fn one(stack: &Stack) -> Result<Response> {
    let answer = stack.api.request(Method::GET, "/v1/events/stream").send().await?;
    ensure!(answer.status() == 200, "status {}", answer.status());
    Ok(answer)
}
