// SPDX-License-Identifier: Apache-2.0
//! Choice of a host for a sandbox: one that has what it starts from, or else one with room, which gets it first.

use uuid::Uuid;
use wrenn_api::ErrorCode;

use super::{Artifact, fetch};
use crate::{
    db::{
        copies,
        hosts::{self, Candidate},
        stored,
    },
    error::Fault,
    place::{Need, On, place},
    state::App,
    templates::Origin,
};

/// Number of hosts to which a template is brought for one create, if the first ones cannot take it.
const TRIES: usize = 2;

/// Returns the hosts that can take a sandbox of this origin and have what it starts from, those with the most free memory first.
/// If none of them has room or responds, this brings it to another host, for which the caller waits.
pub(crate) async fn hosts_for(app: &App, origin: &Origin, need: &Need<'_>) -> Result<Vec<Uuid>, Fault> {
    let candidates = hosts::candidates(&app.db).await?;
    let Some(artifact) = origin.artifact() else { return place(&candidates, need) };
    let mut holders = copies::ready(&app.db, artifact.id).await?;
    holders.push(artifact.host);
    match place(&candidates, &Need { on: On::Hosts(&holders), ..*need }) {
        Ok(free) => Ok(free),
        Err(fault) if may_be_elsewhere(fault.code) => {
            let others: Vec<Candidate> =
                candidates.iter().filter(|host| !holders.contains(&host.id)).cloned().collect();
            let is_there = candidates.iter().any(|host| holders.contains(&host.id));
            elsewhere(app, artifact, need, &others, is_there.then_some(fault)).await
        }
        Err(fault) => Err(fault),
    }
}

/// Whether another host could take what these cannot.
const fn may_be_elsewhere(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::HostUnavailable | ErrorCode::NoHostsAvailable | ErrorCode::ExceedsCapacity)
}

/// Brings an artifact to one of these hosts. `full` says why those do not take the sandbox that have it and respond.
async fn elsewhere(
    app: &App,
    artifact: Artifact,
    need: &Need<'_>,
    others: &[Candidate],
    full: Option<Fault>,
) -> Result<Vec<Uuid>, Fault> {
    let has_store = app.transfers.store.is_some() && stored::find(&app.db, artifact.id).await?.is_some();
    if full.is_none() && !has_store {
        return Err(fetch::unavailable(need.template, app.transfers.store.is_some()));
    }
    let mut free = match place(others, &Need { on: On::Any, ..*need }) {
        Ok(free) => free,
        // Those that have it have the better reason.
        Err(fault) => return Err(full.unwrap_or(fault)),
    };
    // Of several creates at once, all wait for one copy. Those of equal rank stay in their order.
    let begun = copies::fetching(&app.db, artifact.id).await?;
    free.sort_by_key(|host| !begun.contains(host));
    let mut last = None;
    for host in free.into_iter().take(TRIES) {
        match fetch::to_host(app, artifact, host, need.template).await {
            Ok(()) => return Ok(vec![host]),
            Err(fault) if is_of_host(fault.code) => last = Some(fault),
            Err(fault) => return Err(fault),
        }
    }
    Err(last.unwrap_or_else(Fault::internal))
}

/// Whether a copy may succeed on another host.
const fn is_of_host(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::HostUnavailable | ErrorCode::InsufficientStorage | ErrorCode::AgentError)
}

/// Notes that a sandbox is about to be created on this host, so that a copy there is not removed as one that nobody uses.
pub(crate) async fn note_use(app: &App, origin: &Origin, host: Uuid) -> Result<(), Fault> {
    match origin.artifact() {
        Some(artifact) if artifact.host != host => Ok(copies::used(&app.db, artifact.id, host).await?),
        _ => Ok(()),
    }
}

/// Notes that a create has failed on this host: if a copy is not there any more, the next create brings it there again.
pub(crate) async fn note_failure(app: &App, origin: &Origin, host: Uuid, code: ErrorCode) {
    let is_gone = matches!(code, ErrorCode::NotFound | ErrorCode::SnapshotMissing);
    let Some(artifact) = origin.artifact().filter(|artifact| is_gone && artifact.host != host) else {
        return;
    };
    tracing::warn!(artifact = %artifact.id, %host, "a host has lost its copy of a template");
    if let Err(error) = copies::lost(&app.db, artifact.id, host).await {
        tracing::warn!(%error, "a lost copy of a template was not noted");
    }
}
