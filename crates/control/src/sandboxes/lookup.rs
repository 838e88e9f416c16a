// SPDX-License-Identifier: Apache-2.0
//! Sandboxes and their agents, as operations and the reconciler find them.

use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, SandboxId, SandboxStatus};

use crate::{
    agents::{AgentClient, ResponseMemory},
    db::{
        hosts,
        sandboxes::{self, Known, Row},
    },
    error::Fault,
    state::App,
};

/// Returns a team's sandbox.
pub(super) async fn find(app: &App, team: Uuid, id: SandboxId) -> Result<Row, Fault> {
    let row = sandboxes::find(&app.db, team, id.uuid()).await?;
    row.ok_or_else(|| Fault::new(ErrorCode::NotFound, format!("there is no sandbox {id}")))
}

/// Returns the columns for a change of a team's sandbox.
pub(super) async fn known(app: &App, team: Uuid, id: SandboxId) -> Result<Known, Fault> {
    let row = sandboxes::known(&app.db, team, id.uuid()).await?;
    row.ok_or_else(|| Fault::new(ErrorCode::NotFound, format!("there is no sandbox {id}")))
}

/// Truncates a text of an agent, which may be hostile, to `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// Host and address of a running sandbox's agent.
async fn place_of(app: &App, team: Uuid, id: SandboxId) -> Result<(HostId, String), Fault> {
    let row = find(app, team, id).await?;
    match row.status() {
        SandboxStatus::Running => {}
        SandboxStatus::Missing => {
            let why = row.error_message.unwrap_or_else(|| "its host does not answer".to_owned());
            let message = format!("sandbox {id} cannot be reached: {why}; try again in a moment");
            return Err(Fault::new(ErrorCode::HostUnavailable, message));
        }
        status => return Err(Fault::new(ErrorCode::InvalidState, not_running(&row, status))),
    }
    let none = || Fault::new(ErrorCode::HostUnavailable, format!("sandbox {id} has no host"));
    let host = row.host_id.ok_or_else(none)?;
    Ok((host.into(), address(app, host).await?))
}

/// Error message for a sandbox that does not run, with a remedy.
fn not_running(row: &Row, status: SandboxStatus) -> String {
    let id = row.public_id();
    match status {
        SandboxStatus::Pending | SandboxStatus::Starting => {
            format!("sandbox {id} is still starting: wait until its status is running")
        }
        SandboxStatus::Stopping | SandboxStatus::Stopped => {
            format!("sandbox {id} was deleted: create another one")
        }
        SandboxStatus::Error => match row.public().error {
            Some(error) => format!("sandbox {id} failed ({}: {}); delete it", error.code, error.message),
            None => format!("sandbox {id} failed; delete it"),
        },
        other => format!("sandbox {id} has the status {other:?}, it does not run"),
    }
}

async fn address(app: &App, host: Uuid) -> Result<String, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the sandbox's host is no longer registered");
    hosts::address(&app.db, host).await?.ok_or_else(gone)
}

/// Client of a host's agent.
pub(super) async fn agent(app: &App, host: Uuid) -> Result<AgentClient, Fault> {
    Ok(app.agents.at(host.into(), &address(app, host).await?))
}

/// Client of a running sandbox's agent, for one call with a deadline and a large response.
pub(super) async fn running_with_memory(
    app: &App,
    team: Uuid,
    id: SandboxId,
    memory: ResponseMemory,
) -> Result<AgentClient, Fault> {
    let (host, address) = place_of(app, team, id).await?;
    Ok(app.agents.with_memory(host, &address, memory))
}

/// Client of a running sandbox's agent, for one stream.
pub(super) async fn running_dedicated(app: &App, team: Uuid, id: SandboxId) -> Result<AgentClient, Fault> {
    let (host, address) = place_of(app, team, id).await?;
    Ok(app.agents.dedicated(host, &address))
}
