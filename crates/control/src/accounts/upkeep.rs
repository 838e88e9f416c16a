// SPDX-License-Identifier: Apache-2.0
//! Removal of what is over: sign-ups and links that nobody used, mails that could not be sent, and deleted users.

use std::time::Duration;

use super::me::{KEPT_DAYS, leave_own_teams};
use crate::{
    access::Changed,
    db::{accounts, links, mails},
    error::Fault,
    state::App,
};

/// Interval between rounds.
const INTERVAL: Duration = Duration::from_secs(300);
/// Number of rows that are removed at a time.
const BATCH: i64 = 1000;
/// Time for which a mail that could not be sent is kept with its reason.
const FAILED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Removes what is over until the server stops. Rounds of several servers do each other no harm.
pub(crate) async fn run(app: App) {
    loop {
        if let Err(error) = round(&app).await {
            tracing::debug!(%error, "accounts could not be cleaned up; the next round does it");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn round(app: &App) -> Result<(), Fault> {
    while links::remove_old(&app.db, BATCH).await? == BATCH as u64 {}
    while accounts::remove_sign_ups(&app.db, BATCH).await? == BATCH as u64 {}
    while mails::remove_failed(&app.db, FAILED_KEPT.as_secs_f64(), BATCH).await? == BATCH as u64 {}
    for user in accounts::to_remove(&app.db, DAY * KEPT_DAYS, BATCH).await? {
        let mut tx = app.db.begin().await?;
        // A team that was created while its owner was deleted.
        let gone = match leave_own_teams(&mut tx, app, user.into()).await {
            Ok(gone) => gone,
            Err(error) => {
                // Rolled back: the others are removed nevertheless.
                tracing::warn!(%error, user = %wrenn_api::UserId::from(user), "a deleted user cannot be removed");
                continue;
            }
        };
        accounts::remove(&mut tx, user).await?;
        tx.commit().await?;
        app.cleanups.notify_one();
        for team in gone {
            app.access.forget(Changed::Team(team)).await;
        }
    }
    Ok(())
}
