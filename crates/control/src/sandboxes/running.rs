// SPDX-License-Identifier: Apache-2.0
//! Running sandboxes, for requests that use them: such a request is an activity of its sandbox, and resumes a paused
//! one that wants that.

use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, ResumeSandbox, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::PingRequest;

use super::{
    activity::{Active, Begun},
    lookup::{address, find},
    resume::resume,
};
use crate::{
    agents::{AgentClient, ResponseMemory, deadline, within},
    by::By,
    db::sandboxes::{self, Row},
    error::Fault,
    state::App,
};

/// Number of looks at a sandbox that is paused and resumed meanwhile.
const LOOKS: usize = 4;

/// Client of a running sandbox's agent, for one call with a deadline and a large response.
pub(super) async fn with_memory(
    app: &App,
    team: Uuid,
    id: SandboxId,
    memory: ResponseMemory,
    by: By,
) -> Result<(AgentClient, Active), Fault> {
    let (host, address, active) = place_of(app, team, id, by).await?;
    Ok((app.agents.with_memory(host, &address, memory), active))
}

/// Client of a running sandbox's agent, for one stream.
pub(super) async fn dedicated(
    app: &App,
    team: Uuid,
    id: SandboxId,
    by: By,
) -> Result<(AgentClient, Active), Fault> {
    let (host, address, active) = place_of(app, team, id, by).await?;
    Ok((app.agents.dedicated(host, &address), active))
}

/// Host and address of a running sandbox's agent, for an activity of the sandbox, which is noted before this returns: the
/// sandbox is not paused for being idle meanwhile.
pub(super) async fn place_of(
    app: &App,
    team: Uuid,
    id: SandboxId,
    by: By,
) -> Result<(HostId, String, Active), Fault> {
    for _ in 0..LOOKS {
        let row = usable(app, team, id, by).await?;
        let none = || Fault::new(ErrorCode::HostUnavailable, format!("sandbox {id} has no host"));
        let host = row.host_id.ok_or_else(none)?;
        let (address, begun) = tokio::try_join!(address(app, host), Active::begin(app, &row))?;
        // Otherwise it began to be paused in between.
        if let Begun::Active(active) = begun {
            if row.status() == SandboxStatus::Missing {
                ask(app, row, host.into(), &address).await?;
            }
            return Ok((host.into(), address, active));
        }
    }
    let message =
        format!("sandbox {id} is paused as soon as it runs: give it a longer timeout, and try again");
    Err(Fault::new(ErrorCode::InvalidState, message))
}

/// Notes that a running sandbox is in use.
pub(super) async fn ping(app: &App, team: Uuid, id: SandboxId) -> Result<(), Fault> {
    for _ in 0..LOOKS {
        if sandboxes::touch(&app.db, team, id.uuid()).await?.is_some() {
            return Ok(());
        }
        let row = find(app, team, id).await?;
        if row.status() != SandboxStatus::Running {
            return Err(Fault::new(ErrorCode::InvalidState, not_running(&row, row.status())));
        }
        // It was resumed in between.
    }
    let message = format!("sandbox {id} is paused and resumed over and over: try again");
    Err(Fault::new(ErrorCode::InvalidState, message))
}

/// Returns a sandbox that runs, or is missing. Resumes it if it is to be resumed by its use.
async fn usable(app: &App, team: Uuid, id: SandboxId, by: By) -> Result<Row, Fault> {
    let mut row = find(app, team, id).await?;
    let stands =
        matches!(row.status(), SandboxStatus::Pausing | SandboxStatus::Paused | SandboxStatus::Resuming);
    if row.auto_resume && stands {
        row = resume(app, team, id, &ResumeSandbox::default(), by).await?;
    }
    match row.status() {
        SandboxStatus::Running | SandboxStatus::Missing => Ok(row),
        status => Err(Fault::new(ErrorCode::InvalidState, not_running(&row, status))),
    }
}

/// Asks the host of a missing sandbox whether it answers again. Fails if it does not, or if it said why the sandbox is
/// missing.
async fn ask(app: &App, row: Row, host: HostId, address: &str) -> Result<(), Fault> {
    if row.error_message.is_none() && answers(app, host, address).await {
        return Ok(());
    }
    let id = row.public_id();
    let why = row.error_message.unwrap_or_else(|| "its host does not answer".to_owned());
    let message = format!("sandbox {id} cannot be reached: {why}; try again in a moment");
    Err(Fault::new(ErrorCode::HostUnavailable, message))
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
        SandboxStatus::Missing => {
            format!("sandbox {id} is missing, because its host does not answer: try again in a moment")
        }
        SandboxStatus::Running => format!("sandbox {id} was just resumed: try again"),
    }
}
