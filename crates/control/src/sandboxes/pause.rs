// SPDX-License-Identifier: Apache-2.0
//! Pauses of sandboxes: marked first, then done by the agent, in a task that does not depend on the client's
//! connection. A pause that fails leaves the sandbox running.

use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::PauseRequest;

use super::{lookup::agent, metrics, settle, step};
use crate::{
    agents::within,
    by::By,
    db::sandboxes::{self, Change, Known, Row},
    error::Fault,
    fault,
    lease::Lease,
    quotas,
    state::App,
};

/// Pauses a sandbox and waits until it is paused. Does nothing if it is.
pub(super) async fn pause(app: &App, team: Uuid, id: SandboxId, by: By) -> Result<Row, Fault> {
    loop {
        let row = settle::settled(app, team, id, &[SandboxStatus::Pausing]).await?;
        match row.status() {
            SandboxStatus::Paused => return Ok(row),
            SandboxStatus::Running => {}
            status => {
                let status = status.as_str();
                let message = format!("sandbox {id} is {status}: only a running sandbox can be paused");
                return Err(Fault::new(ErrorCode::InvalidState, message));
            }
        }
        let change = Change::to(SandboxStatus::Pausing).by(by);
        let mut tx = app.db.begin().await?;
        quotas::lock(&mut tx, team, &app.limits).await?.check_pause(&mut tx).await?;
        let Some(row) = sandboxes::change_in(&mut tx, &row.known(), change, app.limits.lease).await? else {
            continue;
        };
        tx.commit().await?;
        app.outbox.notify_one();
        fault::point("pause.marked");
        // The pause continues if the client disconnects.
        let task = crate::request_trace::spawn({
            let app = app.clone();
            async move { finish(&app, row).await }
        });
        return task.await.map_err(|error| {
            tracing::error!(%id, %error, "the task of a pause failed; the reconciler finishes it");
            Fault::new(ErrorCode::InternalError, "the pause was interrupted; look at the sandbox's status")
        })?;
    }
}

/// Pauses a sandbox if it is still idle, and nobody else changes its status meanwhile.
pub(super) async fn pause_idle(app: &App, row: &Known) -> Result<(), Fault> {
    let change = Change { if_idle: true, ..Change::to(SandboxStatus::Pausing).by(By::IDLE) };
    let Some(row) = sandboxes::change(&app.db, row, change, app.limits.lease).await? else {
        return Ok(());
    };
    app.outbox.notify_one();
    finish(app, row).await.map(drop)
}

/// Calls the agent to pause a `pausing` sandbox, and records what became of it.
async fn finish(app: &App, row: Row) -> Result<Row, Fault> {
    let lease = Lease::of_sandbox(app, row.known());
    let request = PauseRequest { sandbox_id: row.public_id().to_string(), ..Default::default() };
    let paused = async {
        let agent = agent(app, row.host_id.unwrap_or_default()).await?;
        Ok::<_, Fault>(agent.pause_with_options(request, within(app.limits.pause)).await?.into_owned())
    };
    let paused = paused.await;
    fault::point("pause.done");
    let (is_paused, known) = (paused.is_ok(), row.known());
    let keeping = async {
        if is_paused {
            metrics::keep_paused(app, &known).await;
        }
    };
    let change = paused.map(|answer| step::paused(answer.sandbox.as_option()));
    let (ended, ()) = tokio::join!(settle::end(app, &row, change), keeping);
    drop(lease);
    ended
}
