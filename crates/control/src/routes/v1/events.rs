// SPDX-License-Identifier: Apache-2.0
//! The team's events as server-sent events.

use axum::{
    extract::State,
    response::{Response, sse::Event as SseEvent},
};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use http::HeaderMap;
use wrenn_api::{Event, EventKind, SandboxRef, ServerSentEvent, WantedEventKind};
use wrenn_rpc::Foreign;

use super::{error_responses::OfEvents, extract::Parameters, sse};
use crate::{
    caller::Caller,
    error::Fault,
    events::{EventFilter, EventId, Start},
    services::Services,
};

/// Stream the events of the team: of its sandboxes, its named snapshots and its hosts.
///
/// The response is a stream of server-sent events that does not end by itself. An event has an `id`, an `event` (such as
/// `sandbox.running`) and `data`, a JSON object of the schema `Event`, with `cause`, why it happened, and `actor`, who did it. A
/// client that connects again with `Last-Event-ID` gets all events since then, of the last 10,000 or so, and may get one twice. If
/// events may be missing, because that id is older than what is kept, or of no event that is known, the first event is `resync`
/// (its `data` has `type` and `reason`): list the sandboxes again. `resync` comes whatever `type` and `sandbox` are.
#[utoipa::path(
    get, path = "/v1/events/stream", operation_id = "streamEvents", tag = "events",
    params(
        ("Last-Event-ID" = Option<String>, Header, description = "Send the events after the one with this id. Default: only new events.",
            pattern = "^[0-9]{1,18}(-[0-9]{1,18})?$"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Send the events since this time first, of those that are kept. Without effect if there is a `Last-Event-ID`, as when a client connects again.",
            example = "2026-01-31T09:30:00Z"),
        ("sandbox" = Option<String>, Query, description = "Send only events of this sandbox, and none of snapshots and hosts: its id, also of a deleted one, a beginning of its id that no other has, or its name.",
            pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$"),
        ("type" = inline(Option<Vec<WantedEventKind>>), Query, description = "Send only events of this type. May be repeated."),
    ),
    responses((status = 200, description = "The events.", body = ServerSentEvent, content_type = "text/event-stream"), OfEvents)
)]
pub(super) async fn stream(
    State(services): State<Services>,
    caller: Caller,
    headers: HeaderMap,
    Parameters(parameters): Parameters,
) -> Result<Response, Fault> {
    let wish = wish(parameters)?;
    let sandbox = match &wish.sandbox {
        Some(sandbox) => Some(services.sandboxes().resolve(&caller, sandbox).await?),
        None => None,
    };
    let start = match (last_event(&headers)?, wish.since) {
        (Some(id), _) => Start::After(id),
        (None, Some(time)) => Start::Since(time),
        (None, None) => Start::New,
    };
    let filter = EventFilter { sandbox, kinds: wish.kinds };
    let subscription = services.events().subscribe(&caller, start, filter).await?;
    let batches = stream::unfold(subscription, async |mut subscription| {
        let events = subscription.next().await?;
        let events: Vec<_> = events.iter().map(|(id, event)| Ok(render(*id, event))).collect();
        Some((stream::iter(events), subscription))
    });
    Ok(sse::respond(batches.flatten()))
}

/// Parameters of the query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    since: Option<DateTime<Utc>>,
    sandbox: Option<SandboxRef>,
    kinds: Vec<EventKind>,
}

fn wish(parameters: Vec<(String, String)>) -> Result<Wish, Fault> {
    let mut wish = Wish::default();
    for (name, value) in parameters {
        let shown = Foreign(&value);
        let repeated = match name.as_str() {
            "since" => {
                let wrong = |_| {
                    Fault::invalid(format!(
                        "since is {shown}: it must be a time such as 2026-01-31T09:30:00Z"
                    ))
                };
                wish.since.replace(value.parse().map_err(wrong)?).is_some()
            }
            "sandbox" => {
                let wrong = |error| Fault::invalid(format!("sandbox: {error}"));
                wish.sandbox.replace(value.parse().map_err(wrong)?).is_some()
            }
            "type" => {
                let wrong = || {
                    let all: Vec<_> = EventKind::all().map(|kind| kind.to_string()).collect();
                    Fault::invalid(format!("type is {shown}: it must be one of {}", all.join(", ")))
                };
                let kind = EventKind::asked_for(&value).ok_or_else(wrong)?;
                if !wish.kinds.contains(&kind) {
                    wish.kinds.push(kind);
                }
                false
            }
            other => {
                let message =
                    format!("there is no parameter {}: use since, sandbox and type", Foreign(other));
                return Err(Fault::invalid(message));
            }
        };
        if repeated {
            return Err(Fault::invalid(format!("{name} is given twice")));
        }
    }
    Ok(wish)
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
    use std::convert::Infallible;

    use http_body_util::BodyExt as _;
    use wrenn_api::SandboxStatus;

    use super::*;

    #[test]
    fn wrong_parameters_are_named_with_what_they_may_be() {
        let parsed = |query: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            wish(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
                .map_err(|error| error.message)
        };
        assert_eq!(parsed(""), Ok(Wish::default()));
        let kinds =
            vec![EventKind::Sandbox(SandboxStatus::Running), EventKind::Sandbox(SandboxStatus::Stopped)];
        let sandbox = Some(SandboxRef::Lookup("web".to_owned()));
        let since = "2026-01-31T09:30:00Z".parse().ok();
        assert_eq!(
            parsed("type=sandbox.running&type=sandbox.stopped&sandbox=web&since=2026-01-31T10:30:00+01:00"),
            Ok(Wish { since, sandbox, kinds })
        );
        for (query, message) in [
            ("type=running", r#"type is "running": it must be one of sandbox.starting, "#),
            ("type=sandbox.pending", r#"type is "sandbox.pending": "#),
            ("type=resync", r#"type is "resync": "#),
            ("sandbox=a&sandbox=b", "sandbox is given twice"),
            ("since=10m", r#"since is "10m": it must be a time such as 2026"#),
            ("sandbox=A", r#"sandbox: "A" is no sandbox"#),
            ("after=1", r#"there is no parameter "after": use since, sandbox and type"#),
        ] {
            let told = parsed(query).err().unwrap_or_default();
            assert!(told.starts_with(message), "{query}: {told}");
        }
    }

    #[tokio::test]
    async fn an_event_has_its_id_its_type_and_its_json() {
        let id = "1769851802500-0".parse().expect("an id");
        let event = render(id, &Event::resync("why"));
        let response = sse::respond(stream::iter([Ok::<_, Infallible>(event)]));
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let mut lines: Vec<_> = std::str::from_utf8(&bytes).expect("text").lines().collect();
        lines.sort_unstable();
        let expected =
            ["", r#"data: {"type":"resync","reason":"why"}"#, "event: resync", "id: 1769851802500-0"];
        assert_eq!(lines, expected);
    }
}
