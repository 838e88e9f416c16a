// SPDX-License-Identifier: Apache-2.0
//! Names of templates and snapshots: a team has one of both under a name, and the platform's names are its own.

use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_api::{ErrorCode, TeamId};

use crate::{
    db::{hosts, snapshots, templates},
    error::Fault,
    state::App,
};

/// Words of the API below `/v1/templates`, in whose place a name stands.
const WORDS: [&str; 2] = ["builds", "cache"];

/// Fails if this team can build no template of this name: one of the platform has it, or it is a word of the API.
pub(crate) async fn check_name(app: &App, team: Uuid, name: &str) -> Result<(), Fault> {
    let message = if WORDS.contains(&name) {
        format!("{name:?} is a word of the API: choose another name for the template")
    } else if is_of_platform(app, team, name).await? {
        format!("{name:?} is the name of a template of the platform: choose another one")
    } else {
        return Ok(());
    };
    Err(Fault::new(ErrorCode::NameReserved, message))
}

/// Returns whether a name is one of the platform, which this team cannot take: hosts have a template of it, or the platform has
/// built one or made a snapshot. The team that had it before keeps it.
pub(crate) async fn is_of_platform(app: &App, team: Uuid, name: &str) -> Result<bool, Fault> {
    if hosts::has_template(&app.db, name).await? {
        return Ok(true);
    }
    let platform = TeamId::PLATFORM.uuid();
    if team == platform || !has_template(app, platform, name).await? {
        return Ok(false);
    }
    Ok(!has_template(app, team, name).await?)
}

/// Returns whether a team has built a template of this name, or made a snapshot.
pub(crate) async fn has_template(app: &App, team: Uuid, name: &str) -> Result<bool, Fault> {
    Ok(templates::is_built(&app.db, team, name).await?
        || snapshots::find(&app.db, team, name).await?.is_some())
}

/// Makes a name that of a template, in the transaction that inserts its build. Fails if a snapshot of the team has it.
pub(crate) async fn claim_for_build(tx: &mut PgConnection, team: Uuid, name: &str) -> Result<(), Fault> {
    templates::lock_names(&mut *tx, team).await?;
    if templates::is_snapshot(tx, team, name).await? {
        let message = format!("the team has a snapshot named {name:?}: choose another name, or delete it");
        return Err(Fault::new(ErrorCode::NameTaken, message));
    }
    Ok(())
}

/// Makes a name that of a snapshot, in the transaction that inserts it. Fails if the team has built a template of this name, or
/// builds one.
pub(crate) async fn claim_for_snapshot(tx: &mut PgConnection, team: Uuid, name: &str) -> Result<(), Fault> {
    templates::lock_names(&mut *tx, team).await?;
    if templates::has_name(tx, team, name).await? {
        let message = format!("the team builds a template named {name:?}: choose another name, or delete it");
        return Err(Fault::new(ErrorCode::NameTaken, message));
    }
    Ok(())
}
