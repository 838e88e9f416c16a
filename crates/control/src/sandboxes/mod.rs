// SPDX-License-Identifier: Apache-2.0
//! Operations on sandboxes, used by the routes.

pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod place;
pub(crate) mod reconcile;

use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, SandboxId, SandboxStatus};

use crate::{
    agents::{AgentClient, Room},
    db::{
        hosts,
        sandboxes::{self, Known, Row},
    },
    error::ApiError,
    state::App,
};

/// Returns a team's sandbox.
pub(crate) async fn find(app: &App, team: Uuid, id: SandboxId) -> Result<Row, ApiError> {
    let row = sandboxes::find(&app.db, team, id.uuid()).await?;
    row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no sandbox {id}")))
}

/// Returns the columns for a change of a team's sandbox.
pub(crate) async fn known(app: &App, team: Uuid, id: SandboxId) -> Result<Known, ApiError> {
    let row = sandboxes::known(&app.db, team, id.uuid()).await?;
    row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no sandbox {id}")))
}

/// Truncates a text of an agent, which may be hostile, to `max` bytes.
fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// Host and address of a running sandbox's agent.
async fn place_of(app: &App, team: Uuid, id: SandboxId) -> Result<(HostId, String), ApiError> {
    let row = find(app, team, id).await?;
    match row.status() {
        SandboxStatus::Running => {}
        SandboxStatus::Missing => {
            let why = row.error_message.unwrap_or_else(|| "its host does not answer".to_owned());
            let message = format!("sandbox {id} cannot be reached: {why}; try again in a moment");
            return Err(ApiError::new(ErrorCode::HostUnavailable, message));
        }
        status => return Err(ApiError::new(ErrorCode::InvalidState, not_running(&row, status))),
    }
    let none = || ApiError::new(ErrorCode::HostUnavailable, format!("sandbox {id} has no host"));
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

async fn address(app: &App, host: Uuid) -> Result<String, ApiError> {
    let gone = || ApiError::new(ErrorCode::HostUnavailable, "the sandbox's host is no longer registered");
    hosts::address(&app.db, host).await?.ok_or_else(gone)
}

/// Client of a host's agent.
pub(crate) async fn agent(app: &App, host: Uuid) -> Result<AgentClient, ApiError> {
    Ok(app.agents.at(host.into(), &address(app, host).await?))
}

/// Client of a running sandbox's agent, for one call with a deadline and a large response.
pub(crate) async fn running_with_room(
    app: &App,
    team: Uuid,
    id: SandboxId,
    room: Room,
) -> Result<AgentClient, ApiError> {
    let (host, address) = place_of(app, team, id).await?;
    Ok(app.agents.with_room(host, &address, room))
}

/// Client of a running sandbox's agent, for one stream.
pub(crate) async fn running_apart(app: &App, team: Uuid, id: SandboxId) -> Result<AgentClient, ApiError> {
    let (host, address) = place_of(app, team, id).await?;
    Ok(app.agents.apart(host, &address))
}
