// SPDX-License-Identifier: Apache-2.0
//! The team's events as server-sent events.

use std::convert::Infallible;

use axum::{
    Extension,
    extract::State,
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures::{Stream, stream};
use http::HeaderMap;
use wrenn_api::ServerSentEvent;

use super::refusals::OfLook;
use crate::{
    auth::{self, Asker},
    error::ApiError,
    events::EventId,
    state::App,
};

/// Stream the events of the team's sandboxes.
///
/// The response is a stream of server-sent events that does not end by itself. An event has an `id`, an `event` (such as
/// `sandbox.running`) and `data`, a JSON object of the schema `Event`. A client that connects again with `Last-Event-ID` gets
/// all events since then, of the last 10,000 or so, and may get one twice. If events may be missing, because that id is older
/// than what is kept, or newer than any event, the first event is `resync` (its `data` has `type` and `reason`): list the
/// sandboxes again.
#[utoipa::path(
    get, path = "/v1/events/stream", operation_id = "streamEvents", tag = "events", security(("api_key" = [])),
    params(("Last-Event-ID" = Option<String>, Header, description = "Send the events after the one with this id. Default: only new events.",
        pattern = "^[0-9]{1,18}(-[0-9]{1,18})?$")),
    responses((status = 200, description = "The events.", body = ServerSentEvent, content_type = "text/event-stream"), OfLook)
)]
pub(super) async fn stream(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let last = match headers.get("last-event-id").map(|value| value.to_str()) {
        None => None,
        Some(Ok(id)) => {
            let wrong = || ApiError::invalid("Last-Event-ID is not the id of an event");
            Some(id.parse::<EventId>().map_err(|()| wrong())?)
        }
        Some(Err(_)) => return Err(ApiError::invalid("Last-Event-ID is not the id of an event")),
    };
    let reader = app.events.reader(asker.team, last).await?;
    let revoked = Box::pin({
        let app = app.clone();
        async move { auth::revoked(&app, asker).await }
    });
    let batches = stream::unfold((reader, app, revoked), async |(mut reader, app, mut revoked)| {
        let events = tokio::select! {
            () = app.shutdown.cancelled() => return None,
            () = &mut revoked => return None,
            // If Redis fails, the stream ends; the client reconnects with the last id.
            events = reader.next() => events.ok()?,
        };
        let events: Vec<_> = events
            .into_iter()
            .map(|event| {
                Ok(SseEvent::default().id(event.id.to_string()).event(event.kind()).data(event.json))
            })
            .collect();
        Some((stream::iter(events), (reader, app, revoked)))
    });
    let events = futures::StreamExt::flatten(batches);
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
