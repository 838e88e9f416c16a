// SPDX-License-Identifier: Apache-2.0
//! Channels service: where a team's events are delivered. The relay adds deliveries in the transaction in which events leave the
//! outbox; workers of all servers send them, in order per sandbox, until the receiver takes them or their time is over.

mod upkeep;
mod worker;

use uuid::Uuid;
use wrenn_api::{
    Channel, ChannelConfig, ChannelId, ChannelProvider, CreateChannel, Delivery, DeliveryId, DeliveryStatus,
    ErrorCode, Secret, TestChannel, UpdateChannel, Wanted,
};
use wrenn_outbound::Guard;
use wrenn_rpc::Foreign;

use crate::{
    caller::Caller,
    db::{
        channels::{self, Config, New, Put, Row},
        deliveries, delivery_log,
    },
    error::Fault,
    names,
    receivers::{
        message::Message,
        sealing::Sealed,
        target::{self, Target},
    },
    state::App,
};

pub(crate) use upkeep::run as upkeep;
pub(crate) use worker::{announce, run as worker};

/// Maximum number of channels of a team.
const CHANNELS_MAX: i64 = 20;
/// Number of deliveries to one channel that may be in work at a time.
const AT_ONCE: i64 = 2;

/// One page of a list, and the cursor of the next one.
#[derive(Debug)]
#[non_exhaustive]
pub struct Page<T, Id> {
    /// What is on the page.
    pub items: Vec<T>,
    /// The last id, if there is another page.
    pub next: Option<Id>,
}

/// Channels of teams.
#[derive(Clone)]
pub struct Channels {
    app: App,
}

impl Channels {
    /// Maximum number of channels or deliveries on a page.
    pub const PAGE_MAX: u32 = 100;

    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Creates a channel. If it is a webhook without a secret, the result has the one that was made.
    pub async fn create(&self, caller: &Caller, new: CreateChannel) -> Result<Channel, Fault> {
        let CreateChannel { name, provider, mut config, events } = new;
        let (name, events) = (name_of(&name)?, wanted(&events)?);
        let made = target::complete(provider, &mut config)?;
        Target::of(provider, &config, self.guard())?;
        let config = self.seal(ChannelId::new(), &config)?;
        let new = New {
            id: config.id,
            team: caller.team().uuid(),
            name: &name,
            provider: provider.as_str(),
            config: &config.config,
            key_number: config.key_number,
            events: &events,
        };
        let row = put(channels::insert(&self.app.db, new, CHANNELS_MAX).await?, &name)?;
        Ok(public(row, made))
    }

    /// Lists the team's channels, the newest first, from the one before `before`.
    pub async fn list(
        &self,
        caller: &Caller,
        before: Option<ChannelId>,
        limit: u32,
    ) -> Result<Page<Channel, ChannelId>, Fault> {
        let before = before.map(ChannelId::uuid);
        let rows = channels::list(&self.app.db, caller.team().uuid(), before, i64::from(limit) + 1).await?;
        let all = rows.into_iter().map(|row| public(row, None)).collect();
        Ok(page(all, limit, |channel: &Channel| channel.id))
    }

    /// Returns a channel of the team.
    pub async fn get(&self, caller: &Caller, id: ChannelId) -> Result<Channel, Fault> {
        self.find(caller, id).await.map(|row| public(row, None))
    }

    /// Changes the name or the events of a channel. What waits for it already is delivered all the same.
    pub async fn update(
        &self,
        caller: &Caller,
        id: ChannelId,
        change: UpdateChannel,
    ) -> Result<Channel, Fault> {
        let name = change.name.as_deref().map(name_of).transpose()?;
        let events = change.events.as_ref().map(wanted).transpose()?;
        let place = (caller.team().uuid(), id.uuid());
        let updated = channels::update(&self.app.db, place, name.as_deref(), events.as_deref()).await?;
        if matches!(updated, Put::Missing) {
            return Err(missing(&id.to_string()));
        }
        Ok(public(put(updated, name.as_deref().unwrap_or_default())?, None))
    }

