// SPDX-License-Identifier: Apache-2.0
//! Reader of the server-sent event stream.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, Response};
use serde_json::Value;

use crate::Api;

/// Event of the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Event id, which is its position in the stream.
    pub id: String,
    /// Event type, such as `sandbox.running`.
    pub kind: String,
    /// Content as JSON.
    pub data: Value,
}

/// Open stream of server-sent events.
#[derive(Debug)]
pub struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    /// Opens the stream after event `last`, or after the newest event.
    pub async fn open(api: &Api, last: Option<&str>) -> Result<Self> {
        Self::open_at(api, "/v1/events/stream", last).await
    }

    /// Opens the stream at a path with parameters.
    pub async fn open_at(api: &Api, path: &str, last: Option<&str>) -> Result<Self> {
        let mut request = api.request(Method::GET, path);
        if let Some(id) = last {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await?;
        anyhow::ensure!(response.status() == 200, "no event stream: {}", response.status());
        Ok(Self { response, buffer: String::new() })
    }

    /// Waits for the next event, at most `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Event> {
        let next = tokio::time::timeout(limit, self.read()).await;
        next.with_context(|| format!("no event within {limit:?}"))?
    }

    async fn read(&mut self) -> Result<Event> {
        loop {
            while let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&block) {
                    return Ok(event);
                }
            }
            let bytes = self.response.chunk().await?.context("the event stream ended")?;
            self.buffer.push_str(std::str::from_utf8(&bytes)?);
        }
    }

    /// Reads up to the event `kind` of `sandbox`; returns the events of that sandbox and the ids of all
    /// events read.
    pub async fn until(&mut self, sandbox: &str, kind: &str) -> Result<(Vec<Event>, Vec<String>)> {
        let (mut own, mut ids) = (Vec::new(), Vec::new());
        loop {
            let next = self.next(Duration::from_secs(60)).await;
            let event = next.with_context(|| format!("waiting for {kind} of {sandbox}, after {own:#?}"))?;
            ids.push(event.id.clone());
            if event.data["sandbox"]["id"] == sandbox {
                own.push(event.clone());
                if event.kind == kind {
                    return Ok((own, ids));
                }
            }
        }
    }
}

/// Returns the types of events. The stream tells events at least once, so those that came again, word for word, are left out.
pub fn kinds_once(events: &[Event]) -> Vec<&str> {
    let mut told: Vec<&Event> = Vec::new();
    for event in events {
        if !told.iter().any(|one| one.kind == event.kind && one.data == event.data) {
            told.push(event);
        }
    }
    told.into_iter().map(|event| event.kind.as_str()).collect()
}

/// Parses one block of the stream. Returns `None` for comments, which the server sends to keep the connection
/// alive.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).ok()?;
    Some(Event { id: field("id")?.to_owned(), kind: field("event")?.to_owned(), data })
}
