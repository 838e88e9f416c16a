// SPDX-License-Identifier: Apache-2.0
//! Announcements of work in Redis, so that a worker of any server begins at once. The database is what counts: without an
//! announcement, or without Redis, a worker finds its work when it looks the next time.

use std::time::{Duration, Instant};

use redis::{
    AsyncCommands as _, RedisError,
    aio::MultiplexedConnection,
    streams::{StreamMaxlen, StreamReadOptions, StreamReadReply},
};

use crate::event_store::EventStore;

/// Stream of the announcements of builds.
pub(crate) const BUILDS: &str = "wrenn:builds";
/// Stream of the announcements of deliveries to channels.
pub(crate) const DELIVERIES: &str = "wrenn:deliveries";
/// Group of all workers of a stream: each announcement wakes one of them.
const GROUP: &str = "workers";
/// All workers are one consumer: an announcement is acknowledged at once, and nobody looks for whom it was given to.
const CONSUMER: &str = "worker";
/// Approximate maximum number of announcements that wait for workers.
const KEPT: usize = 1000;

/// Announces work for the workers of a stream.
pub(crate) async fn announce(events: &EventStore, stream: &str, what: String) -> Result<(), RedisError> {
    let mut connection = events.shared().await?;
    let fields = [("for", what)];
    connection
        .xadd_maxlen::<_, _, _, _, String>(stream, StreamMaxlen::Approx(KEPT), "*", &fields)
        .await
        .map(drop)
}

/// A worker that waits for announcements. It has a connection of its own, because a read blocks it.
pub(crate) struct Listener {
    stream: &'static str,
    connection: Option<MultiplexedConnection>,
}

impl Listener {
    /// Creates a listener of a stream, which connects when it waits first.
    pub(crate) const fn new(stream: &'static str) -> Self {
        Self { stream, connection: None }
    }

    /// Waits until work is announced, at most for `limit`; without Redis, for this time.
    pub(crate) async fn wait(&mut self, events: &EventStore, limit: Duration) {
        let begun = Instant::now();
        if let Err(error) = self.read(events, limit).await {
            tracing::debug!(%error, stream = self.stream, "announcements of work cannot be read");
            tokio::time::sleep(limit.saturating_sub(begun.elapsed())).await;
        }
    }

    async fn read(&mut self, events: &EventStore, limit: Duration) -> Result<(), RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(events, self.stream, limit).await?,
        };
        let block = limit.as_millis() as usize;
        let options = StreamReadOptions::default().group(GROUP, CONSUMER).block(block).count(1);
        let reply: Option<StreamReadReply> =
            connection.xread_options(&[self.stream], &[">"], &options).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let ids: Vec<String> = entries.map(|entry| entry.id).collect();
        if !ids.is_empty() {
            let _: usize = connection.xack(self.stream, GROUP, &ids[..]).await?;
        }
        // After an error it connects anew.
        self.connection = Some(connection);
        Ok(())
    }
}

/// Connects, and makes the group if there is none.
async fn open(
    events: &EventStore,
    stream: &str,
    limit: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = events.blocking(limit).await?;
    let made: Result<(), RedisError> = connection.xgroup_create_mkstream(stream, GROUP, "$").await;
    match made {
        Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
        _ => Ok(connection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_store::tests::Redis;

    /// Time limit of a worker that waits, and what it takes at most when work is announced.
    const LIMIT: Duration = Duration::from_secs(120);
    const AT_ONCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn without_redis_a_worker_waits_its_time() {
        let events = EventStore::new("redis://127.0.0.1:1").expect("a URL");
        assert!(announce(&events, BUILDS, "a build".to_owned()).await.is_err());
        let (mut listener, limit) = (Listener::new(BUILDS), Duration::from_millis(50));
        for _ in 0..2 {
            let begun = Instant::now();
            listener.wait(&events, limit).await;
            assert!(begun.elapsed() >= limit, "it looks over and over: {:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn an_announcement_wakes_a_worker() {
        let (_redis, events) = Redis::start().await;
        // The group is there from now on, so that the first announcement is not missed.
        let connection = open(&events, BUILDS, LIMIT).await.expect("a connection");
        let mut listener = Listener { stream: BUILDS, connection: Some(connection) };
        for number in 0..2 {
            let begun = Instant::now();
            let announcing = async {
                // Whether it waits by then or not, it is woken.
                tokio::time::sleep(Duration::from_millis(50)).await;
                announce(&events, BUILDS, format!("build {number}")).await
            };
            let ((), announced) = tokio::join!(listener.wait(&events, LIMIT), announcing);
            announced.expect("it is announced");
            assert!(begun.elapsed() < AT_ONCE, "it was woken after {:?}", begun.elapsed());
        }
        // What was announced while it worked is waiting for it.
        announce(&events, BUILDS, "a build".to_owned()).await.expect("it is announced");
        let begun = Instant::now();
        listener.wait(&events, LIMIT).await;
        assert!(begun.elapsed() < AT_ONCE, "it was woken after {:?}", begun.elapsed());
        // Each wakes once, and nothing of another stream does.
        announce(&events, DELIVERIES, "a delivery".to_owned()).await.expect("it is announced");
        let (begun, short) = (Instant::now(), Duration::from_millis(300));
        listener.wait(&events, short).await;
        assert!(begun.elapsed() >= short / 2, "it was woken by nothing after {:?}", begun.elapsed());
    }
}
