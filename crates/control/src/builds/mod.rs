// SPDX-License-Identifier: Apache-2.0
//! Builds of templates from recipes.
//!
//! A build is asked for in `submit`, which stores all that it depends on. A `worker` of any server claims it and makes a `plan`
//! of its recipe, in which each step has a key: a hash of all that its result depends on. What is found by its key is not built
//! again (`cache`). The other steps are done by a `builder` in an ordinary sandbox of the team, after each of which a snapshot
//! is kept. A worker that dies is followed by another one, which goes on from the last of these. What is not known before an
//! image of a registry is imported, which the build starts from, is found out by the first worker (`import`).

mod base;
mod builder;
mod cache;
mod files;
mod finish;
mod followed_log;
mod guest;
mod import;
mod inputs;
mod log;
mod mask;
mod output;
mod pack;
mod plan;
mod report;
mod run;
mod secrets;
mod start;
mod steps;
mod stop;
mod submit;
mod upkeep;
mod worker;

use std::path::{Path, PathBuf};

use wrenn_api::{Build, BuildId, BuildLogEntry, CreateBuild, ErrorCode};
use wrenn_context::Context as Files;
use wrenn_recipe::{Copied, Recipe};

use self::{
    base::Base,
    plan::{Plan, Problem, base_key, plan, sketch},
};
pub(crate) use self::{
    followed_log::{FollowedLog, News},
    upkeep::run as upkeep,
    worker::run as worker,
};
use crate::{
    caller::Caller,
    db::{
        build_logs,
        builds::{self, Row},
    },
    error::Fault,
    state::App,
    templates::Sizes,
};

/// Builds of teams.
#[derive(Clone)]
pub struct Builds {
    app: App,
}

impl Builds {
    /// Maximum number of builds of a list.
    pub const LISTED_MAX: u32 = 100;

    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Asks for a build of a template. `archive` is a file with what its recipe copies, which was uploaded to
    /// [`Self::upload_path`]; it is not needed any more afterwards. What can be told to be wrong with the recipe is told now,
    /// all of it at once.
    pub async fn submit(
        &self,
        caller: &Caller,
        new: CreateBuild,
        archive: Option<&Path>,
    ) -> Result<Build, Fault> {
        submit::submit(&self.app, caller.team().uuid(), new, archive).await
    }

    /// Returns a build of the team.
    pub async fn get(&self, caller: &Caller, id: BuildId) -> Result<Build, Fault> {
        let found = builds::find(&self.app.db, caller.team().uuid(), id.uuid()).await?;
        found.as_ref().map(Row::public).ok_or_else(|| none(id))
    }

    /// Lists the team's newest builds, of all templates or of one: at most [`Self::LISTED_MAX`].
    pub async fn list(
        &self,
        caller: &Caller,
        template: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Build>, Fault> {
        let limit = limit.clamp(1, Self::LISTED_MAX);
        let rows = builds::of_team(&self.app.db, caller.team().uuid(), template, limit.into()).await?;
        Ok(rows.iter().map(Row::public).collect())
    }

    /// Cancels a build. One that a worker has is cancelled within seconds.
    pub async fn cancel(&self, caller: &Caller, id: BuildId) -> Result<(), Fault> {
        if builds::cancel(&self.app.db, caller.team().uuid(), id.uuid()).await? {
            return Ok(());
        }
        let status = self.get(caller, id).await?.status;
        Err(Fault::new(ErrorCode::Conflict, format!("build {id} has ended: it is {status}")))
    }

    /// Returns entries of the log of a build after the entry `after` (0: from the beginning), of all steps or of one, the oldest
    /// first: at most 500, and about a MiB. There may be more after them.
    pub async fn log(
        &self,
        caller: &Caller,
        id: BuildId,
        after: i64,
        step: Option<u32>,
    ) -> Result<Vec<BuildLogEntry>, Fault> {
        let found = builds::find(&self.app.db, caller.team().uuid(), id.uuid()).await?;
        let row = found.ok_or_else(|| none(id))?;
        let step = step.map(|step| step.try_into().unwrap_or(i32::MAX));
        Ok(build_logs::read(&self.app.db, row.id, after, step).await?)
    }

    /// Returns the path of a file that does not exist, to which an archive can be uploaded. What is left there is removed when a
    /// server starts.
    pub fn upload_path(&self) -> PathBuf {
        self.app.contexts.upload_path()
    }
}

/// The fault of a build that is not there.
fn none(id: BuildId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no build {id}"))
}

/// Plans a recipe, which is given back, on a thread of its own: it may copy many files.
async fn planned(
    recipe: Recipe,
    base: &Base,
    sizes: Sizes,
    files: Files,
) -> Result<(Recipe, Result<Plan, Vec<Problem>>), Fault> {
    let (kind, identity) = base.identity();
    let (key, context, is_known) = (base_key((kind, &identity), sizes), base.context(), base.is_known());
    let planning = move || {
        let select = |copied: &Copied| {
            let selected = files.select(copied).map_err(|error| error.to_string())?;
            Ok(selected.digests())
        };
        let made = if is_known { plan(&recipe, key, context, select) } else { sketch(&recipe, select) };
        (recipe, made)
    };
    tokio::task::spawn_blocking(planning).await.map_err(|error| {
        tracing::error!(%error, "a recipe cannot be planned");
        Fault::internal()
    })
}
