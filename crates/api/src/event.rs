// SPDX-License-Identifier: Apache-2.0
//! Events of a team, as they are stored, and sent as server-sent events.

use std::{fmt, fmt::Display, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

use crate::{Sandbox, SandboxStatus};

/// A server-sent event of `streamEvents`.
#[derive(Debug, Clone, ToSchema)]
#[schema(example = json!({
    "id": "1769851802500-0",
    "event": "sandbox.running",
    "data": "{\"type\":\"sandbox.running\",\"at\":\"2026-01-31T09:30:02.5Z\",\"sandbox\":{\"id\":\"sb03halx8fdhw2fu3txwbd0kdw0\"}}"
}))]
pub struct ServerSentEvent {
    /// Place of the event in the stream; pass it as `Last-Event-ID` to get the events after it.
    pub id: Option<String>,
    /// What happened: `sandbox.` and the new status, or `resync` if events may be missing.
    #[schema(pattern = "^(sandbox\\.[a-z]+|resync)$")]
    pub event: String,
    /// A JSON object as text: of the schema `Event`, or with `type` and `reason` if `event` is `resync`.
    pub data: String,
}

/// Event of a team.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// The status of a sandbox changed.
    Sandbox(Box<SandboxEvent>),
    /// Events may be missing.
    Resync(Resync),
}

/// The `data` of a server-sent event of `streamEvents`: the status of a sandbox changed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Event)]
pub struct SandboxEvent {
    /// `sandbox.` and the new status, for example `sandbox.running`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^sandbox\\.[a-z]+$", example = "sandbox.running")]
    pub kind: EventKind,
    /// When the status changed.
    pub at: DateTime<Utc>,
    /// The sandbox with its new status.
    pub sandbox: Sandbox,
}

/// Events may be missing: list the sandboxes again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resync {
    /// `resync`.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// Why events may be missing.
    pub reason: String,
}

/// Type of an event, in JSON and as the name of a server-sent event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// `sandbox.STATUS`: a sandbox has a new status.
    Sandbox(SandboxStatus),
    /// `resync`: events may be missing.
    Resync,
}

/// Type of an event of a sandbox, as a parameter.
#[derive(Debug)]
pub struct SandboxEventKind;

impl PartialSchema for SandboxEventKind {
    fn schema() -> RefOr<Schema> {
        let kinds = SandboxStatus::ALL.map(|status| EventKind::Sandbox(status).to_string());
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(kinds)).into()
    }
}

impl ToSchema for SandboxEventKind {}

impl Event {
    /// Creates the event of a sandbox whose status changed last.
    pub fn changed(sandbox: Sandbox) -> Self {
        Self::Sandbox(Box::new(SandboxEvent {
            kind: EventKind::Sandbox(sandbox.status),
            at: sandbox.last_updated,
            sandbox,
        }))
    }

    /// Creates the event for a reader that may have missed events.
    pub fn resync(reason: impl Into<String>) -> Self {
        Self::Resync(Resync { kind: EventKind::Resync, reason: reason.into() })
    }

    /// Type of the event.
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Sandbox(event) => event.kind,
            Self::Resync(event) => event.kind,
        }
    }
}

impl Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(status) => write!(f, "sandbox.{}", status.as_str()),
            Self::Resync => f.write_str("resync"),
        }
    }
}

impl FromStr for EventKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('.') {
            Some(("sandbox", status)) => status.parse().map(Self::Sandbox),
            None if text == "resync" => Ok(Self::Resync),
            _ => Err(()),
        }
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|()| de::Error::custom(format_args!("there is no event of the type {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_the_text_that_they_are_made_from() {
        let statuses = SandboxStatus::ALL.map(EventKind::Sandbox);
        for kind in statuses.into_iter().chain([EventKind::Resync]) {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for wrong in ["", "sandbox", "sandbox.", "sandbox.flying", "host.running", "resync.x"] {
            assert_eq!(wrong.parse::<EventKind>(), Err(()), "{wrong}");
        }
    }
}