    /// Replaces where a channel leads to. What waits for it goes there, at once. If it is a webhook without a secret, the
    /// result has the one that was made.
    pub async fn configure(
        &self,
        caller: &Caller,
        id: ChannelId,
        mut config: ChannelConfig,
    ) -> Result<Channel, Fault> {
        let provider = provider_of(&self.find(caller, id).await?)?;
        let made = target::complete(provider, &mut config)?;
        Target::of(provider, &config, self.guard())?;
        let config = self.seal(id, &config)?;
        let row = channels::configure(&self.app.db, caller.team().uuid(), &config, AT_ONCE).await?;
        announce(&self.app, vec![id.uuid()]);
        Ok(public(row.ok_or_else(|| missing(&id.to_string()))?, made))
    }

    /// Deletes a channel. What waits for it is not delivered.
    pub async fn delete(&self, caller: &Caller, id: ChannelId) -> Result<(), Fault> {
        let deleted = channels::delete(&self.app.db, caller.team().uuid(), id.uuid()).await?;
        if deleted { Ok(()) } else { Err(missing(&id.to_string())) }
    }

    /// Sends a message to where a configuration leads. Fails if the receiver does not take it.
    pub async fn test(&self, caller: &Caller, test: TestChannel) -> Result<(), Fault> {
        let TestChannel { provider, mut config } = test;
        target::complete(provider, &mut config)?;
        let target = Target::of(provider, &config, self.guard())?;
        let sent = self.app.channels.sender.send(&target, &Message::test(caller.team())).await;
        sent.map(drop).map_err(|failure| {
            let message = format!("{}: check the configuration of the channel", failure.error);
            Fault::new(ErrorCode::ChannelFailed, message)
        })
    }

    /// Lists deliveries to a channel of the team, the newest first, from the one before `before`.
    pub async fn deliveries(
        &self,
        caller: &Caller,
        id: ChannelId,
        before: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Page<Delivery, DeliveryId>, Fault> {
        let channel = self.find(caller, id).await?.id;
        let before = before.map(DeliveryId::uuid);
        let rows = delivery_log::list(&self.app.db, channel, before, i64::from(limit) + 1).await?;
        let all = rows.into_iter().map(delivery).collect();
        Ok(page(all, limit, |delivery: &Delivery| delivery.id))
    }

    /// Lets a delivery be tried again now, whatever became of it. It keeps its id, and its place among those of its subject.
    pub async fn redeliver(&self, caller: &Caller, id: ChannelId, of: DeliveryId) -> Result<Delivery, Fault> {
        let channel = self.find(caller, id).await?.id;
        let none = || {
            let message = format!("the channel has no delivery {of}: those that ended are kept for a week");
            Fault::new(ErrorCode::NotFound, message)
        };
        if !deliveries::again(&self.app.db, caller.team().uuid(), (channel, of.uuid()), AT_ONCE).await? {
            return Err(none());
        }
        announce(&self.app, vec![channel]);
        delivery_log::find(&self.app.db, channel, of.uuid()).await?.map(delivery).ok_or_else(none)
    }

    fn guard(&self) -> &Guard {
        self.app.channels.sender.guard()
    }

    async fn find(&self, caller: &Caller, id: ChannelId) -> Result<Row, Fault> {
        let found = channels::find(&self.app.db, caller.team().uuid(), id.uuid()).await?;
        found.ok_or_else(|| missing(&id.to_string()))
    }

    /// Encrypts a configuration for a channel.
    fn seal(&self, channel: ChannelId, config: &ChannelConfig) -> Result<Config, Fault> {
        let text = serde_json::to_vec(config).map_err(|_| Fault::internal())?;
        let sealed = self.app.channels.keys.seal(channel.uuid(), &text).ok_or_else(|| {
            let message =
                "this server cannot keep secrets of channels: its operator sets server.channels_key_file";
            Fault::new(ErrorCode::ChannelsUnavailable, message)
        })?;
        Ok(Config { id: channel.uuid(), config: sealed.bytes, key_number: sealed.key })
    }
}

/// The fault of a channel that the team does not have.
pub(crate) fn missing(id: &str) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("the team has no channel {}", Foreign(id)))
}

/// Returns the name of a channel as it is kept.
fn name_of(given: &str) -> Result<String, Fault> {
    let name = given.trim().to_lowercase().replace(' ', "-");
    if names::is_template_name(&name) {
        return Ok(name);
    }
    Err(Fault::invalid(format!("{} is not the name of a channel: {}", Foreign(given), names::RULE)))
}

