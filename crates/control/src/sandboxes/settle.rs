// SPDX-License-Identifier: Apache-2.0
//! End of operations that failed or are still in work: what became of the sandbox.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::GetRequest;

use super::{
    lookup::{agent, find},
    step::change_after_failure,
};
use crate::{
    agents::{deadline, within},
    db::sandboxes::{self, Change, Row},
    error::Fault,
    state::App,
    telemetry,
};

/// Interval between looks at a sandbox that another request works on.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until the sandbox has none of these statuses, at most as long as an operation may take.
pub(super) async fn settled(
    app: &App,
    team: Uuid,
    id: SandboxId,
    transitional: &[SandboxStatus],
) -> Result<Row, Fault> {
    let begin = Instant::now();
    loop {
        let row = find(app, team, id).await?;
        if !transitional.contains(&row.status()) {
            return Ok(row);
        }
        if begin.elapsed() > app.limits.pause {
            let message = format!("sandbox {id} is still {}: try again in a moment", row.status().as_str());
            return Err(Fault::new(ErrorCode::Timeout, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Records the end of an operation: this change of the sandbox, or what became of it after this error.
pub(super) async fn end(app: &App, row: &Row, ended: Result<Change, Fault>) -> Result<Row, Fault> {
    let row = match ended {
        Ok(change) => match sandboxes::change(&app.db, &row.known(), change, app.limits.lease).await? {
            Some(row) => Ok(row),
            // The reconciler was faster.
            None => find(app, row.team_id, row.public_id()).await,
        },
        Err(error) => settle(app, row, error).await,
    };
    app.outbox.notify_one();
    row
}

/// Records what became of a sandbox whose operation failed with this error, as its agent says; returns the error.
/// If the agent does not answer, the reconciler does it later.
async fn settle(app: &App, row: &Row, error: Fault) -> Result<Row, Fault> {
    let request = GetRequest { sandbox_id: row.public_id().to_string(), ..Default::default() };
    let asked = async {
        let agent = agent(app, row.host_id.unwrap_or_default()).await?;
        Ok::<_, Fault>(agent.get_with_options(request, within(deadline::STATE)).await?.into_owned())
    };
    let found = match asked.await {
        Ok(response) => response.sandbox.into_option(),
        Err(fault) if fault.code == ErrorCode::NotFound => None,
        Err(fault) => {
            tracing::warn!(sandbox_id = %row.public_id(), %fault, "it is not known yet what became of a sandbox");
            return Err(error);
        }
    };
    if let Some(change) = change_after_failure(&row.known(), found.as_ref(), &error) {
        let of_memory = change.is_of_memory();
        let changed = sandboxes::change(&app.db, &row.known(), change, app.limits.lease).await?;
        if changed.is_some() && of_memory {
            telemetry::out_of_memory(telemetry::Killed::Machine);
        }
    }
    Err(error)
}
