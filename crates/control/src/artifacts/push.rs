// SPDX-License-Identifier: Apache-2.0
//! Writing of templates to the store: after a build has succeeded, its version is read from its host, and each chunk becomes an
//! object. Chunks that are there already are not written again, so that an interrupted attempt is gone on with.

use std::{collections::HashSet, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use object_store::path::Path;
use tokio::time::{sleep, timeout};
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{__buffa::oneof::import_artifact_request::Part, ArtifactChunk};

use super::{
    Kind, OBJECTS,
    layout::Place,
    leased,
    manifest::{Entry, Manifest},
    transfer,
};
use crate::{
    db::stored::{self, Stored},
    error::Fault,
    state::App,
    template_store::{Store, StoreError},
};

/// Interval between looks for versions that the store does not have, and how many are noted at a time.
const LOOK: Duration = Duration::from_secs(2);
const NOTED: i64 = 100;
/// Pause after an attempt that failed: the first one, which doubles, and the maximum.
const PAUSES: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(3600));
/// Time after which an attempt ends in which the host sends nothing.
const STILL: Duration = Duration::from_secs(120);

/// Writes the versions of templates to the store, if there is one, until the server stops.
pub(crate) async fn run(app: App) {
    let Some(store) = app.transfers.store.clone() else { return app.shutdown.cancelled().await };
    loop {
        let pause = match next(&app, &store).await {
            // There may be more.
            Ok(true) => Duration::ZERO,
            Ok(false) => LOOK,
            Err(fault) => {
                tracing::warn!(%fault, "templates that the store does not have cannot be looked for");
                LOOK
            }
        };
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// Writes one artifact, if there is one to write.
async fn next(app: &App, store: &Store) -> Result<bool, Fault> {
    stored::note_new(&app.db, NOTED).await?;
    let Some(row) = stored::take(&app.db, app.limits.lease).await? else { return Ok(false) };
    let lease = app.limits.lease;
    let renew = || stored::renew(&app.db, &row, lease);
    let pushed = tokio::select! {
        // Another server, or this one when it is back, goes on when the lease is over.
        () = app.shutdown.cancelled() => return Ok(false),
        pushed = leased(lease, renew, push(app, store, &row)) => pushed,
    };
    let result = if pushed.is_ok() { "done" } else { "failed" };
    metrics::counter!("wrenn_template_pushes_total", "result" => result).increment(1);
    match pushed {
        Ok(size) => {
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            if stored::pushed(&app.db, &row, size).await? {
                tracing::info!(artifact = %row.artifact_id, template = row.template, size, "the store has a template");
            }
        }
        Err(fault) => {
            let pause = pause_after(row.tries);
            tracing::warn!(
                artifact = %row.artifact_id, template = row.template, %fault,
                "a template was not written to the store; the next attempt is in {} s", pause.as_secs()
            );
            stored::put_off(&app.db, &row, pause).await?;
        }
    }
    Ok(true)
}

/// Pause after this number of attempts that have failed before.
fn pause_after(tries: i32) -> Duration {
    let factor = 2_u32.saturating_pow(tries.clamp(0, 30) as u32);
    PAUSES.1.min(PAUSES.0.saturating_mul(factor))
}

/// Writes all of an artifact, from the first online host that has it, and returns its size.
async fn push(app: &App, store: &Store, row: &Stored) -> Result<u64, Fault> {
    let place = Place::from(row);
    let there = if row.is_damaged {
        HashSet::new()
    } else {
        store.list(&place.root()).await.map_err(|error| failed(&error))?
    };
    let away = || Fault::new(ErrorCode::HostUnavailable, "no host that has the template responds");
    let host = stored::holder(&app.db, row.artifact_id).await?.ok_or_else(away)?;
    let parts = transfer::of_host(app, Kind::from(row), row.artifact_id, host).await;
    let mut parts = parts.map_err(|broken| unreadable(&broken))?;
    let (mut head, mut chunks) = (None, Vec::new());
    let mut writing = FuturesUnordered::<BoxFuture<'_, Result<(), StoreError>>>::new();
    loop {
        let part = tokio::select! {
            // Also while the host reads: a request that is begun must go on.
            Some(written) = writing.next(), if !writing.is_empty() => {
                written.map_err(|error| failed(&error))?;
                continue;
            }
            part = timeout(STILL, parts.next()), if writing.len() < OBJECTS => part.map_err(|_| silent())?,
        };
        match part.transpose().map_err(|broken| unreadable(&broken))? {
            Some(Part::Head(found)) => head = Some(*found),
            Some(Part::Chunk(chunk)) => {
                let (entry, write) = object_of(store, &place, &there, &chunk);
                chunks.push(entry);
                writing.extend(write);
            }
            Some(Part::End(end)) => {
                while let Some(written) = writing.next().await {
                    written.map_err(|error| failed(&error))?;
                }
                let manifest = Manifest { head: head.ok_or_else(incomplete)?, end: *end, chunks };
                manifest.write(store, &place).await.map_err(|error| failed(&error))?;
                return Ok(manifest.size());
            }
            None => return Err(incomplete()),
        }
    }
}

/// Returns the entry of a chunk, and how to write it, unless it is there: its path says what is in it.
fn object_of<'a>(
    store: &'a Store,
    place: &Place,
    there: &HashSet<Path>,
    chunk: &ArtifactChunk,
) -> (Entry, Option<BoxFuture<'a, Result<(), StoreError>>>) {
    let (entry, object) = Entry::of(chunk);
    let path = entry.path(place);
    let is_there = there.contains(&path);
    (entry, (!is_there).then(|| async move { store.put(&path, object).await }.boxed()))
}

fn failed(error: &StoreError) -> Fault {
    Fault::new(ErrorCode::ServiceUnavailable, error.to_string())
}

fn unreadable(broken: &transfer::Broken) -> Fault {
    Fault::new(ErrorCode::AgentError, broken.why.clone())
}

fn silent() -> Fault {
    Fault::new(ErrorCode::Timeout, "the host that has the template sent nothing for too long")
}

fn incomplete() -> Fault {
    Fault::new(ErrorCode::AgentError, "the host that has the template did not send all of it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour() {
        let seconds = [0, 1, 2, 7, 8, i32::MAX, -1].map(|tries| pause_after(tries).as_secs());
        assert_eq!(seconds, [15, 30, 60, 1920, 3600, 3600, 15]);
    }
}
