//! What finds a request again: its id, the client's address, team, key and sandbox stand in every line of its log, and
//! its id goes with it to the agents.

use std::fmt::Display;

use http::HeaderValue;
use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span, field};
use uuid::Uuid;
use wrenn_api::{ApiKeyId, SandboxId, TeamId};

use crate::serving::Connection;

tokio::task_local! {
    static REQUEST: HeaderValue;
}

/// The span of a request; what is not known yet is recorded later.
pub(crate) fn span(id: &HeaderValue, connection: Option<&Connection>) -> Span {
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        client = field::Empty,
        team = field::Empty,
        key = field::Empty,
        sandbox = field::Empty,
    );
    if let Some(connection) = connection {
        span.record("client", field::display(connection.peer()));
    }
    span
}

/// Runs the rest of a request under its id and in its span.
pub(crate) async fn follow<T>(id: HeaderValue, span: Span, rest: impl Future<Output = T>) -> T {
    REQUEST.scope(id, rest.instrument(span)).await
}

/// Starts a task that goes on for a request, whether or not its client waits.
pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match request_id() {
        Some(id) => tokio::spawn(follow(id, Span::current(), task)),
        None => tokio::spawn(task),
    }
}

/// The id of the request that is in work here.
pub(crate) fn request_id() -> Option<HeaderValue> {
    REQUEST.try_with(HeaderValue::clone).ok()
}

fn record(field: &str, value: impl Display) {
    Span::current().record(field, field::display(value));
}

/// Notes who asks.
pub(crate) fn asker(team: Uuid, key: Uuid) {
    record("team", TeamId::from(team));
    record("key", ApiKeyId::from(key));
}

/// Notes which sandbox the request is about.
pub(crate) fn sandbox(id: SandboxId) {
    record("sandbox", id);
}
