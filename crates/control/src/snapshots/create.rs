// SPDX-License-Identifier: Apache-2.0
//! Creation of snapshots: recorded first, then made by the agent. A named one is made in a task that does not depend on the
//! client's connection.

use std::ops::Not;

use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;
use wrenn_api::{CreateSnapshot, ErrorCode, SandboxId, SandboxStatus, Snapshot};
use wrenn_rpc::host::v1::SnapshotRequest;

use super::{agent, remove};
use crate::{
    agents::within,
    by::By,
    caller::Caller,
    claims::{claim_for_snapshot, is_of_platform},
    db::{
        idempotency::{self, First, Made},
        sandboxes,
        snapshots::{self, Row, State},
    },
    error::Fault,
    fault,
    idempotency::{FIRST, Idempotency, Key, LOOK, TRIES, contested, mismatch},
    lease::Lease,
    names::{RULE, is_template_name},
    quotas,
    state::App,
};

/// What a snapshot keeps of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Its memory and its disk.
    Memory,
    /// Its disk, from which sandboxes boot.
    DiskAlone,
}

/// Meaning of a request.
#[derive(Debug, Serialize)]
struct Wanted {
    snapshot_of: SandboxId,
    name: Option<String>,
    /// Whether it may replace the team's snapshot of that name.
    #[serde(skip_serializing_if = "Not::not")]
    overwrite: bool,
}

/// Makes a snapshot; with an idempotency key at most once.
pub(super) async fn create(
    app: &App,
    caller: &Caller,
    new: CreateSnapshot,
    overwrite: bool,
    idempotency: Option<Idempotency>,
) -> Result<Snapshot, Fault> {
    let (team, by) = (caller.team().uuid(), By::caller(caller));
    // A name that is made up is that of no other one.
    let overwrite = overwrite && new.name.is_some();
    let wanted = Wanted { snapshot_of: new.sandbox_id, name: new.name, overwrite };
    if wanted.name.as_ref().is_some_and(|name| !is_template_name(name)) {
        return Err(Fault::invalid(format!("name: {RULE}")));
    }
    let key = idempotency.map(|idempotency| idempotency.of(&wanted)).transpose()?;
    for _ in 0..TRIES {
        if let Some(key) = &key
            && let Some(first) = idempotency::first(&app.db, team, &key.text).await?
            && let Some(row) = repeat(app, team, key, &first).await?
        {
            return Ok(row.public());
        }
        let Some((row, sandbox)) = claim(app, team, &wanted, key.as_ref()).await? else {
            // Another request with this key was faster.
            continue;
        };
        fault::point("snapshot.marked");
        // The snapshot is completed if the client disconnects.
        let task = crate::request_trace::spawn({
            let app = app.clone();
            async move { make(&app, team, &row, sandbox, Keeps::Memory, by).await }
        });
        let made = task.await.map_err(|error| {
            tracing::error!(%error, "the task of a snapshot failed; the upkeep removes it");
            Fault::new(ErrorCode::InternalError, "the snapshot was interrupted; make it again")
        })?;
        return made.map(|row| row.public());
    }
    Err(contested())
}

