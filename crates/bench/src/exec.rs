// SPDX-License-Identifier: Apache-2.0
//! Time of a command through the API, compared with the same command sent directly to envd from the host.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_testkit::{
    Stack,
    envd::{address_and_token, framed},
    processor_time,
};

use crate::row::{Row, median};

const ROUNDS: usize = 400;

struct Direct {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Direct {
    async fn exec(&self) -> Result<Duration> {
        let message = framed(&json!({"process": {"cmd": "/bin/true"}, "stdin": false}));
        let begin = Instant::now();
        let response = self
            .client
            .post(&self.url)
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1")
            .header("x-access-token", &self.token)
            .body(message)
            .send()
            .await?;
        let body = response.error_for_status()?.bytes().await?;
        let took = begin.elapsed();
        ensure!(String::from_utf8_lossy(&body).contains("exit status 0"), "{body:?}");
        Ok(took)
    }
}

/// Measures both sides alternately, then the CPU time of commands through the API.
pub(crate) async fn against_envd(stack: &Stack) -> Result<Vec<Row>> {
    let id = stack.api.create(&json!({})).await?;
    let (address, token) = address_and_token(stack, &id)?;
    let direct = Direct {
        client: reqwest::Client::builder().tcp_nodelay(true).build()?,
        url: format!("http://{address}/process.Process/Start"),
        token,
    };
    let over_the_api = async || {
        let begin = Instant::now();
        let ran = stack.api.exec(&id, &["/bin/true"]).await?;
        ensure!(ran["exit_code"] == 0, "{ran}");
        Ok::<_, anyhow::Error>(begin.elapsed())
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 20 {
        let (one, other) = (direct.exec().await?, over_the_api().await?);
        // The first rounds open connections and warm caches.
        if round >= 20 {
            floor.push(one);
            ours.push(other);
        }
    }
    let pids = [stack.child("server")?, stack.child("agent")?];
    let used = || Ok::<_, anyhow::Error>(processor_time(pids[0])? + processor_time(pids[1])?);
    let before = used()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(over_the_api().await?);
    }
    let cost = used()?.saturating_sub(before).as_secs_f64() * 1000.0 / ROUNDS as f64;
    stack.api.remove(&id).await?;
    let ratio = Row::ratio("exec /bin/true over the API ÷ directly against envd", &ours, &floor, 2.0);
    let cost = Row {
        what: "processor time of one exec, control plane and agent (ms)",
        unit: "ms",
        ours: median(&times),
        floor: None,
        figure: cost,
        goal: 3.0,
        runs: ROUNDS,
    };
    Ok(vec![ratio, cost])
}
