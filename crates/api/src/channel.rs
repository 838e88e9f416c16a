// SPDX-License-Identifier: Apache-2.0
//! Channels: where events of a team are delivered, what a webhook gets, and the log of deliveries.

use std::{collections::BTreeSet, fmt, fmt::Display, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{ActorKind, Cause, ChannelId, DeliveryId, EventKind, Secret, TeamId};

/// Service that a channel delivers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "webhook")]
#[serde(rename_all = "lowercase")]
pub enum ChannelProvider {
    /// A server of the team's own, which gets the event as JSON with a signature.
    Webhook,
    /// A channel of Slack.
    Slack,
    /// A channel of Discord.
    Discord,
    /// A channel of Microsoft Teams.
    Teams,
    /// A space of Google Chat.
    Googlechat,
    /// A chat of Telegram.
    Telegram,
    /// A room of Matrix.
    Matrix,
}

impl ChannelProvider {
    /// Every provider.
    pub const ALL: [Self; 7] = [
        Self::Webhook,
        Self::Slack,
        Self::Discord,
        Self::Teams,
        Self::Googlechat,
        Self::Telegram,
        Self::Matrix,
    ];

    /// The provider as it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Discord => "discord",
            Self::Teams => "teams",
            Self::Googlechat => "googlechat",
            Self::Telegram => "telegram",
            Self::Matrix => "matrix",
        }
    }
}

impl Display for ChannelProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ChannelProvider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|provider| provider.as_str() == text);
        found.ok_or_else(|| format!("a provider is one of {}", all()))
    }
}

/// Where a channel leads to: the fields of its provider, and no others. It is never in a response.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"url": "https://hooks.example.com/wrenn"}))]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// URL of the receiver, for `webhook`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub url: Option<Secret>,
    /// Secret with which requests are signed, for `webhook`. Default: one of 64 hexadecimal digits, which the response has once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 16, max_length = 256)]
    pub secret: Option<Secret>,
    /// URL of the incoming webhook, for `slack`, `discord`, `teams` and `googlechat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub webhook_url: Option<Secret>,
    /// Token of the bot, for `telegram`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub bot_token: Option<Secret>,
    /// Id of the chat, or its public name with `@`, for `telegram`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub chat_id: Option<String>,
    /// URL of a Bot API server of one's own, for `telegram`. Default: `https://api.telegram.org`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub api_url: Option<String>,
    /// URL of the homeserver, for `matrix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub homeserver_url: Option<String>,
    /// Access token of the account that writes, for `matrix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub access_token: Option<Secret>,
    /// Id of the room, for `matrix`. The account is in it, and the room is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub room_id: Option<String>,
}

/// The channel to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "ops", "provider": "webhook", "config": {"url": "https://hooks.example.com/wrenn"},
    "events": ["sandbox.running", "sandbox.stopped"]}))]
#[serde(deny_unknown_fields)]
pub struct CreateChannel {
    /// Name of the channel, which no other of the team has. Capitals become small, and spaces `-`.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// Its provider, which does not change.
    pub provider: ChannelProvider,
    /// Where it leads to.
    pub config: ChannelConfig,
    /// Types of the events that are delivered: those of `streamEvents`.
    #[schema(value_type = Vec<String>, min_items = 1)]
    pub events: BTreeSet<Wanted>,
}

/// Changes of a channel. What is not there stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"events": ["sandbox.running", "sandbox.stopped", "sandbox.error"]}))]
#[serde(deny_unknown_fields)]
pub struct UpdateChannel {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub name: Option<String>,
    /// Types of the events that are delivered from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, min_items = 1)]
    pub events: Option<BTreeSet<Wanted>>,
}

/// The configuration that takes the place of a channel's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"config": {"url": "https://hooks.example.com/wrenn"}}))]
#[serde(deny_unknown_fields)]
pub struct ConfigureChannel {
    /// Where the channel leads to: all fields of its provider.
    pub config: ChannelConfig,
}

/// A configuration that is to be tried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"provider": "webhook", "config": {"url": "https://hooks.example.com/wrenn"}}))]
#[serde(deny_unknown_fields)]
pub struct TestChannel {
    /// Its provider.
    pub provider: ChannelProvider,
    /// Where it leads to.
    pub config: ChannelConfig,
}

/// The receiver took the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok"}))]
pub struct TestedChannel {
    /// `ok`.
    pub status: String,
}

/// Type of an event that a channel delivers: one that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted(EventKind);

impl Wanted {
    /// Returns the type.
    pub const fn kind(self) -> EventKind {
        self.0
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        EventKind::asked_for(text).map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            let all: Vec<String> = EventKind::all().map(|kind| kind.to_string()).collect();
            format!("there is no event of the type {shown:?}: there are {}", all.join(", "))
        })
    }
}

impl Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Ord for Wanted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

