// SPDX-License-Identifier: Apache-2.0
//! Store of events in Redis: one bounded stream per team, written from the outbox, and read by subscriptions.

mod tail;

use std::{
    collections::HashMap,
    fmt::{self, Display},
    str::FromStr,
    time::Duration,
};

use chrono::{DateTime, Utc};
use redis::{
    AsyncCommands as _, Client, FromRedisValue as _,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    streams::{StreamId, StreamMaxlen, StreamRangeReply, StreamReadOptions, StreamReadReply},
};
use uuid::Uuid;
use wrenn_api::{Event, TeamId};

use tail::{Newest, Tails};

/// Approximate maximum number of events per team.
const KEPT: usize = 10_000;
/// Time limit of a blocking read, after which it is begun again.
const WAIT: Duration = Duration::from_secs(15);
/// Maximum number of events per read.
const BATCH: usize = 100;
/// Time limit of a command; Redis is on this machine or near it.
const ANSWER: Duration = Duration::from_secs(3);

/// Id of an event: a time in milliseconds, and a sequence number within it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    time: u64,
    sequence: u64,
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().map_err(|_| ()) } else { Err(()) }
        };
        let (time, sequence) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { time: number(time)?, sequence: number(sequence)? })
    }
}

impl Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.time, self.sequence)
    }
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With new events.
    #[default]
    New,
    /// After this event.
    After(EventId),
    /// With the first event that was stored at this time or later.
    Since(DateTime<Utc>),
}

/// An event, and its id, from which a reader continues.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: EventId,
    pub(crate) event: Event,
}

impl Stored {
    /// Reads an event of the store. If this version does not know its type, a newer server wrote it; the
    /// reader is then told to look itself.
    fn read(id: EventId, json: &str) -> Self {
        let event = serde_json::from_str(json).unwrap_or_else(|error| {
            tracing::debug!(%id, %error, "an event cannot be read");
            Event::resync("an event is of a type that this server does not know")
        });
        Self { id, event }
    }
}

/// The event store.
pub(crate) struct EventStore {
    client: Client,
    shared: tokio::sync::OnceCell<ConnectionManager>,
    tails: Tails,
}

fn stream_of(team: Uuid) -> String {
    format!("wrenn:events:{}", TeamId::from(team))
}

impl EventStore {
    /// Creates the store; connects on first use.
    pub(crate) fn new(url: &str) -> Result<Self, redis::RedisError> {
        let client = Client::open(url)?;
        Ok(Self { client: client.clone(), shared: tokio::sync::OnceCell::new(), tails: Tails::new(client) })
    }

    /// The connection for all commands but blocking reads; it reconnects by itself.
    pub(crate) async fn shared(&self) -> Result<ConnectionManager, redis::RedisError> {
        let connect = async || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(ANSWER))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1);
            ConnectionManager::new_with_config(self.client.clone(), config).await
        };
        self.shared.get_or_try_init(connect).await.cloned()
    }

    /// Opens a connection for blocking reads that last at most `wait`.
    pub(crate) async fn blocking(&self, wait: Duration) -> Result<MultiplexedConnection, redis::RedisError> {
        connect(&self.client, wait).await
    }

    /// Tells a message to all who listen on a channel now.
    pub(crate) async fn publish(&self, channel: &str, message: &str) -> Result<(), redis::RedisError> {
        let mut connection = self.shared().await?;
        connection.publish::<_, _, i64>(channel, message).await.map(drop)
    }

    /// Opens a connection that listens on a channel.
    pub(crate) async fn listen(&self, channel: &str) -> Result<redis::aio::PubSub, redis::RedisError> {
        let mut connection = self.client.get_async_pubsub().await?;
        connection.subscribe(channel).await?;
        Ok(connection)
    }

    /// Checks that Redis responds.
    pub(crate) async fn ping(&self) -> Result<(), redis::RedisError> {
        let mut connection = self.shared().await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await.map(drop)
    }

    /// Appends an event, as JSON text: it may be of a type that only a newer server knows.
    pub(crate) async fn append(
        &self,
        team: Uuid,
        event: &serde_json::Value,
    ) -> Result<(), redis::RedisError> {
        let mut connection = self.shared().await?;
        let fields = [("event", event.to_string())];
        connection
            .xadd_maxlen::<_, _, _, _, String>(stream_of(team), StreamMaxlen::Approx(KEPT), "*", &fields)
            .await
            .map(drop)
    }

    /// Returns a reader of a team's events.
    pub(crate) async fn reader(&self, team: Uuid, start: Start) -> Result<Reader, redis::RedisError> {
        let (connection, stream, last) = (self.shared().await?, stream_of(team), EventId::default());
        let newest = self.tails.watch(&stream).await?;
        let mut reader = Reader { connection, stream, newest, last, behind: false, notice: None };
        match start {
            // With `$` events between two reads would be lost.
            Start::New => reader.last = reader.edge(true).await?.unwrap_or_default(),
            Start::After(id) => (reader.last, reader.behind) = (id, true),
            Start::Since(time) => reader.begin_at(time).await?,
        }
        Ok(reader)
    }
}

