// SPDX-License-Identifier: Apache-2.0
//! Event stream that reconnects after the last event.

use futures::{Stream, stream};
use serde::{Deserialize, Serialize};
use wrenn_api::{EventKind, SandboxRef};

use crate::{
    Client, Result,
    reconnecting::{Place, Reconnecting},
    sse::Message,
};

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

impl Client {
    /// Streams events. Reconnects after the last event if the connection breaks; ends with an error if that fails for too
    /// long.
    pub async fn events(
        &self,
        filter: &EventFilter,
    ) -> Result<impl Stream<Item = Result<Event>> + Send + Unpin + use<>> {
        let place = Place {
            what: "event stream",
            path: "/v1/events/stream".to_owned(),
            query: filter.query(),
            after: filter.after.clone(),
        };
        let events = Reconnecting::open(self, place).await?;
        Ok(Box::pin(stream::try_unfold(events, next)))
    }
}

async fn next(mut events: Reconnecting) -> Result<Option<(Event, Reconnecting)>> {
    let event = events.next().await?.into();
    Ok(Some((event, events)))
}

impl From<Message> for Event {
    fn from(message: Message) -> Self {
        let data = serde_json::from_str(&message.data).unwrap_or(serde_json::Value::String(message.data));
        Self { id: message.id, event: message.kind, data }
    }
}
