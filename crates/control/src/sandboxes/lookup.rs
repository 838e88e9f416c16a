// SPDX-License-Identifier: Apache-2.0
//! Sandboxes and their agents, as operations and the reconciler find them.

use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId};

use crate::{
    agents::AgentClient,
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

/// Address of a host.
pub(super) async fn address(app: &App, host: Uuid) -> Result<String, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the sandbox's host is no longer registered");
    hosts::address(&app.db, host).await?.ok_or_else(gone)
}

/// Client of a host's agent.
pub(super) async fn agent(app: &App, host: Uuid) -> Result<AgentClient, Fault> {
    Ok(app.agents.at(host.into(), &address(app, host).await?))
}
