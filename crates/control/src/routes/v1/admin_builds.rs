// SPDX-License-Identifier: Apache-2.0
//! Builds of the platform's templates, which all teams can use: those of `builds` and `build_logs`, done for the platform.

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{Build, CreateBuild};

use super::{
    build_form::BuildForm,
    build_logs::{self, BuildLogEvent},
    builds::{self, InPath},
    error_responses::{OfAdminBuild, OfAdminCancelBuild, OfAdminCreateBuild, OfAdminLook},
    extract::Parameters,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// Build a template of the platform from a recipe.
///
/// All teams can use it by its name, unless they have a template or a snapshot of that name. A name that a host's files have
/// cannot be built over. The request and the response are those of `createBuild`.
#[utoipa::path(
    post, path = "/v1/admin/builds", operation_id = "createPlatformBuild", tag = "platform",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body(content((CreateBuild = "application/json"), (BuildForm = "multipart/form-data"))),
    responses((status = 201, description = "The build waits for a worker.", body = Build), OfAdminCreateBuild)
)]
pub(super) async fn create(
    services: State<Services>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Build>), Fault> {
    builds::create(services, caller.for_platform()?, request).await
}

/// List the builds of the platform's templates, newest first.
#[utoipa::path(
    get, path = "/v1/admin/builds", operation_id = "listPlatformBuilds", tag = "platform",
    params(
        ("template" = Option<String>, Query, description = "List only builds of this template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$"),
        ("limit" = Option<u32>, Query, description = "Maximum number of builds in the response. Default: 20.", minimum = 1, maximum = 100),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The builds.", body = Vec<Build>), OfAdminLook)
)]
pub(super) async fn list(
    services: State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Json<Vec<Build>>, Fault> {
    builds::list(services, caller.for_platform()?, parameters).await
}

/// Get a build of a template of the platform.
#[utoipa::path(
    get, path = "/v1/admin/builds/{id}", operation_id = "getPlatformBuild", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The build.", body = Build), OfAdminBuild)
)]
pub(super) async fn get(services: State<Services>, caller: Caller, id: InPath) -> Result<Json<Build>, Fault> {
    builds::get(services, caller.for_platform()?, id).await
}

/// Cancel a build of a template of the platform, as `cancelBuild` does.
#[utoipa::path(
    delete, path = "/v1/admin/builds/{id}", operation_id = "cancelPlatformBuild", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The build is cancelled, or will be in a moment."), OfAdminCancelBuild)
)]
pub(super) async fn cancel(
    services: State<Services>,
    caller: Caller,
    id: InPath,
) -> Result<StatusCode, Fault> {
    builds::cancel(services, caller.for_platform()?, id).await
}

/// Stream the log of a build of a template of the platform, as `streamBuildLogs` does.
#[utoipa::path(
    get, path = "/v1/admin/builds/{id}/logs", operation_id = "streamPlatformBuildLogs", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the build.", pattern = "^bd[0-9a-e][0-9a-z]{24}$", example = "bd03halx8fdhw2fu3txwbd0kdw0"),
        ("step" = Option<u32>, Query, description = "Send only entries of the step with this number; 0 is for what concerns the whole build.", minimum = 0, maximum = 1000),
        ("offset" = Option<i64>, Query, description = "Send the entries after this one. Without effect if there is a `Last-Event-ID`, as when a client connects again. Default: 0, all entries.",
            minimum = 0, maximum = 999_999_999_999_999_i64),
        ("Last-Event-ID" = Option<String>, Header, description = "Send the entries after the one with this id.", pattern = "^[0-9]{1,15}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The log.", body = BuildLogEvent, content_type = "text/event-stream"), OfAdminBuild)
)]
pub(super) async fn stream(
    services: State<Services>,
    caller: Caller,
    id: InPath,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Fault> {
    build_logs::stream(services, caller.for_platform()?, id, headers, parameters).await
}
