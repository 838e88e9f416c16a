// SPDX-License-Identifier: Apache-2.0
//! Removal of copies from hosts, and of artifacts from the store, that nothing needs any more, and of copies that nobody uses.
//! What is on a host that does not respond is removed when it is back.

use std::time::Duration;

use futures::future::join_all;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{DeleteImageRequest, DeleteSnapshotRequest};

use super::{Kind, layout::Place, on_host};
use crate::{
    agents::{deadline, within},
    db::{
        copies::{self, Doomed},
        hosts,
        stored::{self, Stored},
    },
    error::Fault,
    state::App,
    template_store::Store,
};

/// Interval between rounds, and how many copies and artifacts are removed in a round.
const ROUND: Duration = Duration::from_secs(2);
const AT_A_TIME: i64 = 16;
/// Time until a removal that failed is tried again, longer than one takes. It fails while sandboxes have disks from an image.
const AGAIN: Duration = deadline::DESTROY.saturating_add(Duration::from_secs(15));
/// Time limit for the removal of an artifact from the store.
const FROM_STORE: Duration = Duration::from_secs(900);
/// Time after which a fetch counts as given up whose server is gone.
const ABANDONED: Duration = Duration::from_secs(60);
/// Time for which a copy stays after its last use, however large all of its host are: a create may be about to use it.
const IDLE: Duration = Duration::from_secs(600);

/// Removes what is not needed any more, until the server stops.
pub(crate) async fn run(app: App) {
    loop {
        if let Err(error) = mark(&app).await {
            tracing::warn!(%error, "copies of templates that are not needed cannot be looked for");
        }
        if let Err(error) = remove(&app).await {
            tracing::warn!(%error, "copies of templates cannot be removed");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

/// Marks what is to be removed.
async fn mark(app: &App) -> Result<(), Fault> {
    let (db, transfers) = (&app.db, &app.transfers);
    stored::doom_unneeded(db).await?;
    copies::doom_unneeded(db).await?;
    copies::doom_abandoned(db, ABANDONED).await?;
    let cache_mb = i64::try_from(transfers.cache_mb).unwrap_or(i64::MAX);
    let age = Duration::from_secs(u64::from(app.builds.cache_days) * 24 * 3600);
    let evicted = copies::evict(db, cache_mb, age, IDLE, transfers.store.is_some()).await?;
    if evicted > 0 {
        tracing::info!(
            evicted,
            "copies of templates were not used for long and are removed from their hosts"
        );
    }
    Ok(())
}

/// Removes what is marked.
async fn remove(app: &App) -> Result<(), Fault> {
    let doomed = copies::take_doomed(&app.db, AGAIN, AT_A_TIME).await?;
    // All at once, so that a host that hangs delays no other one's copies for long.
    join_all(doomed.into_iter().map(|copy| try_remove(app, copy))).await;
    let Some(store) = &app.transfers.store else { return Ok(()) };
    for row in stored::take_doomed(&app.db, FROM_STORE + AGAIN, AT_A_TIME).await? {
        if let Err(fault) = from_store(app, store, &row).await {
            tracing::warn!(artifact = %row.artifact_id, %fault, "a template is not removed from the store yet");
        }
    }
    Ok(())
}

async fn try_remove(app: &App, copy: Doomed) {
    match from_host(app, &copy).await {
        Ok(()) => {}
        Err(Fault { code: ErrorCode::Conflict, .. }) => {
            tracing::debug!(artifact = %copy.artifact_id, "a copy is kept while there are disks from it");
        }
        Err(fault) => {
            tracing::warn!(artifact = %copy.artifact_id, %fault, "a copy of a template is not removed yet");
        }
    }
}

/// Removes a copy from its host, and forgets it. What the host has by itself, it keeps.
async fn from_host(app: &App, copy: &Doomed) -> Result<(), Fault> {
    if !copy.is_own {
        let gone = || Fault::new(ErrorCode::HostUnavailable, "the copy's host is no longer registered");
        let address = hosts::address(&app.db, copy.host_id).await?.ok_or_else(gone)?;
        let agent = app.agents.at(copy.host_id.into(), &address);
        let kind = Kind::of(&copy.kind);
        let id = on_host(kind, copy.artifact_id);
        match kind {
            Kind::Snapshot => {
                let request = DeleteSnapshotRequest { snapshot_id: id, ..Default::default() };
                agent.delete_snapshot_with_options(request, within(deadline::DESTROY)).await?;
            }
            Kind::Image => {
                let request = DeleteImageRequest { image_id: id, ..Default::default() };
                agent.delete_image_with_options(request, within(deadline::DESTROY)).await?;
            }
        }
    }
    Ok(copies::forget(&app.db, copy).await?)
}

/// Removes an artifact from the store, and forgets it.
async fn from_store(app: &App, store: &Store, row: &Stored) -> Result<(), Fault> {
    let place = Place::from(row);
    let (root, manifest) = (place.root(), place.manifest());
    let late = |_| Fault::new(ErrorCode::Timeout, "the store did not remove it in time");
    let removed = tokio::time::timeout(FROM_STORE, store.remove(&root, &manifest)).await.map_err(late)?;
    removed.map_err(|error| Fault::new(ErrorCode::ServiceUnavailable, error.to_string()))?;
    Ok(stored::forget(&app.db, row).await?)
}
