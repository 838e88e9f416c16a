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

use crate::{Actor, ActorKind, Cause, Caused, HostId, Sandbox, SandboxStatus, Snapshot};

/// A server-sent event of `streamEvents`.
#[derive(Debug, Clone, ToSchema)]
#[schema(example = json!({
    "id": "1769851802500-0",
    "event": "sandbox.running",
    "data": "{\"type\":\"sandbox.running\",\"at\":\"2026-01-31T09:30:02.5Z\",\"cause\":\"user\",\"actor\":{\"kind\":\"api_key\"},\"sandbox\":{\"id\":\"sb03halx8fdhw2fu3txwbd0kdw0\"}}"
}))]
pub struct ServerSentEvent {
    /// Place of the event in the stream; pass it as `Last-Event-ID` to get the events after it.
    pub id: Option<String>,
    /// What happened: `sandbox.` and the new status, `sandbox.out_of_memory`, `snapshot.created`, `snapshot.deleted`, `host.up`,
    /// `host.down`, or `resync` if events may be missing.
    #[schema(pattern = "^([a-z]+\\.[a-z_]+|resync)$")]
    pub event: String,
    /// A JSON object as text, of the schema `Event`.
    pub data: String,
}

/// The `data` of a server-sent event of `streamEvents`. Its `type` says which kind it is; types that a client does not know are to
/// be ignored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "host.down", "at": "2026-01-31T09:30:02.5Z", "cause": "host",
    "actor": {"kind": "host", "id": "host03halx8fdhw2fu3txwbd0kdw0"}, "host": {"id": "host03halx8fdhw2fu3txwbd0kdw0"}}))]
#[serde(untagged)]
pub enum Event {
    /// The status of a sandbox changed, or a process in it was killed for want of memory.
    Sandbox(Box<SandboxEvent>),
    /// A snapshot of the team was made or deleted.
    Snapshot(Box<SnapshotEvent>),
    /// A host of the team answers, or does not any more.
    Host(Box<HostEvent>),
    /// Events may be missing.
    Resync(Resync),
}

/// Event of a sandbox: its status changed, or a process in it was killed for want of memory.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "sandbox.paused", "at": "2026-01-31T09:30:02.500001Z", "cause": "idle", "actor": {"kind": "system"},
    "sandbox": {"id": "sb03halx8fdhw2fu3txwbd0kdw0", "status": "paused", "template": "minimal", "vcpus": 1, "memory_mb": 512,
        "disk_size_mb": 5120, "created_at": "2026-01-31T09:20:00Z", "last_updated": "2026-01-31T09:30:02.500001Z"}}))]
pub struct SandboxEvent {
    /// `sandbox.` and the new status, for example `sandbox.running`; `sandbox.out_of_memory` if a process in it was killed for want
    /// of memory, which `last_out_of_memory` of the sandbox names.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^sandbox\\.[a-z_]+$", example = "sandbox.running")]
    pub kind: EventKind,
    /// When the status changed; when the process was killed, by the clock of the guest.
    pub at: DateTime<Utc>,
    /// Why it happened. A status that ends an operation has the cause and the actor of its begin.
    #[serde(default)]
    pub cause: Cause,
    /// Who did it.
    #[serde(default)]
    pub actor: Actor,
    /// The sandbox as it is then.
    pub sandbox: Sandbox,
}

/// Event of a named snapshot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "snapshot.created", "at": "2026-01-31T09:30:02.5Z", "cause": "user",
    "actor": {"kind": "user", "id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada"},
    "snapshot": {"name": "after-setup", "template": "minimal", "vcpus": 1, "memory_mb": 512, "disk_size_mb": 5120,
        "created_at": "2026-01-31T09:30:00Z"}}))]
