// SPDX-License-Identifier: Apache-2.0
//! The log of a build as server-sent events.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::{Response, sse::Event as SseEvent},
};
use futures::{StreamExt as _, stream};
use http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;
use wrenn_rpc::Foreign;

use super::{builds::InPath, error_responses::OfBuild, extract::Parameters, sse};
use crate::{
    builds::{FollowedLog, News},
    caller::Caller,
    error::Fault,
    services::Services,
};

/// Maximum number of digits of an offset.
const DIGITS: usize = 15;
/// Number of the last step that a recipe can have.
const STEP_MAX: u32 = 1000;

/// A server-sent event of `streamBuildLogs`.
#[derive(ToSchema)]
#[schema(as = BuildLogEvent, example = json!({
    "id": "17",
    "event": "log",
    "data": "{\"offset\":17,\"step\":2,\"stream\":\"stdout\",\"text\":\"Setting up nginx\\n\",\"at\":\"2026-01-31T09:30:00Z\"}"
}))]
#[allow(dead_code, reason = "describes the stream; its events are written one by one")]
pub(super) struct BuildLogEvent {
    /// Place in the log; pass it as `Last-Event-ID` to get what comes after it.
    id: String,
    /// `log`, or `end`, which is the last one.
    #[schema(pattern = "^(log|end)$")]
    event: String,
    /// A JSON object as text: of the schema `BuildLogEntry`, or of the schema `Build` if `event` is `end`.
    data: String,
}

/// Stream the log of a build.
///
/// The response is a stream of server-sent events, which begins with the log so far and goes on while the build runs. An event
/// `log` has an entry of the log, whose offset is the event's `id`. The last event is `end`, with the build as it has ended. A
/// client whose connection breaks connects again with `Last-Event-ID` and misses nothing.
#[utoipa::path(
    get, path = "/v1/templates/builds/{id}/logs", operation_id = "streamBuildLogs", tag = "builds",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("step" = Option<u32>, Query, description = "Send only entries of the step with this number; 0 is for what concerns the whole build.", minimum = 0, maximum = 1000),
        ("offset" = Option<i64>, Query, description = "Send the entries after this one. Without effect if there is a `Last-Event-ID`, as when a client connects again. Default: 0, all entries.",
            minimum = 0, maximum = 999_999_999_999_999_i64),
        ("Last-Event-ID" = Option<String>, Header, description = "Send the entries after the one with this id.", pattern = "^[0-9]{1,15}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The log.", body = BuildLogEvent, content_type = "text/event-stream"), OfBuild)
)]
pub(super) async fn stream(
    State(services): State<Services>,
    caller: Caller,
    InPath(id): InPath,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Fault> {
    let [step, offset] = parameters.known(["step", "offset"])?;
    let step = step.map(|text| step_of(&text)).transpose()?;
    let offset = offset.map(|text| offset_of("offset", &text)).transpose()?;
    let after = last_event(&headers)?.or(offset).unwrap_or_default();
    let log = FollowedLog::open(&services.builds(), &caller, id, after, step).await?;
    let batches = stream::unfold(log, async |mut log| {
        let news = log.next().await?;
        Some((stream::iter(render(&news, log.offset())), log))
    });
    Ok(sse::respond(batches.flatten()))
}

fn step_of(text: &str) -> Result<u32, Fault> {
    let step = text.parse().ok().filter(|step| *step <= STEP_MAX);
    step.ok_or_else(|| Fault::invalid(format!("step is {}: it must be 0 to {STEP_MAX}", Foreign(text))))
}

fn offset_of(name: &str, text: &str) -> Result<i64, Fault> {
    let is_number = text.len() <= DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    let offset = text.parse().ok().filter(|_| is_number);
    offset.ok_or_else(|| Fault::invalid(format!("{name} is {}: it must be an entry's offset", Foreign(text))))
}

/// Returns the entry after which a client wants to continue.
fn last_event(headers: &HeaderMap) -> Result<Option<i64>, Fault> {
    let Some(given) = headers.get("last-event-id") else { return Ok(None) };
    // One that is no text is as wrong as an empty one.
    offset_of("Last-Event-ID", given.to_str().unwrap_or_default()).map(Some)
}

/// Writes events; the offset is that of the last entry.
fn render(news: &News, offset: i64) -> Vec<Result<SseEvent, Infallible>> {
    match news {
        News::Entries(entries) => entries.iter().map(|entry| Ok(event("log", entry.offset, entry))).collect(),
        News::End(build) => vec![Ok(event("end", offset, build))],
    }
}

fn event(kind: &str, offset: i64, content: &impl Serialize) -> SseEvent {
    // An entry and a build are always JSON.
    let data = serde_json::to_string(content).unwrap_or_default();
    SseEvent::default().id(offset.to_string()).event(kind).data(data)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use wrenn_api::{BuildLogEntry, BuildStream};

    use super::*;

    #[test]
    fn places_in_a_log_are_numbers() {
        assert_eq!(step_of("0").ok(), Some(0));
        assert_eq!(step_of("1000").ok(), Some(1000));
        for wrong in ["", "-1", "1001", "x", "4294967296"] {
            assert!(step_of(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(offset_of("offset", "0").ok(), Some(0));
        assert_eq!(offset_of("offset", "999999999999999").ok(), Some(999_999_999_999_999));
        for wrong in ["", "-1", "+1", "1-0", "x", "1000000000000000"] {
            let told = offset_of("offset", wrong).err().map(|error| error.message).unwrap_or_default();
            assert!(told.starts_with("offset is \""), "{wrong:?}: {told}");
        }
        let last = |id: &'static str| {
            last_event(&HeaderMap::from_iter([(
                http::HeaderName::from_static("last-event-id"),
                http::HeaderValue::from_static(id),
            )]))
        };
        assert_eq!(last("17").ok(), Some(Some(17)));
        assert!(last("").is_err() && last("1769851802500-0").is_err());
        assert_eq!(last_event(&HeaderMap::new()).ok(), Some(None));
    }

    #[tokio::test]
    async fn an_entry_has_its_offset_as_id() {
        let entry = BuildLogEntry {
            offset: 17,
            step: 2,
            stream: BuildStream::Stdout,
            text: "a\nb\r".into(),
            at: "2026-01-31T09:30:00Z".parse().expect("a time"),
        };
        let events = render(&News::Entries(vec![entry]), 0);
        let response = sse::respond(stream::iter(events));
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let mut lines: Vec<_> = std::str::from_utf8(&bytes).expect("text").lines().collect();
        lines.sort_unstable();
        let data =
            r#"data: {"offset":17,"step":2,"stream":"stdout","text":"a\nb\r","at":"2026-01-31T09:30:00Z"}"#;
        assert_eq!(lines, ["", data, "event: log", "id: 17"]);
    }
}