/// Returns the snapshot of the first request with this key. `None` if it could not be made: the key is free again.
async fn repeat(app: &App, team: Uuid, key: &Key, first: &First) -> Result<Option<Row>, Fault> {
    key.check(first)?;
    let id = first.snapshot_id.ok_or_else(mismatch)?;
    let begin = Instant::now();
    loop {
        let row = snapshots::of_id(&app.db, id).await?;
        match row.as_ref().map(Row::state) {
            Some(State::Ready) => return Ok(row),
            Some(State::Creating) => {}
            Some(State::Deleting) | None => {
                let now = idempotency::first(&app.db, team, &key.text).await?;
                if now.is_some_and(|now| now.snapshot_id == Some(id) && now.snapshot_made) {
                    let message = "the first request with this Idempotency-Key made a snapshot that was deleted since: \
                                   use a new key for a new snapshot";
                    return Err(Fault::new(ErrorCode::IdempotencySandboxDeleted, message));
                }
                idempotency::release(&app.db, team, &key.text, id).await?;
                return Ok(None);
            }
        }
        if begin.elapsed() > FIRST {
            let message = "the snapshot of the first request with this Idempotency-Key is still being made: ask again in a \
                           moment";
            return Err(Fault::new(ErrorCode::IdempotencyInProgress, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Records a snapshot that is about to be made, with its key, and returns its sandbox, too; `None` if the key is taken.
async fn claim(
    app: &App,
    team: Uuid,
    wanted: &Wanted,
    key: Option<&Key>,
) -> Result<Option<(Row, SandboxId)>, Fault> {
    let id = Uuid::now_v7();
    let default = || format!("template-{}", &id.simple().to_string()[24..]);
    let name = wanted.name.clone().unwrap_or_else(default);
    if is_of_platform(app, team, &name).await? {
        let message = format!("{name:?} is the name of a template of the platform: choose another one");
        return Err(Fault::new(ErrorCode::NameReserved, message));
    }
    let sandbox = sandboxes::find(&app.db, team, wanted.snapshot_of.uuid()).await?;
    let none = || Fault::new(ErrorCode::NotFound, format!("there is no sandbox {}", wanted.snapshot_of));
    let sandbox = sandbox.ok_or_else(none)?;
    if !matches!(sandbox.status(), SandboxStatus::Running | SandboxStatus::Paused) {
        let (id, status) = (wanted.snapshot_of, sandbox.status().as_str());
        let message =
            format!("sandbox {id} is {status}: a snapshot can be made of a running or a paused one");
        return Err(Fault::new(ErrorCode::InvalidState, message));
    }
    let replaced = wanted.overwrite.then_some(name.as_str());
    let mut tx = app.db.begin().await?;
    claim_for_snapshot(&mut tx, team, &name).await?;
    quotas::lock(&mut tx, team, &app.limits).await?.check_snapshot(&mut tx, replaced).await?;
    if let Some(key) = key
        && !idempotency::claim(&mut tx, team, &key.text, &key.fingerprint, Made::Snapshot(id)).await?
    {
        return Ok(None);
    }
    let (host, lease) = (sandbox.host_id.unwrap_or_default(), app.limits.lease);
    let mut row = snapshots::insert(&mut tx, id, Some(&name), None, &sandbox, host, lease).await?;
    if row.is_none() && replaced.is_some() {
        // It is made beside the other one, which has the name until this one is ready, and stays if this one fails.
        row = snapshots::insert(&mut tx, id, None, replaced, &sandbox, host, lease).await?;
    }
    let taken = || {
        let message = format!(
            "the team has a snapshot named {name:?}: choose another name, delete it, or overwrite it"
        );
        Fault::new(ErrorCode::NameTaken, message)
    };
    let row = row.ok_or_else(taken)?;
    tx.commit().await?;
    Ok(Some((row, sandbox.public_id())))
}

/// Makes a snapshot without a name of the sandbox of a build, or of its disk alone. If nothing refers to it soon, the upkeep of
/// builds removes it.
pub(crate) async fn of_build(app: &App, sandbox: &sandboxes::Row, keeps: Keeps) -> Result<Row, Fault> {
    let (id, host) = (Uuid::now_v7(), sandbox.host_id.unwrap_or_default());
    let mut tx = app.db.begin().await?;
    let inserted = snapshots::insert(&mut tx, id, None, None, sandbox, host, app.limits.lease).await?;
    tx.commit().await?;
    // Without a name, there is none that another one could have.
    let row = inserted.ok_or_else(Fault::internal)?;
    make(app, sandbox.team_id, &row, sandbox.public_id(), keeps, By::SYSTEM).await
}

/// Calls the agent to make a snapshot, and records the result. The one that it replaces is removed by the upkeep.
async fn make(
    app: &App,
    team: Uuid,
    row: &Row,
    sandbox: SandboxId,
    keeps: Keeps,
    by: By,
) -> Result<Row, Fault> {
    let request = SnapshotRequest {
        sandbox_id: sandbox.to_string(),
        snapshot_id: row.id.simple().to_string(),
        without_memory: matches!(keeps, Keeps::DiskAlone),
        ..Default::default()
    };
    let made = async {
        let agent = agent(app, row.host_id).await?;
        let made = agent.snapshot_with_options(request, within(app.limits.pause)).await?.into_owned();
        Ok::<_, Fault>(i64::try_from(made.disk_bytes).ok().filter(|bytes| *bytes > 0))
    };
    let lease = Lease::of_snapshot(app, row.id);
    let made = made.await;
    drop(lease);
    fault::point("snapshot.made");
    let error = match made {
        Ok(disk_bytes) => match snapshots::made(&app.db, team, row.id, disk_bytes, by).await? {
            Some(row) => {
                app.outbox.notify_one();
                return Ok(row);
            }
            None => {
                let message =
                    "the snapshot took longer than its lease, or another one took its name; make it again";
                Fault::new(ErrorCode::Conflict, message)
            }
        },
        Err(error) => error,
    };
    // It may have been made all the same.
    snapshots::doom(&app.db, row.id, app.limits.lease).await?;
    if let Err(left) = remove(app, row).await {
        let (id, name) = (row.id, &row.name);
        tracing::warn!(%id, name, error = %left, "what is left of a snapshot is removed later");
    }
    Err(error)
}
