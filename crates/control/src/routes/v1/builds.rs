// SPDX-License-Identifier: Apache-2.0
//! Builds of templates: create, list, get, cancel.

use axum::{
    Json, RequestPartsExt as _,
    extract::{FromRequest as _, FromRequestParts, Path, Request, State},
};
use http::{StatusCode, request::Parts};
use wrenn_api::{Build, BuildId, CreateBuild, IdError};

use super::{
    build_form::{self, BuildForm},
    error_responses::{OfBuild, OfCancelBuild, OfCreateBuild, OfLook},
    extract::{Body, Parameters},
    templates::number,
};
use crate::{
    builds::Builds,
    caller::Caller,
    deeds::{self, AuditResource},
    error::Fault,
    names::{self, is_template_name},
    services::Services,
};

/// Number of builds of a list that names none.
const LISTED: u32 = 20;

/// Build a template from a recipe.
///
/// The response comes once the recipe was checked and the build waits for a worker: `getBuild` and `streamBuildLogs` tell how it
/// goes on. When it succeeds, the template has a new version, and the tag leads to it. A recipe that copies files is sent as a
/// form with the parts `config`, the JSON of a request without files, and `archive`, the files as tar, tar.gz or zip.
///
/// What a recipe names is fixed now: a tag that is moved later changes nothing. A recipe with errors is rejected with all of
/// them.
#[utoipa::path(
    post, path = "/v1/templates/builds", operation_id = "createBuild", tag = "builds",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body(content((CreateBuild = "application/json"), (BuildForm = "multipart/form-data"))),
    responses((status = 201, description = "The build waits for a worker.", body = Build), OfCreateBuild)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Build>), Fault> {
    let build = if build_form::is_one(request.headers()) {
        let form = build_form::read(&services, &caller, request).await?;
        services.builds().submit(&caller, form.config, Some(form.archive.path())).await?
    } else {
        let body = Body::<CreateBuild>::from_request(request, &services).await?;
        services.builds().submit(&caller, body.value, None).await?
    };
    deeds::about(AuditResource::new("build", build.id).named(format!("{}:{}", build.name, build.tag)));
    Ok((StatusCode::CREATED, Json(build)))
}

/// List the team's builds, newest first.
#[utoipa::path(
    get, path = "/v1/templates/builds", operation_id = "listBuilds", tag = "builds",
    params(
        ("template" = Option<String>, Query, description = "List only builds of this template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$"),
        ("limit" = Option<u32>, Query, description = "Maximum number of builds in the response. Default: 20.", minimum = 1, maximum = 100),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The builds.", body = Vec<Build>), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Json<Vec<Build>>, Fault> {
    let [template, limit] = parameters.known(["template", "limit"])?;
    if template.as_ref().is_some_and(|name| !is_template_name(name)) {
        return Err(Fault::invalid(format!("template: {}", names::RULE)));
    }
    let limit = limit.map_or(Ok(LISTED), |text| number("limit", &text, Builds::LISTED_MAX))?;
    Ok(Json(services.builds().list(&caller, template.as_deref(), limit).await?))
}

/// Get a build.
#[utoipa::path(
    get, path = "/v1/templates/builds/{id}", operation_id = "getBuild", tag = "builds",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The build.", body = Build), OfBuild)
)]
pub(super) async fn get(
    State(services): State<Services>,
    caller: Caller,
    InPath(id): InPath,
) -> Result<Json<Build>, Fault> {
    Ok(Json(services.builds().get(&caller, id).await?))
}

/// Cancel a build.
///
/// One that waits is cancelled at once. One that runs is cancelled within seconds: its step is killed, and its sandbox is
/// deleted. One that has ended is not changed: 409.
#[utoipa::path(
    delete, path = "/v1/templates/builds/{id}", operation_id = "cancelBuild", tag = "builds",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The build is cancelled, or will be in a moment."), OfCancelBuild)
)]
pub(super) async fn cancel(
    State(services): State<Services>,
    caller: Caller,
    InPath(id): InPath,
) -> Result<StatusCode, Fault> {
    services.builds().cancel(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The build in the path: the parameter `{id}`.
pub(super) struct InPath(pub(super) BuildId);

impl FromRequestParts<Services> for InPath {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        let Path(text): Path<String> =
            parts.extract().await.map_err(|_| Fault::invalid("the build in the path is not text"))?;
        let wrong = |error: IdError| Fault::invalid(format!("the build in the path: {error}"));
        text.parse().map(Self).map_err(wrong)
    }
}
