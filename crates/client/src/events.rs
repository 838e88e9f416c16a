// SPDX-License-Identifier: Apache-2.0
//! Event stream that reconnects after the last event.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use wrenn_api::{EventKind, SandboxRef};

use crate::{
    Client, Error, Result,
    sse::{Message, Parser},
};

/// Time without data after which the connection counts as dead. The server sends a comment more often.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// First and longest delay between attempts to connect; each delay doubles.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Maximum number of attempts without an event in between.
const ATTEMPTS_MAX: u32 = 12;

/// Event of the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Event id: pass it to [`Client::events`] as `after` to resume after this event.
    pub id: Option<String>,
    /// Event type, such as `sandbox.running`.
    pub event: String,
    /// Content as JSON.
    pub data: serde_json::Value,
}

/// Which events a stream has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Begin after the event with this id.
    pub after: Option<String>,
    /// Begin with the events since this time, in the form of RFC 3339. Default: only new events.
    pub since: Option<String>,
    /// Only events of this sandbox.
    pub sandbox: Option<SandboxRef>,
    /// Only events of these types. Default: all.
    pub kinds: Vec<EventKind>,
}

impl EventFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let since = self.since.iter().map(|since| ("since", since.clone()));
        let sandbox = self.sandbox.iter().map(|sandbox| ("sandbox", sandbox.to_string()));
        let kinds = self.kinds.iter().map(|kind| ("type", kind.to_string()));
        since.chain(sandbox).chain(kinds).collect()
    }
}

type Pieces = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

struct Source {
    client: Client,
    filter: EventFilter,
    last_id: Option<String>,
    pieces: Option<Pieces>,
    parser: Parser,
    ready: VecDeque<Event>,
    attempts: u32,
}

impl Client {
    /// Streams events. Reconnects after the last event if the connection breaks; ends with an error if that fails for too
    /// long.
    pub async fn events(
        &self,
        filter: &EventFilter,
    ) -> Result<impl Stream<Item = Result<Event>> + Send + Unpin + use<>> {
        let mut source = Source {
            client: self.clone(),
            filter: filter.clone(),
            last_id: filter.after.clone(),
            pieces: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            attempts: 0,
        };
        // Connect once here, so that a wrong key or address fails at once and not after all attempts.
        source.connect().await?;
        let next = |mut source: Source| async move {
            let event = source.next().await?;
            Ok(Some((event, source)))
        };
        Ok(Box::pin(stream::try_unfold(source, next)))
    }
}

impl Source {
    async fn connect(&mut self) -> Result<()> {
        let mut call = self.client.request(Method::GET, "/v1/events/stream");
        call = call.header("Accept", "text/event-stream").query(&self.filter.query());
        if let Some(id) = &self.last_id {
            call = call.header("Last-Event-ID", id);
        }
        let silent = |_| Error::Protocol("the event stream did not begin in time".to_owned());
        let response = timeout(IDLE_LIMIT, self.client.send(call)).await.map_err(silent)??;
        self.parser = Parser::default();
        self.pieces = Some(Box::pin(response.bytes_stream()));
        Ok(())
    }

    async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.attempts = 0;
                self.last_id = event.id.clone().or(self.last_id.take());
                return Ok(event);
            }
            match &mut self.pieces {
                Some(pieces) => match timeout(IDLE_LIMIT, pieces.next()).await {
                    Ok(Some(Ok(bytes))) => self.take(&bytes)?,
                    // Broken, ended or idle: reconnect.
                    _ => self.pieces = None,
                },
                None => self.reconnect().await?,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.ready.extend(self.parser.feed(bytes)?.into_iter().map(Event::from));
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<()> {
        let (first, longest) = BACKOFF;
        sleep((first * 2_u32.saturating_pow(self.attempts)).min(longest)).await;
        self.attempts += 1;
        match self.connect().await {
            Err(Error::Api { status, .. }) if status >= 500 && self.attempts < ATTEMPTS_MAX => Ok(()),
            Err(error @ Error::Api { .. }) => Err(error),
            Err(error) if self.attempts >= ATTEMPTS_MAX => Err(error),
            Ok(()) if self.attempts >= ATTEMPTS_MAX => {
                Err(Error::Protocol(format!("the event stream broke {ATTEMPTS_MAX} times without an event")))
            }
            _ => Ok(()),
        }
    }
}

impl From<Message> for Event {
    fn from(message: Message) -> Self {
        let data = serde_json::from_str(&message.data).unwrap_or(serde_json::Value::String(message.data));
        Self { id: message.id, event: message.kind, data }
    }
}
