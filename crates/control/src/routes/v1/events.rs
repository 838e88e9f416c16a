// SPDX-License-Identifier: Apache-2.0
//! The team's events as server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _, stream};
use http::HeaderMap;
use wrenn_api::{Event, ServerSentEvent};

use super::error_responses::OfLook;
use crate::{caller::Caller, error::Fault, events::EventId, services::Services};

/// Stream the events of the team's sandboxes.
///
/// The response is a stream of server-sent events that does not end by itself. An event has an `id`, an `event` (such as
/// `sandbox.running`) and `data`, a JSON object of the schema `Event`. A client that connects again with `Last-Event-ID` gets
/// all events since then, of the last 10,000 or so, and may get one twice. If events may be missing, because that id is older
/// than what is kept, or newer than any event, the first event is `resync` (its `data` has `type` and `reason`): list the
/// sandboxes again.
#[utoipa::path(
    get, path = "/v1/events/stream", operation_id = "streamEvents", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "Send the events after the one with this id. Default: only new events.",
        pattern = "^[0-9]{1,18}(-[0-9]{1,18})?$")),
    responses((status = 200, description = "The events.", body = ServerSentEvent, content_type = "text/event-stream"), OfLook)
)]
pub(super) async fn stream(
    State(services): State<Services>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Fault> {
    let subscription = services.events().subscribe(&caller, last_event(&headers)?).await?;
    let batches = stream::unfold(subscription, async |mut subscription| {
        let events = subscription.next().await?;
        let events: Vec<_> = events.iter().map(|(id, event)| Ok(render(*id, event))).collect();
        Some((stream::iter(events), subscription))
    });
    Ok(Sse::new(batches.flatten()).keep_alive(KeepAlive::default()))
}

/// Returns the event after which a client wants to continue.
fn last_event(headers: &HeaderMap) -> Result<Option<EventId>, Fault> {
    let Some(given) = headers.get("last-event-id") else { return Ok(None) };
    let id = given.to_str().ok().and_then(|id| id.parse().ok());
    id.map(Some).ok_or_else(|| Fault::invalid("Last-Event-ID is not the id of an event"))
}

fn render(id: EventId, event: &Event) -> SseEvent {
    // An event is always JSON.
    let data = serde_json::to_string(event).unwrap_or_default();
    SseEvent::default().id(id.to_string()).event(event.kind().to_string()).data(data)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_event_has_its_id_its_type_and_its_json() {
        let id = "1769851802500-0".parse().expect("an id");
        let event = render(id, &Event::resync("why"));
        let response = Sse::new(stream::iter([Ok::<_, Infallible>(event)])).into_response();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let mut lines: Vec<_> = std::str::from_utf8(&bytes).expect("text").lines().collect();
        lines.sort_unstable();
        let expected =
            ["", r#"data: {"type":"resync","reason":"why"}"#, "event: resync", "id: 1769851802500-0"];
        assert_eq!(lines, expected);
    }
}
