// SPDX-License-Identifier: Apache-2.0
//! A request for a build: checked as far as possible without a sandbox, and stored with all that it depends on.

use std::path::Path;

use serde_json::Value;
use uuid::Uuid;
use wrenn_api::{Build, BuildId, CreateBuild, ErrorCode};
use wrenn_context::Context as Files;
use wrenn_recipe::Recipe;

use super::{
    base::Base,
    files,
    plan::{Plan, Problem},
    planned,
    report::Report,
    secrets,
};
use crate::{
    announcements::{BUILDS, announce},
    claims::{check_name, claim_for_build},
    db::builds::{self, New},
    error::Fault,
    images,
    names::template_reference,
    quotas,
    state::App,
    templates::Sizes,
};

/// Maximum size of a recipe, in bytes.
const RECIPE_MAX: usize = 256 << 10;
/// Maximum number of a step.
const STEP_MAX: u32 = 1000;

/// Takes a request for a build.
pub(super) async fn submit(
    app: &App,
    team: Uuid,
    new: CreateBuild,
    archive: Option<&Path>,
) -> Result<Build, Fault> {
    let (name, tag) = template_reference(&new.name)?;
    check_name(app, team, name).await?;
    if let Some(first) = new.no_cache_from.filter(|first| !(1..=STEP_MAX).contains(first)) {
        return Err(Fault::invalid(format!("no_cache_from is {first}: it must be 1 to {STEP_MAX}")));
    }
    new.registry.as_ref().map_or(Ok(()), images::check_account)?;
    let recipe = parsed(&new.recipe)?;
    secrets::check(&recipe, &new.secrets)?;
    let (base, sizes) = Base::resolve(app, team, &recipe, &new).await?;
    if new.registry.is_some() && base.is_known() {
        let message = "registry: the recipe starts from no image of a registry: leave the account out";
        return Err(Fault::invalid(message));
    }
    // So that the files are not removed before the build that needs them is recorded.
    let _uploads = app.uploads.read().await;
    let files = match archive {
        Some(archive) => files::add(app, archive).await?,
        None => Files::empty(),
    };
    let context = archive.is_some().then(|| files.digest.clone());
    let (_, plan) = planned(recipe, &base, sizes, files).await?;
    let plan = plan.map_err(|problems| refused(&problems))?;
    let build = insert(app, team, (name, tag), &new, (&base, sizes), context.as_deref(), &plan).await?;
    // Without Redis this takes its time, and nobody needs it.
    let (app, id) = (app.clone(), build.id);
    tokio::spawn(async move {
        if let Err(error) = announce(&app.events, BUILDS, id.to_string()).await {
            tracing::debug!(%error, "a build is not announced; a worker finds it by itself");
        }
    });
    Ok(build)
}

/// Parses a recipe. The fault tells all of its errors.
fn parsed(recipe: &str) -> Result<Recipe, Fault> {
    if recipe.len() > RECIPE_MAX {
        let message = format!(
            "recipe: it has {} bytes: at most {RECIPE_MAX}; put files into the archive",
            recipe.len()
        );
        return Err(Fault::invalid(message));
    }
    wrenn_recipe::parse(recipe.as_bytes()).map_err(|errors| Fault::invalid(format!("recipe: {errors}")))
}

/// The fault of a recipe that cannot be built. If all that stands against it is that this version cannot do it, its code says so.
fn refused(problems: &[Problem]) -> Fault {
    let is_unsupported = problems.iter().all(|problem| problem.code == ErrorCode::Unsupported);
    let code = if is_unsupported { ErrorCode::Unsupported } else { ErrorCode::InvalidRequest };
    let all: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    Fault::new(code, format!("recipe: {}", all.join("\n")))
}

async fn insert(
    app: &App,
    team: Uuid,
    (name, tag): (&str, &str),
    new: &CreateBuild,
    (base, sizes): (&Base, Sizes),
    context: Option<&str>,
    plan: &Plan,
) -> Result<Build, Fault> {
    // What is done on an image has no keys before the image is there.
    let steps = if base.is_known() { Report::new(plan) } else { Report::without_keys(plan) };
    let row = New {
        id: BuildId::new().uuid(),
        team_id: team,
        name,
        tag,
        recipe: &new.recipe,
        base: json(base)?,
        context,
        vcpus: sizes.vcpus as i32,
        memory_mb: sizes.memory_mb as i32,
        disk_size_mb: sizes.disk_size_mb as i32,
        no_cache_from: new.no_cache_from.map(|first| first as i32),
        steps: steps.to_json(),
        registry: new.registry.as_ref().and_then(|account| serde_json::to_value(account).ok()),
        secrets: if new.secrets.is_empty() { None } else { serde_json::to_value(&new.secrets).ok() },
    };
    let mut tx = app.db.begin().await?;
    // The team's other requests wait from here on, so that they cannot exceed the limit together.
    claim_for_build(&mut tx, team, name).await?;
    quotas::lock(&mut tx, team, &app.limits).await?.check_build(&mut tx, name).await?;
    let row = builds::insert(&mut tx, row).await?;
    tx.commit().await?;
    Ok(row.public())
}

fn json(base: &Base) -> Result<Value, Fault> {
    serde_json::to_value(base).map_err(|error| {
        tracing::error!(%error, "the base of a build cannot be written down");
        Fault::internal()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_of_a_recipe_are_told_with_their_places() {
        let fault = parsed("RUN\nADD a b\nWORKDIR").expect_err("refused");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        for line in ["line 1, column", "line 2, column", "line 3, column"] {
            assert!(fault.message.contains(line), "{}", fault.message);
        }
        assert!(parsed("RUN a").is_ok());
        let long = format!("RUN a\n{}", "#\n".repeat(RECIPE_MAX / 2));
        assert!(parsed(&long).is_err_and(|fault| fault.message.contains("at most 262144")));
    }

    #[test]
    fn what_is_only_not_supported_has_its_code() {
        let problem = |code| Problem { code, message: "line 1, column 1, RUN: why".to_owned() };
        let (unsupported, invalid) = (ErrorCode::Unsupported, ErrorCode::InvalidRequest);
        let code =
            |codes: &[ErrorCode]| refused(&codes.iter().map(|code| problem(*code)).collect::<Vec<_>>()).code;
        assert_eq!(code(&[unsupported, unsupported]), unsupported);
        assert_eq!(code(&[unsupported, invalid]), invalid);
    }
}
