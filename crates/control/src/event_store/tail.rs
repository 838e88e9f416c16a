// SPDX-License-Identifier: Apache-2.0
//! Tails: one blocking read for each team whose events are waited for, however many readers wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redis::{
    AsyncCommands as _, Client, ErrorKind, RedisError,
    streams::{StreamReadOptions, StreamReadReply},
};
use tokio::sync::watch;

use super::{BATCH, EventId, WAIT, connect, edge};

/// Tails of the teams whose events somebody waits for.
pub(super) struct Tails {
    client: Client,
    running: Running,
}

/// Newest event of each stream that has a tail; none until it was looked up.
type Running = Arc<Mutex<HashMap<String, watch::Sender<Option<EventId>>>>>;

/// Newest event of a stream, as long as it is kept.
pub(super) struct Newest(watch::Receiver<Option<EventId>>);

impl Tails {
    /// Tails of streams of this Redis; connects on first use.
    pub(super) fn new(client: Client) -> Self {
        Self { client, running: Running::default() }
    }

    /// Watches a stream. What is added to it from now on is told.
    pub(super) async fn watch(&self, stream: &str) -> Result<Newest, RedisError> {
        let mut newest = self.subscribe(stream);
        newest.wait_for(Option::is_some).await.map_err(|_| ended())?;
        Ok(Newest(newest))
    }

    /// Subscribes to the tail of a stream, which begins if there is none.
    fn subscribe(&self, stream: &str) -> watch::Receiver<Option<EventId>> {
        let mut running = lock(&self.running);
        if let Some(newest) = running.get(stream) {
            return newest.subscribe();
        }
        let (newest, subscribed) = watch::channel(None);
        running.insert(stream.to_owned(), newest.clone());
        tokio::spawn(run(self.client.clone(), self.running.clone(), stream.to_owned(), newest));
        subscribed
    }
}

impl Newest {
    /// Waits for an event after this one. Fails if the connection to Redis broke.
    pub(super) async fn after(&mut self, last: EventId) -> Result<(), RedisError> {
        let newer = self.0.wait_for(|newest| newest.is_some_and(|newest| newest > last)).await;
        newer.map(drop).map_err(|_| ended())
    }
}

fn ended() -> RedisError {
    (ErrorKind::Io, "the connection that waits for events ended").into()
}

fn lock(running: &Running) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<EventId>>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the tail of a stream until nobody subscribes to it, or Redis fails. With its channel the subscriptions end.
async fn run(client: Client, running: Running, stream: String, newest: watch::Sender<Option<EventId>>) {
    tokio::select! {
        () = unused(&running, &stream, &newest) => {}
        Err(error) = follow(&client, &stream, &newest) => {
            tracing::warn!(stream, %error, "the events of a team cannot be followed; its streams end");
            lock(&running).remove(&stream);
        }
    }
}

/// Waits until nobody subscribes, and takes the tail off the list, so that nobody does any more.
async fn unused(running: &Running, stream: &str, newest: &watch::Sender<Option<EventId>>) {
    loop {
        newest.closed().await;
        let mut running = lock(running);
        if newest.receiver_count() == 0 {
            running.remove(stream);
            return;
        }
    }
}

/// Tells the newest event of a stream; ends only by an error.
async fn follow(
    client: &Client,
    stream: &str,
    newest: &watch::Sender<Option<EventId>>,
) -> Result<(), RedisError> {
    let mut connection = connect(client, WAIT).await?;
    let mut last = edge(&mut connection, stream, true).await?.unwrap_or_default();
    newest.send_replace(Some(last));
    let options = StreamReadOptions::default().block(WAIT.as_millis() as usize).count(BATCH);
    loop {
        let reply: Option<StreamReadReply> =
            connection.xread_options(&[stream], &[last.to_string()], &options).await?;
        let added = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        if let Some(id) = added.last().and_then(|entry| entry.id.parse().ok()) {
            last = id;
            newest.send_replace(Some(last));
        } else if edge(&mut connection, stream, true).await?.unwrap_or_default() < last {
            return Err((ErrorKind::Io, "Redis has lost events").into());
        }
    }
}
