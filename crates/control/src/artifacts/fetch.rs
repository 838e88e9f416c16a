// SPDX-License-Identifier: Apache-2.0
//! Copies for hosts that lack a template: each is fetched once, however many wait for it, from the store or else from a host that
//! has it.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use uuid::Uuid;
use wrenn_api::ErrorCode;

use super::{
    Artifact, Kind,
    layout::Place,
    leased,
    transfer::{self, Failed, Parts},
};
use crate::{
    db::{
        copies::{self, Claim, Held},
        layers, stored,
    },
    error::Fault,
    request_trace,
    state::App,
    template_store::Store,
};

/// Interval between looks whether somebody else has fetched it.
const LOOK: Duration = Duration::from_millis(250);
/// Time for which a failure is told to those who ask, before somebody tries again.
const TOLD: Duration = Duration::from_secs(5);
/// Time limit of a fetch for which nobody waits any more.
const WHOLE: Duration = Duration::from_secs(7200);

/// Where an artifact can come from.
enum Source {
    Store(Store, Place),
    Host(Uuid),
}

/// Brings an artifact to a host, or waits until somebody else has done so, for at most the time of the settings. The transfer goes
/// on if the caller does not wait for it.
pub(super) async fn to_host(app: &App, artifact: Artifact, host: Uuid, template: &str) -> Result<(), Fault> {
    let limit = app.transfers.fetch;
    let late = |_| {
        let message = format!(
            "template {template:?} was not brought to a host with room within {} s (server.template_fetch_secs): the transfer \
             goes on, so try again later",
            limit.as_secs()
        );
        Fault::new(ErrorCode::Timeout, message)
    };
    timeout(limit, ensure(app, artifact, host, template)).await.map_err(late)?
}

async fn ensure(app: &App, artifact: Artifact, host: Uuid, template: &str) -> Result<(), Fault> {
    loop {
        let claim =
            copies::claim(&app.db, artifact.id, host, artifact.kind.as_str(), app.limits.lease).await?;
        match claim {
            Claim::Ready => return Ok(()),
            Claim::Busy => sleep(LOOK).await,
            Claim::Failed(code, message) => {
                let code = code.parse().unwrap_or(ErrorCode::TemplateUnavailable);
                return Err(Fault::new(code, message));
            }
            Claim::Mine(held) => {
                let (app, template) = (app.clone(), template.to_owned());
                let task = request_trace::spawn(async move {
                    Box::pin(complete(&app, artifact, host, held, &template)).await
                });
                return task.await.map_err(|error| {
                    tracing::error!(%error, "the task of a fetch failed");
                    Fault::internal()
                })?;
            }
        }
    }
}

/// Fetches an artifact whose claim this server has, and records the result.
async fn complete(
    app: &App,
    artifact: Artifact,
    host: Uuid,
    held: Held,
    template: &str,
) -> Result<(), Fault> {
    let lease = app.limits.lease;
    let work = async {
        let _place = app.transfers.places.acquire().await.map_err(|_| Fault::internal())?;
        let late =
            |_| Fault::new(ErrorCode::Timeout, format!("template {template:?} took too long: try again"));
        timeout(WHOLE, from_anywhere(app, artifact, host, template)).await.map_err(late)?
    };
    let fetched = Box::pin(leased(lease, || copies::renew(&app.db, held, lease), work)).await;
    match fetched {
        Ok(size) => {
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            if copies::made(&app.db, held, size).await? {
                return Ok(());
            }
            let message = format!(
                "template {template:?} was deleted while it was brought to a host, or another server brings it there now: try again"
            );
            Err(Fault::new(ErrorCode::Conflict, message))
        }
        Err(fault) => {
            tracing::warn!(artifact = %artifact.id, %host, %fault, "a template was not brought to a host");
            let told = (fault.code.as_str(), fault.message.as_str());
            copies::failed(&app.db, held, told, TOLD).await?;
            Err(fault)
        }
    }
}

/// Fetches it from the first place that can give it, and returns its size on the host.
async fn from_anywhere(app: &App, artifact: Artifact, host: Uuid, template: &str) -> Result<u64, Fault> {
    for source in sources(app, artifact, host).await? {
        let (from, fetched) = match &source {
            Source::Store(store, place) => {
                ("store", through(app, host, transfer::of_store(store, place)).await)
            }
            Source::Host(holder) => (
                "host",
                through(app, host, transfer::of_host(app, artifact.kind, artifact.id, *holder)).await,
            ),
        };
        let result = if fetched.is_ok() { "done" } else { "failed" };
        metrics::counter!("wrenn_template_fetches_total", "from" => from, "result" => result).increment(1);
        match fetched {
            Ok(size) => return Ok(size),
            Err(Failed::Target(fault)) => return Err(fault),
            Err(Failed::Source(broken)) => {
                let why = wrenn_rpc::Foreign(&broken.why).to_string();
                tracing::warn!(artifact = %artifact.id, from, damaged = broken.is_damaged, why, "a place cannot give a template");
                if broken.is_damaged && matches!(source, Source::Store(..)) {
                    stored::damaged(&app.db, artifact.id).await?;
                }
            }
        }
    }
    Err(unavailable(template, app.transfers.store.is_some()))
}

/// The fault of a template that nobody can give now.
pub(super) fn unavailable(template: &str, has_store: bool) -> Fault {
    let why = if has_store {
        "its host does not respond, and the store does not have it"
    } else {
        "its host does not respond, and there is no store"
    };
    let message = format!("template {template:?} is not available: {why}; try again when the host is back");
    Fault::new(ErrorCode::TemplateUnavailable, message)
}

/// Where it can come from, the best place first: the store, which is nobody's burden; then the online hosts that have it.
async fn sources(app: &App, artifact: Artifact, host: Uuid) -> Result<Vec<Source>, Fault> {
    let mut sources = Vec::new();
    if let Some(store) = &app.transfers.store
        && let Some(row) = stored::find(&app.db, artifact.id).await?
    {
        sources.push(Source::Store(store.clone(), Place::from(&row)));
    }
    let copies = copies::ready(&app.db, artifact.id).await?;
    for holder in std::iter::once(artifact.host).chain(copies) {
        if holder != host && layers::is_online(&app.db, holder).await? {
            sources.push(Source::Host(holder));
        }
    }
    Ok(sources)
}

/// Passes the parts of an artifact on to a host.
async fn through(
    app: &App,
    host: Uuid,
    parts: impl Future<Output = Result<Parts, transfer::Broken>>,
) -> Result<u64, Failed> {
    let agent = transfer::client(app, host).await.map_err(Failed::Target)?;
    transfer::to_host(&agent, parts.await.map_err(Failed::Source)?).await
}

impl From<&stored::Stored> for Place {
    fn from(row: &stored::Stored) -> Self {
        Self { team: row.team_id, template: row.template.clone(), artifact: row.artifact_id }
    }
}

impl From<&stored::Stored> for Kind {
    fn from(row: &stored::Stored) -> Self {
        Self::of(&row.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_template_is_not_available_is_told() {
        let fault = unavailable("web", false);
        assert_eq!(fault.code, ErrorCode::TemplateUnavailable);
        assert!(fault.message.contains("\"web\"") && fault.message.contains("there is no store"), "{fault}");
        assert!(unavailable("web", true).message.contains("the store does not have it"));
    }
}
