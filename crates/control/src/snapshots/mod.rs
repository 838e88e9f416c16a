// SPDX-License-Identifier: Apache-2.0
//! Snapshots service: named snapshots of sandboxes, which are templates of their team; and those of builds, which have no name.

mod create;

pub(crate) use create::{Keeps, of_build};

use std::time::Duration;

use uuid::Uuid;
use wrenn_api::{CreateSnapshot, ErrorCode, Snapshot};
use wrenn_rpc::host::v1::DeleteSnapshotRequest;

use crate::{
    agents::{AgentClient, deadline, within},
    by::By,
    caller::Caller,
    claims::is_of_platform,
    db::{
        hosts,
        snapshots::{self, Row},
    },
    error::Fault,
    fault,
    idempotency::Idempotency,
    names::is_template_name,
    state::App,
};

/// Interval between looks for snapshots that nobody works on any more, and how many are removed at a time.
const LOOK: Duration = Duration::from_secs(2);
const AT_A_TIME: i64 = 16;

/// Named snapshots of teams.
#[derive(Clone)]
pub struct Snapshots {
    app: App,
}

impl Snapshots {
    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Makes a snapshot of a running or paused sandbox, and waits until it is kept; with an idempotency key at most once. A
    /// running one goes on; it stands still only while its memory is captured. It is also completed if the caller does not
    /// wait for it. With `overwrite` it takes its name from the team's snapshot that has it, once it is kept, and that one is
    /// removed.
    pub async fn create(
        &self,
        caller: &Caller,
        new: CreateSnapshot,
        overwrite: bool,
        idempotency: Option<Idempotency>,
    ) -> Result<Snapshot, Fault> {
        create::create(&self.app, caller, new, overwrite, idempotency).await
    }

    /// Lists the team's snapshots, the newest first.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<Snapshot>, Fault> {
        let rows = snapshots::of_team(&self.app.db, caller.team().uuid()).await?;
        Ok(rows.iter().map(Row::public).collect())
    }

    /// Deletes a snapshot of the team. Sandboxes that were created from it do not need it. If its host does not respond,
    /// it is removed there later.
    pub async fn delete(&self, caller: &Caller, name: &str) -> Result<(), Fault> {
        let app = &self.app;
        // PostgreSQL takes no text with NUL, and no snapshot has such a name.
        let valid = is_template_name(name);
        let found = if valid { snapshots::find(&app.db, caller.team().uuid(), name).await? } else { None };
        let Some(row) = found else {
            if valid && is_of_platform(app, caller.team().uuid(), name).await? {
                let message = format!("{name:?} is a template of the platform, which teams cannot delete");
                return Err(Fault::new(ErrorCode::Forbidden, message));
            }
            let shown: String = name.chars().take(64).collect();
            return Err(Fault::new(ErrorCode::NotFound, format!("there is no snapshot named {shown:?}")));
        };
        snapshots::delete(&app.db, caller.team().uuid(), &row, app.limits.lease, By::caller(caller)).await?;
        app.outbox.notify_one();
        fault::point("snapshot.doomed");
        if let Err(error) = remove(app, &row).await {
            tracing::warn!(name, %error, "a snapshot is removed from its host later");
        }
        Ok(())
    }
}

/// Removes snapshots that nobody works on any more, until the server stops.
pub(crate) async fn upkeep(app: App) {
    loop {
        match snapshots::take_unfinished(&app.db, app.limits.lease, AT_A_TIME).await {
            Ok(rows) => {
                for row in rows {
                    remove_or_later(&app, &row).await;
                }
            }
            Err(error) => tracing::warn!(%error, "unfinished snapshots cannot be looked for"),
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Deletes a snapshot of a build, to which nothing refers. If its host does not respond, it is removed there later.
pub(crate) async fn discard(app: &App, row: &Row) {
    match snapshots::doom(&app.db, row.id, app.limits.lease).await {
        Ok(()) => remove_or_later(app, row).await,
        Err(error) => tracing::warn!(id = %row.id, %error, "a snapshot of a build is removed later"),
    }
}

/// Removes a snapshot that is marked to be removed from its host, and forgets it; or else the upkeep does so later.
pub(crate) async fn remove_or_later(app: &App, row: &Row) {
    if let Err(error) = remove(app, row).await {
        tracing::warn!(id = %row.id, name = row.name, %error, "a snapshot is not removed yet");
    }
}

/// Removes a snapshot from its host, and forgets it.
async fn remove(app: &App, row: &Row) -> Result<(), Fault> {
    let request = DeleteSnapshotRequest { snapshot_id: row.id.simple().to_string(), ..Default::default() };
    agent(app, row.host_id).await?.delete_snapshot_with_options(request, within(deadline::DESTROY)).await?;
    Ok(snapshots::forget(&app.db, row.id).await?)
}

async fn agent(app: &App, host: Uuid) -> Result<AgentClient, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the snapshot's host is no longer registered");
    let address = hosts::address(&app.db, host).await?.ok_or_else(gone)?;
    Ok(app.agents.at(host.into(), &address))
}
