//! The team's events as server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures::{Stream, stream};
use http::HeaderMap;
use wrenn_api::{ErrorCode, ServerSentEvent};

use super::refusals::OfLook;
use crate::{error::ApiError, events::is_id, extract::Caller, state::App};

/// Stream the events of the team's sandboxes.
///
/// The response is a stream of server-sent events that does not end by itself. An event has an `id`, an `event` (such as
/// `sandbox.running`) and `data`, a JSON object of the schema `Event`. A client that connects again with `Last-Event-ID` gets
/// all events since then, of the last 10,000 or so, and may get one twice.
#[utoipa::path(
    get, path = "/v1/events/stream", operation_id = "streamEvents", tag = "events", security(("api_key" = [])),
    params(("Last-Event-ID" = Option<String>, Header, description = "Send the events after the one with this id. Default: only new events.",
        pattern = "^[0-9]{1,18}(-[0-9]{1,18})?$")),
    responses((status = 200, description = "The events.", body = ServerSentEvent, content_type = "text/event-stream"), OfLook)
)]
pub(super) async fn stream(
    State(app): State<App>,
    Caller(team): Caller,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let last = match headers.get("last-event-id").map(|value| value.to_str()) {
        None => None,
        Some(Ok(id)) if is_id(id) => Some(id.to_owned()),
        Some(_) => return Err(ApiError::invalid("Last-Event-ID is not the id of an event")),
    };
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        let message = "the control plane has too many streams open; close some, or try again later";
        return Err(ApiError::new(ErrorCode::TooManyRequests, message));
    };
    let reader = app.events.reader(team, last).await?;
    let batches = stream::unfold((reader, app, permit), async |(mut reader, app, permit)| {
        let events = tokio::select! {
            () = app.shutdown.cancelled() => return None,
            // When Redis goes away the stream ends; the client comes back with the last id.
            events = reader.next() => events.ok()?,
        };
        let events: Vec<_> = events
            .into_iter()
            .map(|event| {
                let kind = serde_json::from_str::<serde_json::Value>(&event.json)
                    .ok()
                    .and_then(|json| json["type"].as_str().map(str::to_owned))
                    .unwrap_or_else(|| "message".to_owned());
                Ok(SseEvent::default().id(event.id).event(kind).data(event.json))
            })
            .collect();
        Some((stream::iter(events), (reader, app, permit)))
    });
    let events = futures::StreamExt::flatten(batches);
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
