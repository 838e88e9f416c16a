//! Events of teams in Redis: one bounded stream per team, written from the outbox, and read by server-sent
//! events.

use std::time::Duration;

use redis::{
    AsyncCommands as _, Client,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    streams::{StreamMaxlen, StreamReadOptions, StreamReadReply},
};
use uuid::Uuid;
use wrenn_api::TeamId;

/// Approximate maximum number of events per team.
const KEPT: usize = 10_000;
/// Time limit of a blocking read, after which the reader sends a keep-alive.
pub(crate) const WAIT: Duration = Duration::from_secs(15);
/// Maximum number of events per read.
const BATCH: usize = 100;
/// Time limit of a command; Redis is on this machine or near it.
const ANSWER: Duration = Duration::from_secs(3);

/// One event and the id under which a reader goes on.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) json: String,
}

/// The event store.
pub(crate) struct Events {
    client: Client,
    shared: tokio::sync::OnceCell<ConnectionManager>,
}

fn stream_of(team: Uuid) -> String {
    format!("wrenn:events:{}", TeamId::from(team))
}

impl Events {
    /// Creates the store; connects on first use.
    pub(crate) fn new(url: &str) -> Result<Self, redis::RedisError> {
        Ok(Self { client: Client::open(url)?, shared: tokio::sync::OnceCell::new() })
    }

    /// The connection for all commands but blocking reads; it reconnects by itself.
    async fn shared(&self) -> Result<ConnectionManager, redis::RedisError> {
        let connect = async || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(ANSWER))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1);
            ConnectionManager::new_with_config(self.client.clone(), config).await
        };
        self.shared.get_or_try_init(connect).await.cloned()
    }

    /// Checks that Redis responds.
    pub(crate) async fn ping(&self) -> Result<(), redis::RedisError> {
        let mut connection = self.shared().await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await.map(drop)
    }

    /// Appends an event.
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

    /// A reader of a team's events after `id`; without one, of those to come.
    pub(crate) async fn reader(&self, team: Uuid, id: Option<String>) -> Result<Reader, redis::RedisError> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(WAIT + ANSWER));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let stream = stream_of(team);
        let last = match id {
            Some(id) => id,
            None => newest(&mut connection, &stream).await?,
        };
        Ok(Reader { connection, stream, last })
    }
}

/// The id of the newest event: `$` would lose what comes between two reads.
async fn newest(connection: &mut MultiplexedConnection, stream: &str) -> Result<String, redis::RedisError> {
    let reply: redis::streams::StreamRangeReply = connection.xrevrange_count(stream, "+", "-", 1).await?;
    Ok(reply.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone()))
}

/// Whether a text can be the id of an event.
pub(crate) fn is_id(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.len() <= 20 && part.parse::<u64>().is_ok();
    match text.split_once('-') {
        Some((time, sequence)) => number(time) && number(sequence),
        None => number(text),
    }
}

/// Reader of one team's events, in order. It has a connection of its own, because a read blocks the
/// connection.
pub(crate) struct Reader {
    connection: MultiplexedConnection,
    stream: String,
    last: String,
}

impl Reader {
    /// The next events; none when there was none for a while.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, redis::RedisError> {
        let options = StreamReadOptions::default().block(WAIT.as_millis() as usize).count(BATCH);
        let reply: Option<StreamReadReply> =
            self.connection.xread_options(&[&self.stream], &[&self.last], &options).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let events: Vec<Event> = entries
            .map(|entry| Event { json: entry.get("event").unwrap_or_default(), id: entry.id })
            .collect();
        if let Some(event) = events.last() {
            self.last.clone_from(&event.id);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::is_id;

    #[test]
    fn ids_of_events_are_two_numbers() {
        assert!(is_id("1700000000000-0") && is_id("0-0") && is_id("5"));
        assert!(
            !is_id("") && !is_id("$") && !is_id("1-") && !is_id("-1") && !is_id("99999999999999999999-1")
        );
    }
}
