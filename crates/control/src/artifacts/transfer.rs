// SPDX-License-Identifier: Apache-2.0
//! Transfers of artifacts: read from a host or the store, and passed on to a host, piece by piece.

use std::{pin::pin, time::Duration};

use connectrpc::client::CallOptions;
use futures::{
    SinkExt as _, StreamExt as _,
    channel::mpsc,
    future,
    stream::{self, BoxStream},
};
use tokio::time::timeout;
use uuid::Uuid;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    __buffa::oneof::{
        export_artifact_request::Artifact as Asked, export_artifact_response, import_artifact_request::Part,
    },
    ExportArtifactRequest, ImportArtifactRequest,
};

use super::{Kind, OBJECTS, layout::Place, manifest::Manifest, on_host};
use crate::{
    agents::AgentClient,
    db::hosts,
    error::Fault,
    state::App,
    template_store::{Store, StoreError},
};

/// Time after which a transfer ends in which nothing comes, and time limit for a host to take a piece, and to bring all to its disk.
const STILL: Duration = Duration::from_secs(120);
const SETTLE: Duration = Duration::from_secs(900);

/// Why a place cannot give an artifact.
#[derive(Debug)]
pub(super) struct Broken {
    /// Whether it has something else than what was kept there.
    pub(super) is_damaged: bool,
    /// For the log.
    pub(super) why: String,
}

/// Why an artifact was not brought to a host.
#[derive(Debug)]
pub(super) enum Failed {
    /// Where it was to come from, which may be tried with another place.
    Source(Broken),
    /// The host that was to get it.
    Target(Fault),
}

/// Parts of an artifact: head, chunks, end.
pub(super) type Parts = BoxStream<'static, Result<Part, Broken>>;

impl Broken {
    fn of(why: impl Into<String>) -> Self {
        Self { is_damaged: false, why: why.into() }
    }

    fn by(fault: &Fault) -> Self {
        Self::of(fault.to_string())
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self { is_damaged: matches!(error, StoreError::Damaged { .. }), why: error.to_string() }
    }
}

/// Returns a client of a host for a transfer.
pub(super) async fn client(app: &App, host: Uuid) -> Result<AgentClient, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the template's host is no longer registered");
    let address = hosts::address(&app.db, host).await?.ok_or_else(gone)?;
    Ok(app.agents.transferring(host.into(), &address))
}

/// Reads an artifact from a host that has it.
pub(super) async fn of_host(app: &App, kind: Kind, id: Uuid, host: Uuid) -> Result<Parts, Broken> {
    let agent = client(app, host).await.map_err(|fault| Broken::by(&fault))?;
    let named = on_host(kind, id);
    let asked = match kind {
        Kind::Snapshot => Asked::SnapshotId(named),
        Kind::Image => Asked::ImageId(named),
    };
    let request = ExportArtifactRequest { artifact: Some(asked), ..Default::default() };
    let parts = timeout(STILL, agent.export_artifact(request)).await;
    let parts = parts.map_err(|_| Broken::of("the host that has it does not answer"))?;
    let parts = parts.map_err(|error| Broken::by(&Fault::from(error)))?;
    let parts = stream::try_unfold((agent, parts), async |(agent, mut parts)| {
        loop {
            let Some(message) = parts.message().await.map_err(|error| Broken::by(&Fault::from(error)))?
            else {
                return Ok::<_, Broken>(None);
            };
            let part = match message.to_owned_message().part {
                Some(export_artifact_response::Part::Head(head)) => Part::Head(head),
                Some(export_artifact_response::Part::Chunk(chunk)) => Part::Chunk(chunk),
                Some(export_artifact_response::Part::End(end)) => Part::End(end),
                // Of a newer agent.
                None => continue,
            };
            return Ok(Some((part, (agent, parts))));
        }
    });
    Ok(parts.boxed())
}

/// Reads an artifact from the store: several chunks at a time, in any order.
pub(super) async fn of_store(store: &Store, place: &Place) -> Result<Parts, Broken> {
    let Manifest { head, end, chunks } = Manifest::read(store, place).await?;
    let (store, place) = (store.clone(), place.clone());
    let chunks = stream::iter(chunks).map(move |entry| {
        let (store, place) = (store.clone(), place.clone());
        async move { Ok::<_, Broken>(Part::from(entry.read(&store, &place).await?)) }
    });
    let head = stream::once(future::ready(Ok::<_, Broken>(Part::from(head))));
    let end = stream::once(future::ready(Ok::<_, Broken>(Part::from(end))));
    Ok(head.chain(chunks.buffer_unordered(OBJECTS)).chain(end).boxed())
}

/// Gives an artifact to a host, which verifies it, and returns the bytes that it occupies there.
pub(super) async fn to_host(agent: &AgentClient, parts: Parts) -> Result<u64, Failed> {
    // Not more than one piece waits for the host.
    let (sender, requests) = mpsc::channel(0);
    let mut importing = pin!(agent.import_artifact_with_options(requests, CallOptions::default()));
    // If it ends early, the host gets no end, and keeps nothing.
    let mut feeding = pin!(feed(parts, sender));
    let answer = tokio::select! {
        answer = &mut importing => answer,
        fed = &mut feeding => {
            fed?;
            let late = |_| still(SETTLE, "did not bring the template to its disk");
            timeout(SETTLE, importing).await.map_err(late)?
        }
    };
    match answer {
        Ok(imported) => Ok(imported.into_owned().size_bytes),
        Err(error) => Err(refused(Fault::from(error))),
    }
}

/// Sends all parts, or as many as the host takes.
async fn feed(mut parts: Parts, mut sender: mpsc::Sender<ImportArtifactRequest>) -> Result<(), Failed> {
    loop {
        let part = match timeout(STILL, parts.next()).await {
            Ok(Some(Ok(part))) => part,
            Ok(Some(Err(broken))) => return Err(Failed::Source(broken)),
            Ok(None) => return Ok(()),
            Err(_) => return Err(Failed::Source(Broken::of("nothing of it came for too long"))),
        };
        let request = ImportArtifactRequest { part: Some(part), ..Default::default() };
        // It may take in others before. One that is dead is noticed by its connection.
        match timeout(SETTLE, sender.send(request)).await {
            Ok(Ok(())) => {}
            // It has answered.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(still(SETTLE, "took nothing of the template")),
        }
    }
}

fn still(limit: Duration, what: &str) -> Failed {
    let message =
        format!("the host that was to get the template {what} for {} s: try again", limit.as_secs());
    Failed::Target(Fault::new(ErrorCode::Timeout, message))
}

/// Tells whose fault the refusal of a host is: it verifies what it gets.
fn refused(fault: Fault) -> Failed {
    use ErrorCode::{ImageDamaged, InvalidRequest, SnapshotDamaged};
    match fault.code {
        ImageDamaged | InvalidRequest | SnapshotDamaged => {
            Failed::Source(Broken { is_damaged: true, why: fault.to_string() })
        }
        _ => Failed::Target(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_the_fault_of_where_it_comes_from() {
        let of = |code| refused(Fault::new(code, "why"));
        for code in [ErrorCode::ImageDamaged, ErrorCode::SnapshotDamaged, ErrorCode::InvalidRequest] {
            assert!(matches!(of(code), Failed::Source(Broken { is_damaged: true, .. })), "{code}");
        }
        for code in [ErrorCode::InsufficientStorage, ErrorCode::HostUnavailable, ErrorCode::AgentError] {
            assert!(matches!(of(code), Failed::Target(fault) if fault.code == code), "{code}");
        }
    }
}
