// SPDX-License-Identifier: Apache-2.0
//! Worker that delivers: it claims deliveries that are due, sends them, and records what came of it. Whoever dies amid one
//! leaves a lease that ends; another server then sends it again.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinSet};
use uuid::Uuid;
use wrenn_api::{ChannelId, DeliveryId, TeamId};

use super::{AT_ONCE, open};
use crate::{
    announcements::{self, DELIVERIES, Listener},
    db::deliveries::{self, Ended, Job, Next},
    fault,
    receivers::{
        message::{self, Message},
        sealing::Sealed,
        sender::{ANSWER, Failure},
    },
    state::App,
};

/// Number of deliveries that one server works on at a time.
const PLACES: usize = 64;
/// Interval between looks for what is due.
const LOOK: Duration = Duration::from_secs(1);
/// Time for which a delivery is a server's, longer than an attempt and its record take.
const LEASE: Duration = ANSWER.saturating_add(Duration::from_secs(20));
/// Time until the second attempt, which doubles with each, and the maximum.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(900));
/// Number of failures one after the other after which a receiver was down, and not only one delivery wrong.
const OUTAGE: i32 = 2;

/// Tells workers of deliveries to these channels. Without Redis it takes its time, and nobody needs it.
pub(crate) fn announce(app: &App, channels: Vec<Uuid>) {
    if channels.is_empty() {
        return;
    }
    let app = app.clone();
    tokio::spawn(async move {
        for channel in channels {
            let channel = ChannelId::from(channel).to_string();
            if let Err(error) = announcements::announce(&app.events, DELIVERIES, channel).await {
                tracing::debug!(%error, "deliveries are not announced; a worker finds them by itself");
                return;
            }
        }
    });
}

/// Delivers until the server stops.
pub(crate) async fn run(app: App) {
    let wake = Arc::new(Notify::new());
    tokio::select! {
        () = app.shutdown.cancelled() => {}
        () = listen(&app, &wake) => {}
        () = deliver_all(&app, &wake) => {}
    }
}

/// Wakes the worker at each announcement, and from time to time.
async fn listen(app: &App, wake: &Notify) {
    let mut listener = Listener::new(DELIVERIES);
    loop {
        listener.wait(&app.events, LOOK).await;
        wake.notify_one();
    }
}

/// Claims and sends what is due, over and over.
async fn deliver_all(app: &App, wake: &Arc<Notify>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= PLACES {
            tasks.join_next().await;
        }
        match deliveries::claim(&app.db, LEASE, AT_ONCE).await {
            Ok(Next::Job(job)) => {
                let (app, wake) = (app.clone(), wake.clone());
                tasks.spawn(async move {
                    deliver(&app, &job).await;
                    // The next one of its lane may be due.
                    wake.notify_one();
                });
            }
            Ok(Next::Other) => {}
            Ok(Next::Nothing) => wake.notified().await,
            Err(error) => {
                tracing::warn!(%error, "deliveries to channels cannot be looked for");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// Sends a delivery, and records how that ended.
async fn deliver(app: &App, job: &Job) {
    let sent = send(app, job).await;
    fault::point("channel.sent");
    let attempt = job.attempt;
    let (channel, delivery) = (ChannelId::from(job.channel_id), DeliveryId::from(job.id));
    let ended = match &sent {
        Ok(status) => {
            tracing::debug!(%channel, %delivery, attempt, "an event was delivered");
            Ended::Delivered { status: *status }
        }
        Err(failure) => {
            tracing::debug!(%channel, %delivery, attempt, error = failure.error, "an event was not delivered");
            let again = pause(attempt).max(failure.wait.unwrap_or_default());
            Ended::Failed { status: failure.status, error: &failure.error, again, is_down: failure.is_down }
        }
    };
    let result = if sent.is_ok() { "delivered" } else { "failed" };
    metrics::counter!("wrenn_channel_attempts_total", "result" => result).increment(1);
    match deliveries::settle(&app.db, job, &ended, pause, (OUTAGE, AT_ONCE)).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::debug!(%channel, %delivery, attempt, "an attempt was taken over; it does not count");
        }
        Err(error) => {
            tracing::warn!(%error, %delivery, "what came of a delivery is not recorded; it is sent again");
        }
    }
}

async fn send(app: &App, job: &Job) -> Result<u16, Failure> {
    let sealed = Sealed { key: job.key_number, bytes: job.config.clone() };
    let target = open(app, job.channel_id, &job.provider, &sealed).map_err(Failure::down)?;
    let event = message::event(job.occurrence, TeamId::from(job.team_id), job.payload.clone());
    let attempt = job.attempt.max(1) as u32;
    let message = Message { delivery: job.id.into(), attempt, event };
    app.channels.sender.send(&target, &message).await
}

/// Returns the time until the next attempt after so many failures.
fn pause(failures: i32) -> Duration {
    let doublings = failures.clamp(1, 16) as u32 - 1;
    PAUSES.0.saturating_mul(1 << doublings).min(PAUSES.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_quarter_of_an_hour() {
        let seconds: Vec<u64> =
            [i32::MIN, 0, 1, 2, 3, 10, 11, 17, i32::MAX].map(|failures| pause(failures).as_secs()).into();
        assert_eq!(seconds, [1, 1, 1, 2, 4, 512, 900, 900, 900]);
    }
}
