//! Events of the team's sandboxes as server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures::{Stream, stream};
use http::HeaderMap;
use wrenn_api::ErrorCode;

use crate::{error::ApiError, events::is_id, extract::Caller, state::App};

/// Stream what happens to the team's sandboxes.
///
/// Server-sent events: `id`, `event` (as `sandbox.running`) and `data`, a JSON object with `type`, `at` and
/// `sandbox`. A client that comes back with `Last-Event-ID` misses nothing of about the last 10000 events, and
/// may see one twice.
#[utoipa::path(
    get, path = "/v1/events/stream", tag = "events", security(("api_key" = [])),
    params(("Last-Event-ID" = Option<String>, Header, description = "Go on after this event.",
        pattern = "^[0-9]{1,18}(-[0-9]{1,18})?$")),
    responses((status = 200, description = "The events.", content_type = "text/event-stream"))
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
