// SPDX-License-Identifier: Apache-2.0
//! Pauses and deletions of sandboxes that were idle for their timeout. One whose pause fails runs on, says why, and is
//! tried again later, less and less often; the reconciler completes a deletion.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::stream::{self, StreamExt as _};
use uuid::Uuid;
use wrenn_api::{OnTimeout, SandboxStatus};

use super::{destroy::destroy_idle, pause::pause_idle};
use crate::{
    by::By,
    db::sandboxes::{self, Change, Known},
    error::Fault,
    state::App,
};

/// Interval between looks for idle sandboxes.
const LOOK: Duration = Duration::from_secs(2);
/// Maximum number of pauses at a time, and of sandboxes that are looked at.
const AT_ONCE: usize = 8;
const LOOKED_AT: i64 = 256;
/// Delay before another attempt: the first one, which doubles, and the maximum.
const DELAYS: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(300));

/// Delays of the sandboxes whose last pause failed: time of the next attempt, and the delay before it.
type Delays = HashMap<Uuid, (Instant, Duration)>;

/// Pauses or deletes idle sandboxes until the server stops.
pub(crate) async fn run(app: App) {
    let mut delays = Delays::new();
    loop {
        if let Err(error) = round(&app, &mut delays).await {
            tracing::warn!(%error, "idle sandboxes cannot be looked for");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn round(app: &App, delays: &mut Delays) -> Result<(), Fault> {
    let rows = sandboxes::idle(&app.db, LOOKED_AT).await?;
    delays.retain(|id, _| rows.iter().any(|row| row.id == *id));
    let now = Instant::now();
    let due = rows.into_iter().filter(|row| delays.get(&row.id).is_none_or(|(next, _)| *next <= now));
    let due: Vec<_> = due.collect();
    let mut pauses = stream::iter(due).map(|row| attempt(app, row)).buffer_unordered(AT_ONCE);
    while let Some((id, failed)) = pauses.next().await {
        if !failed {
            delays.remove(&id);
            continue;
        }
        let delay = delays.get(&id).map_or(DELAYS.0, |(_, last)| (*last * 2).min(DELAYS.1));
        delays.insert(id, (Instant::now() + delay, delay));
    }
    Ok(())
}

/// Pauses or deletes a sandbox; returns whether that failed.
async fn attempt(app: &App, row: Known) -> (Uuid, bool) {
    let id = row.id;
    if row.on_timeout() == OnTimeout::Delete {
        let deleted = destroy_idle(app, &row).await;
        if let Err(error) = &deleted {
            tracing::warn!(sandbox_id = %row.public_id(), code = %error.code, %error, "the delete of an idle sandbox waits for its host");
        }
        return (id, deleted.is_err());
    }
    let Err(error) = pause_idle(app, &row).await else { return (id, false) };
    tracing::warn!(sandbox_id = %row.public_id(), code = %error.code, %error, "an idle sandbox cannot be paused");
    if let Err(untold) = tell(app, id, error).await {
        tracing::warn!(sandbox_id = %row.public_id(), error = %untold, "a failed pause cannot be told");
    }
    (id, true)
}

/// Records why the sandbox was not paused.
async fn tell(app: &App, id: Uuid, error: Fault) -> Result<(), Fault> {
    let now = sandboxes::of_ids(&app.db, &[id]).await?;
    for row in now.iter().filter(|row| row.status() == SandboxStatus::Running) {
        let message = format!("it was idle for its timeout and could not be paused: {}", error.message);
        let change = Change { error: Some((error.code, message)), ..Change::default() }.by(By::IDLE);
        sandboxes::change(&app.db, row, change, app.limits.lease).await?;
        app.outbox.notify_one();
    }
    Ok(())
}