/// Returns the types of events as they are kept.
fn wanted(events: &std::collections::BTreeSet<Wanted>) -> Result<Vec<String>, Fault> {
    if events.is_empty() {
        return Err(Fault::invalid("events is empty: name at least one type of event"));
    }
    Ok(events.iter().map(ToString::to_string).collect())
}

fn put(put: Put, name: &str) -> Result<Row, Fault> {
    match put {
        Put::Done(row) => Ok(*row),
        Put::NameTaken => {
            let message =
                format!("the team has a channel named {name:?}: choose another name, or change that one");
            Err(Fault::new(ErrorCode::Conflict, message))
        }
        Put::TooMany => {
            let message = format!("the team has {CHANNELS_MAX} channels, which is the most: delete one");
            Err(Fault::new(ErrorCode::Conflict, message))
        }
        Put::Missing => Err(missing(name)),
    }
}

/// Cuts off what is there only to tell that there is a next page.
fn page<T, Id>(mut items: Vec<T>, limit: u32, id: impl Fn(&T) -> Id) -> Page<T, Id> {
    let limit = limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(id) } else { None };
    Page { items, next }
}

fn provider_of(row: &Row) -> Result<ChannelProvider, Fault> {
    row.provider.parse().map_err(|_| {
        let channel = ChannelId::from(row.id);
        tracing::error!(%channel, provider = row.provider, "a channel has a provider that is not known");
        Fault::internal()
    })
}

fn public(row: Row, secret: Option<Secret>) -> Channel {
    // A provider of a newer server, which this one shows as what is most like it.
    let provider = row.provider.parse().unwrap_or(ChannelProvider::Webhook);
    Channel {
        id: row.id.into(),
        team_id: row.team_id.into(),
        name: row.name,
        provider,
        events: row.events,
        failing_since: row.failing_since,
        created_at: row.created_at,
        updated_at: row.updated_at,
        secret,
    }
}

fn delivery(row: delivery_log::Row) -> Delivery {
    Delivery {
        id: row.id.into(),
        channel_id: row.channel_id.into(),
        event: row.event,
        event_id: row.occurrence,
        subject: row.subject,
        status: match row.status.as_str() {
            "pending" => DeliveryStatus::Pending,
            "delivered" => DeliveryStatus::Delivered,
            _ => DeliveryStatus::Failed,
        },
        attempts: row.attempts as u32,
        response_status: row.response_status.and_then(|status| u16::try_from(status).ok()),
        error: row.error,
        created_at: row.created_at,
        attempted_at: row.attempted_at,
        next_attempt_at: row.next_attempt_at,
        ended_at: row.ended_at,
    }
}

/// Opens the configuration of a channel; the error is for the team.
fn open(app: &App, channel: Uuid, provider: &str, sealed: &Sealed) -> Result<Target, String> {
    let parts = &app.channels;
    let unknown = || {
        tracing::error!(channel = %ChannelId::from(channel), key = sealed.key,
            "a channel is encrypted with a key that is not in the key file, or it was changed (server.channels_key_file)");
        "the control plane cannot read the configuration of the channel; its log says why".to_owned()
    };
    let text = parts.keys.open(channel, sealed).ok_or_else(unknown)?;
    let config: ChannelConfig = serde_json::from_slice(&text).map_err(|_| unknown())?;
    let provider = provider.parse().map_err(|_| unknown())?;
    Target::of(provider, &config, parts.sender.guard()).map_err(|fault| fault.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_in_one_form() {
        for (given, kept) in [("ops", "ops"), (" On Call ", "on-call"), ("A.b_c-1", "a.b_c-1")] {
            assert_eq!(name_of(given).ok().as_deref(), Some(kept));
        }
        for wrong in ["", " ", "-a", "a/b", "ä", &"x".repeat(65)] {
            assert!(name_of(wrong).is_err_and(|fault| fault.code == ErrorCode::InvalidRequest), "{wrong}");
        }
    }

    #[test]
    fn a_page_has_a_cursor_if_there_is_another_one() {
        let of = |count: u32| page((0..count).collect(), 3, |number: &u32| *number);
        assert_eq!((of(2).items.len(), of(2).next), (2, None));
        assert_eq!((of(3).items.len(), of(3).next), (3, None));
        assert_eq!((of(4).items.len(), of(4).next), (3, Some(2)));
    }
}
