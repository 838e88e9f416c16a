// SPDX-License-Identifier: Apache-2.0
//! Events service: subscriptions to the events of a caller's team.

use std::{pin::Pin, sync::Arc};

use wrenn_api::{Event, EventKind, SandboxId};

use crate::{
    caller::Caller,
    error::Fault,
    event_store::{Reader, Stored},
    state::State,
};

pub use crate::event_store::{EventId, Start};

/// Which events a subscriber gets. `resync` it gets in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventFilter {
    /// Only events of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only events of these types. Default: all.
    pub kinds: Vec<EventKind>,
}

impl EventFilter {
    fn passes(&self, event: &Event) -> bool {
        let of_sandbox = match event {
            Event::Resync(_) => return true,
            Event::Sandbox(event) => Some(event.sandbox.id),
            Event::Snapshot(_) | Event::Host(_) => None,
        };
        (self.sandbox.is_none() || self.sandbox == of_sandbox)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind()))
    }
}

/// Events of teams.
#[derive(Clone)]
pub struct Events {
    state: Arc<State>,
}

impl Events {
    pub(crate) const fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Subscribes to the events of the caller's team.
    pub async fn subscribe(
        &self,
        caller: &Caller,
        start: Start,
        filter: EventFilter,
    ) -> Result<Subscription, Fault> {
        let reader = self.state.events.reader(caller.team().uuid(), start).await?;
        let (state, caller) = (self.state.clone(), *caller);
        let revoked = Box::pin(async move { state.access.ended(&caller).await });
        Ok(Subscription { state: self.state.clone(), reader, filter, revoked })
    }
}

/// Subscription to events.
pub struct Subscription {
    state: Arc<State>,
    reader: Reader,
    filter: EventFilter,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Subscription {
    /// Waits for the next events, of which the filter may leave none. `None` if the subscription ended:
    /// the server stops, the caller's key was revoked, or the event store failed. The caller can subscribe
    /// again after the last event.
    pub async fn next(&mut self) -> Option<Vec<(EventId, Event)>> {
        tokio::select! {
            () = self.state.shutdown.cancelled() => None,
            () = &mut self.revoked => None,
            stored = self.reader.next() => {
                let events = stored.ok()?.into_iter().map(|Stored { id, event }| (id, event));
                Some(events.filter(|(_, event)| self.filter.passes(event)).collect())
            }
        }
    }
}
