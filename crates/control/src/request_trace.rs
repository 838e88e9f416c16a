// SPDX-License-Identifier: Apache-2.0
//! Tracing of requests: every log line of a request has its id, client address, team, key or user, and sandbox; calls
//! to agents have its id.

use std::fmt::Display;

use http::HeaderValue;
use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span, field};
use wrenn_api::SandboxId;

use crate::{
    caller::{Caller, Principal},
    deeds::{self, AuditResource},
    serving::Connection,
};

tokio::task_local! {
    static REQUEST: HeaderValue;
}

/// Creates the span of a request; fields that are not known yet are recorded later.
pub(crate) fn span(id: &HeaderValue, connection: Option<&Connection>) -> Span {
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        client = field::Empty,
        team = field::Empty,
        key = field::Empty,
        user = field::Empty,
        sandbox = field::Empty,
    );
    if let Some(connection) = connection {
        span.record("client", field::display(connection.peer()));
    }
    span
}

/// Runs the rest of a request with its id and in its span.
pub(crate) async fn follow<T>(id: HeaderValue, span: Span, rest: impl Future<Output = T>) -> T {
    REQUEST.scope(id, rest.instrument(span)).await
}

/// Starts a task of a request that continues even if its client disconnects.
pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match request_id() {
        Some(id) => tokio::spawn(follow(id, Span::current(), task)),
        None => tokio::spawn(task),
    }
}

/// Returns the id of the current request.
pub(crate) fn request_id() -> Option<HeaderValue> {
    REQUEST.try_with(HeaderValue::clone).ok()
}

fn record(field: &str, value: impl Display) {
    Span::current().record(field, field::display(value));
}

/// Records team and key or user in the span.
pub(crate) fn caller(caller: &Caller) {
    record("team", caller.team());
    match caller.principal() {
        Principal::Key(key) => record("key", key),
        Principal::User { user, .. } => record("user", user),
        Principal::SignedUrl(_) | Principal::Extension { .. } => {}
    }
}

/// Records the sandbox in the span, and for the audit log.
pub(crate) fn sandbox(id: SandboxId) {
    record("sandbox", id);
    deeds::about(AuditResource::new("sandbox", id));
}