impl PartialOrd for Wanted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Wanted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A channel of the team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "ch03halx8fdhw2fu3txwbd0kdw0", "team_id": "team03halx8fdhw2fu3txwbd0kdw0", "name": "ops",
    "provider": "webhook", "events": ["sandbox.running", "sandbox.stopped"], "created_at": "2026-01-31T09:30:00.000000Z",
    "updated_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Channel {
    /// Its id.
    #[schema(value_type = String, pattern = "^ch[0-9a-e][0-9a-z]{24}$")]
    pub id: ChannelId,
    /// Team that it belongs to.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Its name.
    pub name: String,
    /// Its provider.
    pub provider: ChannelProvider,
    /// Types of the events that are delivered.
    pub events: Vec<String>,
    /// Since when its receiver fails, if it does: what is to be delivered waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its name, its events or its configuration changed last.
    pub updated_at: DateTime<Utc>,
    /// Secret of a webhook, if the server made it: only in the response to the request for which it did. It is not shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub secret: Option<Secret>,
}

/// State of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "delivered")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// It waits for its first or its next attempt.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was given up.
    Failed,
}

/// Delivery of an event to a channel. It is kept for a week after its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "de03halx8fdhw2fu3txwbd0kdw0", "channel_id": "ch03halx8fdhw2fu3txwbd0kdw0", "event": "sandbox.running",
    "event_id": "01890a5d-ac96-774b-bcce-b302099a8057", "subject": "sb03halx8fdhw2fu3txwbd0kdw0", "status": "pending", "attempts": 3,
    "response_status": 503, "error": "the receiver answered 503", "created_at": "2026-01-31T09:30:00.000000Z",
    "attempted_at": "2026-01-31T09:30:07.000000Z", "next_attempt_at": "2026-01-31T09:30:11.000000Z"}))]
pub struct Delivery {
    /// Its id, which a webhook gets in `X-Wrenn-Delivery`; the same for all attempts.
    #[schema(value_type = String, pattern = "^de[0-9a-e][0-9a-z]{24}$")]
    pub id: DeliveryId,
    /// Channel that it goes to.
    #[schema(value_type = String, pattern = "^ch[0-9a-e][0-9a-z]{24}$")]
    pub channel_id: ChannelId,
    /// Type of the event.
    pub event: String,
    /// Id of the event: the same in all channels.
    pub event_id: Uuid,
    /// What the event is about. Of each subject, events are delivered in their order.
    pub subject: String,
    /// Its state.
    pub status: DeliveryStatus,
    /// Number of attempts, since it was asked for again if it was.
    pub attempts: u32,
    /// HTTP status with which the receiver answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the event was taken up for the channel.
    pub created_at: DateTime<Utc>,
    /// When the last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<DateTime<Utc>>,
    /// When the next attempt begins, if one has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it was delivered or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
}

/// The body of a request to a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "01890a5d-ac96-774b-bcce-b302099a8057", "event": "sandbox.paused", "timestamp": "2026-01-31T09:30:02.5Z",
    "team_id": "team03halx8fdhw2fu3txwbd0kdw0", "cause": "idle", "actor": {"type": "system"},
    "resource": {"type": "sandbox", "id": "sb03halx8fdhw2fu3txwbd0kdw0"}, "data": {"type": "sandbox.paused"}}))]
pub struct ChannelEvent {
    /// Id of the event, by which a repetition is known: the same in all attempts.
    pub id: Uuid,
    /// Type of the event; `channel.test` in a test.
    pub event: String,
    /// When it happened.
    pub timestamp: DateTime<Utc>,
    /// Team whose event it is.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Why it happened.
    pub cause: Cause,
    /// Who did it.
    pub actor: ChannelActor,
    /// What it is about.
    pub resource: ChannelResource,
    /// The event as `streamEvents` has it; absent in a test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub data: Option<serde_json::Value>,
}

/// Who did what an event tells of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "user", "id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada"}))]
pub struct ChannelActor {
    /// What the actor is.
    #[serde(rename = "type")]
    pub kind: ActorKind,
    /// Id of the user, the API key or the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "sandbox", "id": "sb03halx8fdhw2fu3txwbd0kdw0"}))]
pub struct ChannelResource {
    /// `sandbox`, `snapshot`, `host` or `channel`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id; of a snapshot its name.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_the_text_of_json() {
        for provider in ChannelProvider::ALL {
            assert_eq!(serde_json::json!(provider), provider.as_str());
            assert_eq!(provider.as_str().parse(), Ok(provider));
        }
        assert!("pager".parse::<ChannelProvider>().is_err_and(|told| told.contains("googlechat")));
    }

    #[test]
    fn only_what_happens_can_be_wanted() {
        for kind in EventKind::all() {
            assert_eq!(kind.to_string().parse::<Wanted>().map(Wanted::kind), Ok(kind));
        }
        for wrong in ["resync", "sandbox.pending", "sandbox.flying", "capsule.created", ""] {
            assert!(wrong.parse::<Wanted>().is_err_and(|told| told.contains("sandbox.running")), "{wrong}");
        }
    }

    #[test]
    fn no_secret_is_in_the_output_of_debug() {
        let secret = || Some(Secret::from("hunter2hunter2hunter2".to_owned()));
        let config = ChannelConfig {
            url: secret(),
            secret: secret(),
            webhook_url: secret(),
            bot_token: secret(),
            access_token: secret(),
            ..ChannelConfig::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(serde_json::json!(config)["url"], "hunter2hunter2hunter2");
    }
}
