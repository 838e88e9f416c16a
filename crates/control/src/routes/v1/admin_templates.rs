// SPDX-License-Identifier: Apache-2.0
//! The platform's templates that were built from recipes: their tags, deletion, and the cache of their builds.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::StatusCode;
use wrenn_api::{MoveTag, PrunedCache, TemplateVersion};

use super::{
    error_responses::{OfAdminLook, OfAdminMoveTag, OfAdminTemplate},
    extract::{Body, Parameters},
    templates,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// Make a tag of a template of the platform lead to a version, as `moveTag` does.
#[utoipa::path(
    put, path = "/v1/admin/templates/{name}/tags/{tag}", operation_id = "movePlatformTag", tag = "platform",
    params(
        ("name" = String, Path, description = "Name of the template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "web"),
        ("tag" = String, Path, description = "The tag.", pattern = "^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63}$", example = "latest"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = MoveTag,
    responses((status = 200, description = "The version that the tag leads to.", body = TemplateVersion), OfAdminMoveTag)
)]
pub(super) async fn move_tag(
    services: State<Services>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
    body: Body<MoveTag>,
) -> Result<Json<TemplateVersion>, Fault> {
    templates::move_tag(services, caller.for_platform()?, place, body).await
}

/// Delete a template that the platform has built, with all its versions and tags.
///
/// Sandboxes that were created from it do not need it. A template in the files of hosts is removed there.
#[utoipa::path(
    delete, path = "/v1/admin/templates/{name}", operation_id = "deletePlatformTemplate", tag = "platform",
    params(
        ("name" = String, Path, description = "Name of the template.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "web"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The template is deleted."), OfAdminTemplate)
)]
pub(super) async fn delete(
    services: State<Services>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    templates::delete(services, caller.for_platform()?, name).await
}

/// Remove results of steps from the cache of the platform's builds, as `pruneCache` does.
#[utoipa::path(
    delete, path = "/v1/admin/templates/cache", operation_id = "prunePlatformCache", tag = "platform",
    params(
        ("older_than_days" = Option<u32>, Query, description = "Remove only results that no build has used for so many days. Default: 0, all.", minimum = 0, maximum = 3650),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "What was removed.", body = PrunedCache), OfAdminLook)
)]
pub(super) async fn prune(
    services: State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Json<PrunedCache>, Fault> {
    templates::prune(services, caller.for_platform()?, parameters).await
}
