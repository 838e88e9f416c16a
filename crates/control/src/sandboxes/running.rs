// SPDX-License-Identifier: Apache-2.0
//! Running sandboxes, for requests that use them: such a request is an activity of its sandbox, and resumes a paused
//! one that wants that.

use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, ResumeSandbox, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::PingRequest;

use super::{
    activity::Active,
    lookup::{address, find},
    resume::resume,
};
use crate::{
    agents::{AgentClient, ResponseMemory, deadline, within},
    db::sandboxes::Row,
    error::Fault,
    state::App,
};

/// Client of a running sandbox's agent, for one call with a deadline and a large response.
pub(super) async fn with_memory(
    app: &App,
    team: Uuid,
    id: SandboxId,
    memory: ResponseMemory,
) -> Result<(AgentClient, Option<Active>), Fault> {
    let (host, address, active) = place_of(app, team, id).await?;
    Ok((app.agents.with_memory(host, &address, memory), active))
}

/// Client of a running sandbox's agent, for one stream.
pub(super) async fn dedicated(
    app: &App,
    team: Uuid,
    id: SandboxId,
) -> Result<(AgentClient, Option<Active>), Fault> {
    let (host, address, active) = place_of(app, team, id).await?;
    Ok((app.agents.dedicated(host, &address), active))
}

/// Host and address of a running sandbox's agent, for an activity of the sandbox. Resumes it if it is to be resumed by
/// that.
async fn place_of(app: &App, team: Uuid, id: SandboxId) -> Result<(HostId, String, Option<Active>), Fault> {
    let mut row = find(app, team, id).await?;
    let stands =
        matches!(row.status(), SandboxStatus::Pausing | SandboxStatus::Paused | SandboxStatus::Resuming);
    if row.auto_resume && stands {
        row = resume(app, team, id, &ResumeSandbox::default()).await?;
    }
    let none = || Fault::new(ErrorCode::HostUnavailable, format!("sandbox {id} has no host"));
    match row.status() {
        SandboxStatus::Running | SandboxStatus::Missing => {}
        status => return Err(Fault::new(ErrorCode::InvalidState, not_running(&row, status))),
    }
    let host = row.host_id.ok_or_else(none)?;
    let address = address(app, host).await?;
    if row.status() == SandboxStatus::Missing {
        let answers = row.error_message.is_none() && answers(app, host.into(), &address).await;
        if !answers {
            let why = row.error_message.unwrap_or_else(|| "its host does not answer".to_owned());
            let message = format!("sandbox {id} cannot be reached: {why}; try again in a moment");
            return Err(Fault::new(ErrorCode::HostUnavailable, message));
        }
    }
    Ok((host.into(), address, Active::begin(app, &row)))
}

/// Returns whether a host that was silent answers again: its sandboxes are `missing` until its next reconciliation.
async fn answers(app: &App, host: HostId, address: &str) -> bool {
    let client = app.agents.at(host, address);
    client.ping_with_options(PingRequest::default(), within(deadline::ANSWER)).await.is_ok()
}

/// Error message for a sandbox that does not run, with a remedy.
fn not_running(row: &Row, status: SandboxStatus) -> String {
    let id = row.public_id();
    match status {
        SandboxStatus::Pending | SandboxStatus::Starting => {
            format!("sandbox {id} is still starting: wait until its status is running")
        }
        SandboxStatus::Pausing | SandboxStatus::Paused => format!("sandbox {id} is paused: resume it"),
        SandboxStatus::Resuming => {
            format!("sandbox {id} is being resumed: wait until its status is running")
        }
        SandboxStatus::Stopping | SandboxStatus::Stopped => {
            format!("sandbox {id} was deleted: create another one")
        }
        SandboxStatus::Error => match row.public().error {
            Some(error) => format!("sandbox {id} failed ({}: {})", error.code, error.message),
            None => format!("sandbox {id} failed; delete it"),
        },
        SandboxStatus::Running | SandboxStatus::Missing => {
            format!("sandbox {id} has the status {}, it does not run", status.as_str())
        }
    }
}
