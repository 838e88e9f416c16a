// SPDX-License-Identifier: Apache-2.0
//! Time of a command through the API, compared with the same command sent directly to envd from the host.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, processor_time};

use crate::row::{Row, median};

const ROUNDS: usize = 400;

/// Reads the address of envd and its token from the agent's journal.
pub(crate) fn envd(stack: &Stack, id: &str) -> Result<(String, String)> {
    let path = stack.state_dir.join("agent/sandboxes").join(id).join("journal.json");
    let text = fs::read_to_string(&path).context("the sandbox has no journal")?;
    let entries: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let field = |step: &str, name: &str| {
        entries.iter().find(|entry| entry["step"] == step).map(|entry| entry[name].clone())
    };
    let slot = field("slot", "index").and_then(|slot| slot.as_u64()).context("no slot in the journal")?;
    let token = field("spec", "access_token").and_then(|token| token.as_str().map(str::to_owned));
    let address = format!("10.11.{}.{}:49983", slot >> 8, slot & 255);
    Ok((address, token.context("no token in the journal")?))
}

/// Encodes one message as Connect streams do.
pub(crate) fn framed(message: &Value) -> Vec<u8> {
    let body = message.to_string().into_bytes();
    [&[0], (body.len() as u32).to_be_bytes().as_slice(), &body].concat()
}

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
    let (address, token) = envd(stack, &id)?;
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
