// SPDX-License-Identifier: Apache-2.0
//! Writing of records: before the response is sent. While the database does not answer they wait in memory, and are written later.

use std::time::Duration;

use wrenn_api::{ErrorCode, TeamId};

use super::record;
use crate::{
    db::audit,
    deeds::{Deed, lose},
    error::Fault,
    state::{App, State},
};

/// Time that a response waits for its record.
const WAIT: Duration = Duration::from_secs(2);
/// Interval between rounds: of writing what waits, and of putting new records into their order.
const ROUND: Duration = Duration::from_secs(1);
/// Interval between removals of old records, in rounds.
const PRUNE: u32 = 60;
/// Maximum number of records removed by one statement.
const BATCH: i64 = 10_000;

impl State {
    /// Records a deed, at once if possible.
    pub(crate) async fn record(&self, mut deed: Deed) {
        if deed.team == TeamId::NONE {
            deed.team = TeamId::PLATFORM;
        }
        let written = tokio::time::timeout(WAIT, record(&self.db, &deed)).await;
        match written {
            Ok(Ok(())) => {}
            // It is tried again, and lost if the database does not take it.
            Ok(Err(_)) | Err(_) => self.unwritten.keep(deed),
        }
    }
}

/// Writes what waits, puts records into their order, and removes old ones, until the server stops.
pub(crate) async fn run(app: App) {
    let mut rounds = 0_u32;
    loop {
        if let Err(error) = round(&app, rounds.is_multiple_of(PRUNE)).await {
            tracing::debug!(%error, "the audit log waits for the database");
        }
        rounds = rounds.wrapping_add(1);
        tokio::select! {
            () = app.shutdown.cancelled() => break,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
    // The last chance of what still waits.
    if !app.unwritten.is_empty()
        && let Err(error) = write(&app).await
    {
        tracing::error!(%error, "records of the audit log are lost: the database did not answer until the server stopped");
    }
}

async fn round(app: &App, prune: bool) -> Result<(), Fault> {
    write(app).await?;
    audit::order(&app.db).await?;
    if prune {
        while audit::forget_old(&app.db, app.limits.audit_keep_days, BATCH).await? == BATCH as u64 {}
    }
    Ok(())
}

async fn write(app: &App) -> Result<(), Fault> {
    while let Some(deed) = app.unwritten.first() {
        match record(&app.db, &deed).await.map_err(Fault::from) {
            Ok(()) => {}
            Err(fault) if fault.code == ErrorCode::ServiceUnavailable => return Err(fault),
            // The others must not wait for it for ever.
            Err(_) => lose(&deed),
        }
        app.unwritten.written(&deed);
    }
    Ok(())
}
