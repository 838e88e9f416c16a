// SPDX-License-Identifier: Apache-2.0
//! What a receiver is told of an event: the body of a webhook, and the text for people. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use uuid::Uuid;
use wrenn_api::{Actor, Cause, ChannelActor, ChannelEvent, ChannelResource, DeliveryId, TeamId};

/// Type of the event of a test.
const TEST: &str = "channel.test";
/// Maximum length of a name in a text, in characters.
const NAME_MAX: usize = 100;

/// A message to a receiver.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Delivery that it belongs to.
    pub(crate) delivery: DeliveryId,
    /// Number of the attempt, from 1.
    pub(crate) attempt: u32,
    /// What a webhook gets.
    pub(crate) event: ChannelEvent,
}

impl Message {
    /// Creates the message of a test.
    pub(crate) fn test(team: TeamId) -> Self {
        let (delivery, id) = (DeliveryId::new(), Uuid::now_v7());
        let event = ChannelEvent {
            id,
            event: TEST.to_owned(),
            timestamp: Utc::now(),
            team_id: team,
            cause: Cause::User,
            actor: actor(Actor::default()),
            resource: ChannelResource { kind: "channel".to_owned(), id: "test".to_owned() },
            data: None,
        };
        Self { delivery, attempt: 1, event }
    }

    /// What the message tells people, in lines.
    pub(crate) fn text(&self) -> String {
        let ChannelEvent { event, timestamp, team_id, cause, actor, resource, data, .. } = &self.event;
        let name = data.as_ref().and_then(|data| data.pointer("/sandbox/name")?.as_str());
        let named = name.map(|name| format!(" {}", plain(name))).unwrap_or_default();
        let who = [actor.name.as_deref(), actor.id.as_deref()].into_iter().flatten().map(plain);
        let who: Vec<String> = std::iter::once(actor.kind.to_string()).chain(who).collect();
        let time = timestamp.to_rfc3339_opts(SecondsFormat::Secs, true);
        format!(
            "{event}: {} {}{named}\nCause: {cause}\nActor: {}\nTeam: {team_id}\nTime: {time}",
            plain(&resource.kind),
            plain(&resource.id),
            who.join(" ")
        )
    }
}

/// Returns what a webhook gets of an event of the outbox. It is read as JSON, because a newer server may have written it.
pub(crate) fn event(id: Uuid, team: TeamId, event: Value) -> ChannelEvent {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/type").unwrap_or_default();
    let resource = kind.split('.').next().unwrap_or_default().to_owned();
    let of = |name: &str| text(&format!("/{resource}/{name}"));
    let subject = of("id").or_else(|| of("name")).unwrap_or_default();
    let at = text("/at").and_then(|at| at.parse::<DateTime<Utc>>().ok());
    let by: Actor =
        event.get("actor").cloned().and_then(|by| serde_json::from_value(by).ok()).unwrap_or_default();
    ChannelEvent {
        id,
        timestamp: at.unwrap_or_else(Utc::now),
        team_id: team,
        cause: text("/cause").and_then(|cause| cause.parse().ok()).unwrap_or_default(),
        actor: actor(by),
        resource: ChannelResource { kind: resource, id: subject },
        event: kind,
        data: Some(event),
    }
}

fn actor(Actor { kind, id, name }: Actor) -> ChannelActor {
    ChannelActor { kind, id, name }
}

/// A name without what could be a line of its own.
fn plain(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn team() -> TeamId {
        TeamId::from(Uuid::nil())
    }

    #[test]
    fn an_event_keeps_its_cause_actor_and_subject() {
        let stored = json!({"type": "sandbox.paused", "at": "2026-01-31T09:30:02.5Z", "cause": "idle",
            "actor": {"kind": "user", "id": "us1", "name": "Ada\nTeam: forged"},
            "sandbox": {"id": "sb1", "name": "web"}});
        let event = event(Uuid::nil(), team(), stored.clone());
        assert_eq!((event.event.as_str(), event.cause), ("sandbox.paused", Cause::Idle));
        assert_eq!(json!(event.actor), json!({"type": "user", "id": "us1", "name": "Ada\nTeam: forged"}));
        assert_eq!(json!(event.resource), json!({"type": "sandbox", "id": "sb1"}));
        assert_eq!(event.data.as_ref(), Some(&stored));
        let text = Message { delivery: DeliveryId::from(Uuid::nil()), attempt: 1, event }.text();
        assert_eq!(
            text,
            format!(
                "sandbox.paused: sandbox sb1 web\nCause: idle\nActor: user AdaTeam: forged us1\nTeam: {}\n\
                 Time: 2026-01-31T09:30:02Z",
                team()
            )
        );
    }

    #[test]
    fn snapshots_have_names_and_hosts_ids() {
        let of = |stored| json!(event(Uuid::nil(), team(), stored).resource);
        let snapshot = json!({"type": "snapshot.created", "snapshot": {"name": "after-setup"}});
        assert_eq!(of(snapshot), json!({"type": "snapshot", "id": "after-setup"}));
        assert_eq!(
            of(json!({"type": "host.down", "host": {"id": "host1"}})),
            json!({"type": "host", "id": "host1"})
        );
        assert_eq!(of(json!({})), json!({"type": "", "id": ""}), "an event of a newer server");
    }
}
