// SPDX-License-Identifier: Apache-2.0
//! Deletion of sandboxes. The intent is recorded first; from then on the reconciler completes it in any case.

use uuid::Uuid;
use wrenn_api::{SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::DestroyRequest;

use super::{
    lookup::{agent, known},
    metrics,
};
use crate::{
    agents::{deadline, within},
    by::By,
    db::sandboxes::{self, Change, Known},
    error::Fault,
    fault,
    state::App,
};

/// Number of attempts of a delete after concurrent changes of the sandbox.
const TRIES: usize = 16;

/// Deletes a sandbox. Idempotent. If its host does not respond, the sandbox stays `stopping` and is removed
/// when the host is back.
pub(crate) async fn destroy(app: &App, team: Uuid, id: SandboxId, by: By) -> Result<(), Fault> {
    let lease = app.limits.lease;
    for _ in 0..TRIES {
        let row = known(app, team, id).await?;
        let row = match row.status() {
            SandboxStatus::Stopped => return Ok(()),
            // Another worker removes it already, or starts now.
            SandboxStatus::Stopping if !sandboxes::take_over(&app.db, &row, lease).await? => return Ok(()),
            SandboxStatus::Stopping => row,
            _ => {
                let change = Change::to(SandboxStatus::Stopping).by(by);
                match sandboxes::change(&app.db, &row, change, lease).await? {
                    Some(row) => row.known(),
                    None => continue,
                }
            }
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
    let change = Change { if_idle: true, ..Change::to(SandboxStatus::Stopping).by(By::IDLE) };
    let Some(row) = sandboxes::change(&app.db, row, change, app.limits.lease).await? else {
        return Ok(());
    };
    app.outbox.notify_one();
    finish(app, &row.known()).await
}

/// Calls the agent to remove a `stopping` sandbox, and records that it is stopped, and what it used.
pub(crate) async fn finish(app: &App, row: &Known) -> Result<(), Fault> {
    if let Some(host) = row.host_id {
        let used = metrics::before_removal(app, row).await;
        let request = DestroyRequest { sandbox_id: row.public_id().to_string(), ..Default::default() };
        let removing = async {
            let client = agent(app, host).await?;
            let removed = client.destroy_with_options(request, within(deadline::DESTROY)).await;
            removed.map(drop).map_err(Fault::from)
        };
        let (removed, ()) = tokio::join!(removing, metrics::keep_removed(app, row, used));
        removed?;
    }
    fault::point("destroy.gone");
    sandboxes::change(&app.db, row, Change::to(SandboxStatus::Stopped), app.limits.lease).await?;
    fault::point("destroy.stopped");
    app.outbox.notify_one();
    Ok(())
}