/// Opens a connection for blocking reads that last at most `wait`.
async fn connect(client: &Client, wait: Duration) -> Result<MultiplexedConnection, redis::RedisError> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(wait + ANSWER));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Returns the id of the newest or the oldest event of a stream.
async fn edge(
    connection: &mut impl redis::AsyncCommands,
    stream: &str,
    newest: bool,
) -> Result<Option<EventId>, redis::RedisError> {
    let (command, from, to) = if newest { ("XREVRANGE", "+", "-") } else { ("XRANGE", "-", "+") };
    let mut query = redis::cmd(command);
    query.arg(stream).arg(from).arg(to).arg("COUNT").arg(1);
    let reply: StreamRangeReply = query.query_async(connection).await?;
    Ok(reply.ids.first().and_then(|entry| entry.id.parse().ok()))
}

/// Reader of one team's events, in order. It waits for new ones with all readers of the team.
pub(crate) struct Reader {
    connection: ConnectionManager,
    stream: String,
    newest: Newest,
    last: EventId,
    /// Whether more events may be available than one read returns: they may be trimmed before they are read.
    behind: bool,
    /// What comes before the next event.
    notice: Option<Stored>,
}

impl Reader {
    /// Begins with the first event that was stored at this time or later. If some of these are no longer kept, it begins
    /// with a `resync` and all that are.
    async fn begin_at(&mut self, time: DateTime<Utc>) -> Result<(), redis::RedisError> {
        let before = u64::try_from(time.timestamp_millis()).unwrap_or_default().checked_sub(1);
        let before = before.map_or_else(EventId::default, |time| EventId { time, sequence: u64::MAX });
        let newest = self.edge(true).await?.unwrap_or_default();
        let oldest = self.edge(false).await?.unwrap_or_default();
        self.last = before.min(newest);
        if before < oldest && !self.is_whole().await? {
            self.last = EventId::default();
            let event = Event::resync("events since then are no longer kept");
            self.notice = Some(Stored { id: self.last, event });
        }
        Ok(())
    }

    /// Returns the id of the newest or the oldest stored event.
    async fn edge(&mut self, newest: bool) -> Result<Option<EventId>, redis::RedisError> {
        edge(&mut self.connection, &self.stream, newest).await
    }

    /// Returns whether no event was ever trimmed.
    async fn is_whole(&mut self) -> Result<bool, redis::RedisError> {
        let mut query = redis::cmd("XINFO");
        query.arg("STREAM").arg(&self.stream);
        let facts: HashMap<String, redis::Value> = query.query_async(&mut self.connection).await?;
        let number = |name: &str| facts.get(name).and_then(|value| u64::from_redis_value_ref(value).ok());
        // Redis before 7 does not count added entries.
        Ok(number("entries-added").is_some_and(|added| number("length") == Some(added)))
    }

    /// Skips to the newest event, with a `resync`, if events after the last id may be missing.
    async fn missing(&mut self) -> Result<Option<Stored>, redis::RedisError> {
        let newest = self.edge(true).await?.unwrap_or_default();
        let reason = if self.last > newest {
            "the id is of no event that is known"
        } else {
            let oldest = self.edge(false).await?.unwrap_or_default();
            // Zero requests all stored events.
            let asked_for_all = self.last == EventId::default();
            // Also a stream that is whole may have begun anew since the id was given, as after a loss of Redis.
            if asked_for_all || oldest <= self.last {
                return Ok(None);
            }
            "events after the id are no longer kept"
        };
        self.last = newest;
        Ok(Some(Stored { id: newest, event: Event::resync(reason) }))
    }

    /// Waits for the next events.
    pub(crate) async fn next(&mut self) -> Result<Vec<Stored>, redis::RedisError> {
        if let Some(notice) = self.notice.take() {
            return Ok(vec![notice]);
        }
        if self.behind {
            self.behind = false;
            if let Some(event) = self.missing().await? {
                return Ok(vec![event]);
            }
        }
        self.newest.after(self.last).await?;
        let events = self.read().await?;
        let Some(last) = events.last() else {
            return Err((redis::ErrorKind::Io, "Redis has lost events").into());
        };
        self.last = last.id;
        self.behind = events.len() >= BATCH;
        Ok(events)
    }

    /// Reads the events after the last one, of which there may be none.
    async fn read(&mut self) -> Result<Vec<Stored>, redis::RedisError> {
        let options = StreamReadOptions::default().count(BATCH);
        let reply: Option<StreamReadReply> =
            self.connection.xread_options(&[&self.stream], &[self.last.to_string()], &options).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let read = |entry: StreamId| {
            let json: String = entry.get("event").unwrap_or_default();
            Some(Stored::read(entry.id.parse().ok()?, &json))
        };
        Ok(entries.filter_map(read).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests;