pub struct SnapshotEvent {
    /// `snapshot.created` or `snapshot.deleted`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^snapshot\\.(created|deleted)$", example = "snapshot.created")]
    pub kind: EventKind,
    /// When it was made or deleted.
    pub at: DateTime<Utc>,
    /// Why it happened.
    #[serde(default)]
    pub cause: Cause,
    /// Who did it.
    #[serde(default)]
    pub actor: Actor,
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// Event of a host that belongs to the team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "host.up", "at": "2026-01-31T09:30:02.5Z", "cause": "host",
    "actor": {"kind": "host", "id": "host03halx8fdhw2fu3txwbd0kdw0"}, "host": {"id": "host03halx8fdhw2fu3txwbd0kdw0"}}))]
pub struct HostEvent {
    /// `host.up` or `host.down`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^host\\.(up|down)$", example = "host.down")]
    pub kind: EventKind,
    /// When the control plane noticed it.
    pub at: DateTime<Utc>,
    /// Why it happened.
    #[serde(default)]
    pub cause: Cause,
    /// Who did it.
    #[serde(default)]
    pub actor: Actor,
    /// The host.
    pub host: EventHost,
}

/// Host of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "host03halx8fdhw2fu3txwbd0kdw0"}))]
pub struct EventHost {
    /// Its id.
    #[schema(value_type = String, pattern = "^host[0-9a-e][0-9a-z]{24}$")]
    pub id: HostId,
}

/// Event for a reader that may have missed events: list the sandboxes again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = ResyncEvent, example = json!({"type": "resync", "reason": "events after the id are no longer kept"}))]
pub struct Resync {
    /// `resync`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^resync$", example = "resync")]
    pub kind: EventKind,
    /// Why events may be missing.
    pub reason: String,
}

/// Type of an event, in JSON and as the name of a server-sent event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// `sandbox.STATUS`: a sandbox has a new status.
    Sandbox(SandboxStatus),
    /// `sandbox.out_of_memory`: a process in a sandbox was killed for want of memory.
    OutOfMemory,
    /// `snapshot.created`: a named snapshot was made.
    SnapshotCreated,
    /// `snapshot.deleted`: a named snapshot was deleted.
    SnapshotDeleted,
    /// `host.up`: a host of the team answers.
    HostUp,
    /// `host.down`: a host of the team does not answer any more.
    HostDown,
    /// `resync`: events may be missing.
    Resync,
}

/// Type of an event that can be asked for, as a parameter.
#[derive(Debug)]
pub struct WantedEventKind;

impl PartialSchema for WantedEventKind {
    fn schema() -> RefOr<Schema> {
        let kinds = EventKind::all().map(|kind| kind.to_string());
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(kinds)).into()
    }
}

impl ToSchema for WantedEventKind {}

impl Event {
    /// Creates the event of a sandbox whose status changed last.
    pub fn changed(sandbox: Sandbox, caused: Caused) -> Self {
        let (kind, at) = (EventKind::Sandbox(sandbox.status), sandbox.last_updated);
        let Caused { cause, actor } = caused;
        Self::Sandbox(Box::new(SandboxEvent { kind, at, cause, actor, sandbox }))
    }

    /// Creates the event of a sandbox in which a process was killed for want of memory.
    pub fn out_of_memory(sandbox: Sandbox) -> Self {
        let at = sandbox.last_out_of_memory.as_ref().map_or(sandbox.last_updated, |killed| killed.at);
        let (kind, cause, actor) = (EventKind::OutOfMemory, Cause::OutOfMemory, Actor::default());
        Self::Sandbox(Box::new(SandboxEvent { kind, at, cause, actor, sandbox }))
    }

    /// Creates the event of a snapshot that was made now.
    pub fn snapshot_created(snapshot: Snapshot, caused: Caused) -> Self {
        Self::snapshot(EventKind::SnapshotCreated, snapshot, caused)
    }

    /// Creates the event of a snapshot that was deleted now.
    pub fn snapshot_deleted(snapshot: Snapshot, caused: Caused) -> Self {
        Self::snapshot(EventKind::SnapshotDeleted, snapshot, caused)
    }

