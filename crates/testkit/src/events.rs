//! The stream of events, as it comes.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, Response};
use serde_json::Value;

use crate::Api;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the stream.
    pub id: String,
    /// What kind of event.
    pub kind: String,
    /// What it says.
    pub data: Value,
}

/// An open stream of server-sent events.
#[derive(Debug)]
pub struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    /// Opens it behind an event, or behind the newest.
    pub async fn open(api: &Api, last: Option<&str>) -> Result<Self> {
        let mut request = api.request(Method::GET, "/v1/events/stream");
        if let Some(id) = last {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await?;
        anyhow::ensure!(response.status() == 200, "no event stream: {}", response.status());
        Ok(Self { response, buffer: String::new() })
    }

    /// The next event.
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

    /// The events of one sandbox up to one of this kind, and the ids of all events on the way.
    pub async fn until(&mut self, sandbox: &str, kind: &str) -> Result<(Vec<Event>, Vec<String>)> {
        let (mut own, mut ids) = (Vec::new(), Vec::new());
        loop {
            let next = self.next(Duration::from_secs(30)).await;
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

/// Comments, which show that the server lives, are no events.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).ok()?;
    Some(Event { id: field("id")?.to_owned(), kind: field("event")?.to_owned(), data })
}
