// SPDX-License-Identifier: Apache-2.0
//! Server-sent events over a connection that is made again after the last one when it breaks.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::Method;
use tokio::time::{sleep, timeout};

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

type Pieces = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// Where a stream of server-sent events is, and where it begins.
pub(crate) struct Place {
    /// What it is, for errors.
    pub(crate) what: &'static str,
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    /// Id of the event after which it begins.
    pub(crate) after: Option<String>,
}

/// A stream of server-sent events.
pub(crate) struct Reconnecting {
    client: Client,
    /// Where it is; `after` is the last event that was returned.
    place: Place,
    pieces: Option<Pieces>,
    parser: Parser,
    ready: VecDeque<Message>,
    attempts: u32,
}

impl Reconnecting {
    /// Connects. Fails at once and not after all attempts, as for a wrong key or address.
    pub(crate) async fn open(client: &Client, place: Place) -> Result<Self> {
        let mut stream = Self {
            client: client.clone(),
            place,
            pieces: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            attempts: 0,
        };
        stream.connect().await?;
        Ok(stream)
    }

    /// Returns the next event. Fails if the connection cannot be made again for too long.
    pub(crate) async fn next(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                self.attempts = 0;
                self.place.after = message.id.clone().or(self.place.after.take());
                return Ok(message);
            }
            match &mut self.pieces {
                Some(pieces) => match timeout(IDLE_LIMIT, pieces.next()).await {
                    Ok(Some(Ok(bytes))) => self.ready.extend(self.parser.feed(&bytes)?),
                    // Broken, ended or idle: reconnect.
                    _ => self.pieces = None,
                },
                None => self.reconnect().await?,
            }
        }
    }

    async fn connect(&mut self) -> Result<()> {
        let mut call = self.client.request(Method::GET, &self.place.path);
        call = call.header("Accept", "text/event-stream").query(&self.place.query);
        if let Some(id) = &self.place.after {
            call = call.header("Last-Event-ID", id);
        }
        let silent = |_| Error::Protocol(format!("the {} did not begin in time", self.place.what));
        let response = timeout(IDLE_LIMIT, self.client.send(call)).await.map_err(silent)??;
        self.parser = Parser::default();
        self.pieces = Some(Box::pin(response.bytes_stream()));
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
                let what = self.place.what;
                Err(Error::Protocol(format!("the {what} broke {ATTEMPTS_MAX} times without an event")))
            }
            _ => Ok(()),
        }
    }
}
