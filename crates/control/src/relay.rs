// SPDX-License-Identifier: Apache-2.0
//! Relay of events from the outbox to Redis, in order and at least once, by one server at a time.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use wrenn_api::TeamId;

use crate::{
    channels,
    db::{deliveries, outbox},
    error::Fault,
    held::Held,
    state::App,
};

/// Number of events per batch.
const BATCH: i64 = 100;
/// Polling interval, because another server may have added events.
const IDLE: Duration = Duration::from_millis(500);
/// Time after which a batch ends, however many events are left.
const TURN: Duration = Duration::from_secs(2);
/// Delay after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Relays events until the server stops.
pub(crate) async fn run(app: App) {
    let mut held = Held::default();
    loop {
        let pause = match relay(&app, &mut held).await {
            Ok(full) if full => Duration::ZERO,
            Ok(_) => IDLE,
            Err(error) => {
                tracing::debug!(%error, "cannot deliver events; they stay in the outbox");
                PAUSE
            }
        };
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.outbox.notified(), if pause == IDLE => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Relays one batch; returns true if there may be more. An event for which a hook fails stays in the outbox, and all later ones of its
/// team with it.
async fn relay(app: &App, held: &mut Held) -> Result<bool, Fault> {
    let begun = Instant::now();
    let mut tx = app.db.begin().await?;
    let pending = outbox::take(&mut tx, &held.now(), BATCH).await?;
    if pending.is_empty() {
        return Ok(false);
    }
    let (mut failed, mut done) = (HashSet::new(), Vec::new());
    for event in &pending {
        if failed.contains(&event.team_id) {
            continue;
        }
        // First, because what is in Redis cannot be undone.
        let told = app.hooks.on_event(&mut tx, event.team_id.into(), &event.event).await;
        if let Err(error) = told {
            tracing::warn!(team = %TeamId::from(event.team_id), %error, "a hook fails; the events of the team wait for it");
            failed.insert(event.team_id);
            continue;
        }
        app.events.append(event.team_id, &event.event).await?;
        done.push(event.id);
        // The others of the batch stay for the next one: hooks may take their time.
        if begun.elapsed() > TURN {
            break;
        }
    }
    // In this transaction, so that an event that left the outbox is in the queues of its channels.
    let channels = deliveries::fan_out(&mut tx, &done).await?;
    outbox::delivered(&mut tx, &done).await?;
    tx.commit().await?;
    channels::announce(app, channels);
    let succeeded = pending.iter().filter(|event| done.contains(&event.id));
    succeeded.for_each(|event| held.release(event.team_id));
    failed.into_iter().for_each(|team| held.hold(team));
    Ok(pending.len() as i64 == BATCH || done.len() < pending.len())
}
