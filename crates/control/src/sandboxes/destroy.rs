// SPDX-License-Identifier: Apache-2.0
//! Deletion of sandboxes. The intent is recorded first; from then on the reconciler completes it in any case.

use uuid::Uuid;
use wrenn_api::{SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::DestroyRequest;

use super::lookup::{agent, known};
use crate::{
    agents::{deadline, within},
    db::sandboxes::{self, Change, Known},
    error::Fault,
    fault,
    state::App,
};

/// Number of attempts of a delete after concurrent changes of the sandbox.
const TRIES: usize = 16;

/// Deletes a sandbox. Idempotent. If its host does not respond, the sandbox stays `stopping` and is removed
/// when the host is back.
pub(crate) async fn destroy(app: &App, team: Uuid, id: SandboxId) -> Result<(), Fault> {
    let lease = app.limits.lease;
    for _ in 0..TRIES {
        let row = known(app, team, id).await?;
        let row = match row.status() {
            SandboxStatus::Stopped => return Ok(()),
            // Another worker removes it already, or starts now.
            SandboxStatus::Stopping if !sandboxes::take_over(&app.db, &row, lease).await? => return Ok(()),
            SandboxStatus::Stopping => row,
            _ => match sandboxes::change(&app.db, &row, Change::to(SandboxStatus::Stopping), lease).await? {
                Some(row) => row.known(),
                None => continue,
            },
        };
        app.outbox.notify_one();
        fault::point("destroy.marked");
        // The delete continues if the client disconnects.
        let task = crate::request_trace::spawn({
            let app = app.clone();
            async move { finish(&app, &row).await }
        });
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%id, %error, "a delete waits for its host"),
            Err(error) => {
                tracing::error!(%id, %error, "the task of a delete failed; the reconciler finishes it");
            }
        }
        return Ok(());
    }
    let message = "the sandbox is being changed by others over and over; try again";
    Err(Fault::new(wrenn_api::ErrorCode::Conflict, message))
}

/// Deletes a sandbox if it is still idle, and nobody else changes its status meanwhile.
pub(super) async fn destroy_idle(app: &App, row: &Known) -> Result<(), Fault> {
    let change = Change { if_idle: true, ..Change::to(SandboxStatus::Stopping) };
    let Some(row) = sandboxes::change(&app.db, row, change, app.limits.lease).await? else {
        return Ok(());
    };
    app.outbox.notify_one();
    finish(app, &row.known()).await
}

/// Calls the agent to remove a `stopping` sandbox, and records that it is stopped.
pub(crate) async fn finish(app: &App, row: &Known) -> Result<(), Fault> {
    if let Some(host) = row.host_id {
        let request = DestroyRequest { sandbox_id: row.public_id().to_string(), ..Default::default() };
        agent(app, host).await?.destroy_with_options(request, within(deadline::DESTROY)).await?;
    }
    fault::point("destroy.gone");
    sandboxes::change(&app.db, row, Change::to(SandboxStatus::Stopped), app.limits.lease).await?;
    fault::point("destroy.stopped");
    app.outbox.notify_one();
    Ok(())
}
