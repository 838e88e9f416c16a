// SPDX-License-Identifier: Apache-2.0
//! Relay of events from the outbox to Redis, in order and at least once, by one server at a time.

use std::time::Duration;

use crate::{db::outbox, error::Fault, state::App};

/// Number of events per batch.
const BATCH: i64 = 100;
/// Polling interval, because another server may have added events.
const IDLE: Duration = Duration::from_millis(500);
/// Delay after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Relays events until the server stops.
pub(crate) async fn run(app: App) {
    loop {
        let pause = match relay(&app).await {
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

/// Relays one batch; returns true if there may be more.
async fn relay(app: &App) -> Result<bool, Fault> {
    let mut tx = app.db.begin().await?;
    let pending = outbox::take(&mut tx, BATCH).await?;
    if pending.is_empty() {
        return Ok(false);
    }
    for event in &pending {
        app.events.append(event.team_id, &event.event).await?;
    }
    let ids: Vec<i64> = pending.iter().map(|event| event.id).collect();
    outbox::delivered(&mut tx, &ids).await?;
    tx.commit().await?;
    Ok(pending.len() as i64 == BATCH)
}
