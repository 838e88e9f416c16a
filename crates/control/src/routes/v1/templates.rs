// SPDX-License-Identifier: Apache-2.0
//! Templates: list, versions and tags, delete.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::StatusCode;
use wrenn_api::{MoveTag, PrunedCache, Template, TemplateVersion};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfDeleteTemplate, OfLook, OfMoveTag, OfVersions},
    extract::{Body, Parameters},
};
use crate::{caller::Caller, error::Fault, services::Services, templates::Templates};

/// Maximum number of days for which results of steps were not used.
const DAYS_MAX: u32 = 3650;

/// List what sandboxes can be created from.
///
/// The platform's templates by name and its snapshots, newest first; then those that the team has built and its snapshots, in the same
/// order.
#[utoipa::path(
    get, path = "/v1/templates", operation_id = "listTemplates", tag = "templates",
    responses((status = 200, description = "All templates that the team can use.", body = Vec<Template>), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Template>>, Fault> {
    Ok(Json(services.templates().list(&caller).await?))
}

/// List the versions of a template, newest first.
///
/// Only templates that were built from a recipe have versions: those of the team, and those of the platform.
#[utoipa::path(
    get, path = "/v1/templates/{name}/versions", operation_id = "listVersions", tag = "templates",
    params(
        ("name" = String, Path, description = "Name of the template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "web"),
        ("limit" = Option<u32>, Query, description = "Maximum number of versions in the response. Default: 100.", minimum = 1, maximum = 100),
        ("before" = Option<u32>, Query, description = "List only versions that are older than this one, as the last one of the previous page.", minimum = 1, maximum = 2_147_483_647),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The versions.", body = Vec<TemplateVersion>), OfVersions)
)]
pub(super) async fn versions(
    State(services): State<Services>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    parameters: Parameters,
) -> Result<Json<Vec<TemplateVersion>>, Fault> {
    let Path(name) = name.map_err(|_| not_text())?;
    let [limit, before] = parameters.known(["limit", "before"])?;
    let max = Templates::VERSIONS_MAX;
    let limit = limit.map_or(Ok(max), |text| number("limit", &text, max))?;
    let before = before.map(|text| number("before", &text, i32::MAX as u32)).transpose()?;
    Ok(Json(services.templates().versions(&caller, &name, before, limit).await?))
}

/// Make a tag lead to a version.
///
/// Sandboxes that are created by `NAME:TAG` start from that version from now on; `NAME` alone means the tag `latest`. The tag
/// is made if there is none. Going back to an older version is the same: `latest` is made to lead to it.
#[utoipa::path(
    put, path = "/v1/templates/{name}/tags/{tag}", operation_id = "moveTag", tag = "templates",
    params(
        ("name" = String, Path, description = "Name of the template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "web"),
        ("tag" = String, Path, description = "The tag.", pattern = "^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63}$", example = "latest"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = MoveTag,
    responses((status = 200, description = "The version that the tag leads to.", body = TemplateVersion), OfMoveTag)
)]
pub(super) async fn move_tag(
    State(services): State<Services>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
    body: Body<MoveTag>,
) -> Result<Json<TemplateVersion>, Fault> {
    let Path((name, tag)) = place.map_err(|_| not_text())?;
    Ok(Json(services.templates().move_tag(&caller, &name, &tag, body.value.version).await?))
}

/// Delete a template with all its versions and tags.
///
/// Sandboxes that were created from it do not need it, and its name is free at once. Templates of the platform cannot be
/// deleted, and snapshots are deleted as snapshots.
#[utoipa::path(
    delete, path = "/v1/templates/{name}", operation_id = "deleteTemplate", tag = "templates",
    params(
        ("name" = String, Path, description = "Name of the template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "web"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The template is deleted."), OfDeleteTemplate)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    let Path(name) = name.map_err(|_| not_text())?;
    services.templates().delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove results of steps from the cache of the team's builds.
///
/// The next build does these steps again. No template changes: its versions need no results of steps. What builds that run now
/// may have found stays. The disks of what was removed are free within the hour.
#[utoipa::path(
    delete, path = "/v1/templates/cache", operation_id = "pruneCache", tag = "templates",
    params(
        ("older_than_days" = Option<u32>, Query, description = "Remove only results that no build has used for so many days. Default: 0, all.", minimum = 0, maximum = 3650),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "What was removed.", body = PrunedCache), OfLook)
)]
pub(super) async fn prune(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Json<PrunedCache>, Fault> {
    let [days] = parameters.known(["older_than_days"])?;
    let days = days.map_or(Ok(0), |text| days_of(&text))?;
    let age = Duration::from_secs(u64::from(days) * 24 * 3600);
    Ok(Json(services.templates().prune(&caller, age).await?))
}

fn days_of(text: &str) -> Result<u32, Fault> {
    let days = text.parse().ok().filter(|days| *days <= DAYS_MAX);
    days.ok_or_else(|| {
        Fault::invalid(format!("older_than_days is {}: it must be 0 to {DAYS_MAX}", Foreign(text)))
    })
}

fn not_text() -> Fault {
    Fault::invalid("the template in the path is not text")
}

/// Parses a parameter of the query that is a number from 1 to `max`.
pub(super) fn number(name: &str, text: &str, max: u32) -> Result<u32, Fault> {
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| Fault::invalid(format!("{name} is {}: it must be 1 to {max}", Foreign(text))))
}