    fn snapshot(kind: EventKind, snapshot: Snapshot, Caused { cause, actor }: Caused) -> Self {
        Self::Snapshot(Box::new(SnapshotEvent { kind, at: Utc::now(), cause, actor, snapshot }))
    }

    /// Creates the event of a host that was found to answer, or not to, now.
    pub fn host(id: HostId, is_up: bool) -> Self {
        let kind = if is_up { EventKind::HostUp } else { EventKind::HostDown };
        let actor = Actor { kind: ActorKind::Host, id: Some(id.to_string()), name: None };
        let (at, cause, host) = (Utc::now(), Cause::Host, EventHost { id });
        Self::Host(Box::new(HostEvent { kind, at, cause, actor, host }))
    }

    /// Creates the event for a reader that may have missed events.
    pub fn resync(reason: impl Into<String>) -> Self {
        Self::Resync(Resync { kind: EventKind::Resync, reason: reason.into() })
    }

    /// Type of the event.
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Sandbox(event) => event.kind,
            Self::Snapshot(event) => event.kind,
            Self::Host(event) => event.kind,
            Self::Resync(event) => event.kind,
        }
    }

    /// Why it happened, and who did it; `None` for `resync`, which nobody did.
    pub fn caused(&self) -> Option<(Cause, &Actor)> {
        match self {
            Self::Sandbox(event) => Some((event.cause, &event.actor)),
            Self::Snapshot(event) => Some((event.cause, &event.actor)),
            Self::Host(event) => Some((event.cause, &event.actor)),
            Self::Resync(_) => None,
        }
    }
}

impl EventKind {
    /// Every type that can be asked for, which is every one that happens: all but `resync`, which is about a stream, and
    /// `sandbox.pending`, because a sandbox is recorded with its host, as `starting`.
    pub fn all() -> impl Iterator<Item = Self> {
        let others =
            [Self::OutOfMemory, Self::SnapshotCreated, Self::SnapshotDeleted, Self::HostUp, Self::HostDown];
        let statuses = SandboxStatus::ALL.into_iter().filter(|status| *status != SandboxStatus::Pending);
        statuses.map(Self::Sandbox).chain(others)
    }

    /// Reads a type that is asked for; `None` if the text is none of [`EventKind::all`].
    pub fn asked_for(text: &str) -> Option<Self> {
        text.parse::<Self>().ok().filter(|kind| Self::all().any(|one| one == *kind))
    }
}

impl Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(status) => write!(f, "sandbox.{}", status.as_str()),
            Self::OutOfMemory => f.write_str("sandbox.out_of_memory"),
            Self::SnapshotCreated => f.write_str("snapshot.created"),
            Self::SnapshotDeleted => f.write_str("snapshot.deleted"),
            Self::HostUp => f.write_str("host.up"),
            Self::HostDown => f.write_str("host.down"),
            Self::Resync => f.write_str("resync"),
        }
    }
}

impl FromStr for EventKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('.') {
            Some(("sandbox", "out_of_memory")) => Ok(Self::OutOfMemory),
            Some(("sandbox", status)) => status.parse().map(Self::Sandbox),
            Some(("snapshot", "created")) => Ok(Self::SnapshotCreated),
            Some(("snapshot", "deleted")) => Ok(Self::SnapshotDeleted),
            Some(("host", "up")) => Ok(Self::HostUp),
            Some(("host", "down")) => Ok(Self::HostDown),
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
        for kind in EventKind::all().chain([EventKind::Resync]) {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in EventKind::all() {
            assert_eq!(EventKind::asked_for(&kind.to_string()), Some(kind));
        }
        for never in ["resync", "sandbox.pending", "sandbox.flying"] {
            assert_eq!(EventKind::asked_for(never), None, "{never}");
        }
        for wrong in ["", "sandbox", "sandbox.", "sandbox.flying", "host.running", "snapshot.up", "resync.x"]
        {
            assert_eq!(wrong.parse::<EventKind>(), Err(()), "{wrong}");
        }
    }
}
