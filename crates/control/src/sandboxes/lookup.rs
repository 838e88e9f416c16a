// SPDX-License-Identifier: Apache-2.0
//! Sandboxes and their agents, as operations and the reconciler find them.

use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId, SandboxRef};

use crate::{
    agents::AgentClient,
    db::{
        hosts,
        sandboxes::{self, Candidate, Known, Row},
    },
    error::Fault,
    state::App,
};

/// Maximum number of sandboxes that the error of an ambiguous reference lists.
const LISTED: usize = 8;

/// Returns the id of the sandbox that a reference means: that with the name, else the only one whose id begins so.
pub(super) async fn resolve(app: &App, team: Uuid, reference: &SandboxRef) -> Result<SandboxId, Fault> {
    let text = match reference {
        SandboxRef::Id(id) => return Ok(*id),
        SandboxRef::Lookup(text) => text,
    };
    let ids = SandboxId::range(text).map(|(first, last)| (first.uuid(), last.uuid()));
    let found = sandboxes::candidates(&app.db, team, text, ids, LISTED as i64 + 1).await?;
    match found.as_slice() {
        [] => Err(Fault::new(ErrorCode::NotFound, format!("there is no sandbox {text}"))),
        [one] => Ok(one.id.into()),
        [first, ..] if first.named => Ok(first.id.into()),
        several => Err(ambiguous(text, several)),
    }
}

fn ambiguous(text: &str, candidates: &[Candidate]) -> Fault {
    let shown = candidates.iter().take(LISTED).map(|one| {
        let name = one.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        format!("{}{name} ({})", SandboxId::from(one.id), one.status)
    });
    let shown: Vec<_> = shown.collect();
    let more = if candidates.len() > LISTED { ", and others" } else { "" };
    let message =
        format!("several sandboxes begin with {text}: {}{more}; write more of the id", shown.join(", "));
    Fault::new(ErrorCode::AmbiguousId, message)
}

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
