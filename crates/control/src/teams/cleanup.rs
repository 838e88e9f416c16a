// SPDX-License-Identifier: Apache-2.0
//! Removal of what deleted teams have on hosts: at once, and of hosts that do not answer when they are back. It is level-triggered:
//! whatever is left of a deleted team is found, however it came to be left.

use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use uuid::Uuid;
use wrenn_api::TeamId;

use crate::{
    by::By,
    db::{invitations, teams, templates},
    error::Fault,
    sandboxes::destroy,
    state::App,
};

/// Interval between looks for deleted teams of which something is left.
const LOOK: Duration = Duration::from_secs(2);
/// Number of teams that are looked at together, of a team's sandboxes, and of those that are deleted at a time.
const TEAMS: i64 = 64;
const SANDBOXES: i64 = 256;
const AT_ONCE: usize = 8;
/// Number of invitations that are over and are forgotten together.
const INVITATIONS: i64 = 100;

/// Begins to remove what is left of a team, which somebody has deleted just now.
pub(super) fn begin(app: &App, team: TeamId, by: By) {
    let app = app.clone();
    tokio::spawn(async move {
        if let Err(error) = empty(&app, team.uuid(), by).await {
            tracing::warn!(%team, %error, "what is left of a deleted team is removed later");
        }
    });
}

/// Removes what is left of deleted teams, until the server stops.
pub(crate) async fn run(app: App) {
    loop {
        if let Err(error) = round(&app).await {
            tracing::warn!(%error, "deleted teams cannot be looked for");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.cleanups.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn round(app: &App) -> Result<(), Fault> {
    let mut last = Uuid::nil();
    loop {
        let all = teams::to_empty(&app.db, last, TEAMS).await?;
        let Some(end) = all.last().copied() else { break };
        for team in all {
            // One that fails delays no other.
            if let Err(error) = empty(app, team, By::SYSTEM).await {
                tracing::warn!(team = %TeamId::from(team), %error, "what is left of a deleted team is removed later");
            }
        }
        last = end;
    }
    while invitations::forget_over(&app.db, INVITATIONS).await? == INVITATIONS.unsigned_abs() {}
    Ok(())
}

/// Removes what is left of a deleted team, and records it once that is nothing. What is on a host that does not answer is marked: the
/// reconciler and the upkeep of snapshots and images remove it when the host is back.
async fn empty(app: &App, team: Uuid, by: By) -> Result<(), Fault> {
    loop {
        let left = teams::sandboxes_left(&app.db, team, SANDBOXES).await?;
        if left.is_empty() {
            break;
        }
        let mut deletes =
            stream::iter(left).map(|id| destroy(app, team, id.into(), by)).buffer_unordered(AT_ONCE);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
    }
    let mut tx = app.db.begin().await?;
    templates::lock_names(&mut tx, team).await?;
    templates::delete_all(&mut tx, team).await?;
    tx.commit().await?;
    if teams::emptied(&app.db, team).await? {
        tracing::info!(team = %TeamId::from(team), "nothing is left of a deleted team");
    }
    Ok(())
}
