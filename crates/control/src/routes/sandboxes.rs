//! Sandboxes: create, list, show, delete.

use axum::{
    Extension, Json,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use wrenn_api::{CreateSandbox, ErrorBody, ErrorCode, Sandbox, SandboxId, SandboxStatus};

use super::OlderPath;
use crate::{
    db,
    error::ApiError,
    extract::{Body, Caller, Target},
    sandboxes::{self as service, create::Wanted},
    state::App,
};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
/// The longest `Idempotency-Key`.
const KEY_MAX: usize = 255;
const PAGE: u32 = 50;
const PAGE_MAX: u32 = 100;

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(given) = headers.get("idempotency-key") else { return Ok(None) };
    let text = given
        .to_str()
        .ok()
        .filter(|key| (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
    match text {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(ApiError::invalid(format!(
            "Idempotency-Key: 1 to {KEY_MAX} printable ASCII characters without spaces"
        ))),
    }
}

/// Create a sandbox; the answer comes when code can run in it.
///
/// Without effect when it is repeated with the same `Idempotency-Key` within 24 hours: the first answer is
/// given again.
#[utoipa::path(
    post, path = "/v1/sandboxes", tag = "sandboxes", security(("api_key" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes repeating the request safe.",
        min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    request_body = CreateSandbox,
    responses(
        (status = 201, description = "It runs.", body = Sandbox),
        (status = 404, description = "There is no such template.", body = ErrorBody),
        (status = 409, description = "No host is large enough, or the key was used otherwise.", body = ErrorBody),
        (status = 503, description = "No host can take it now.", body = ErrorBody),
        (status = 507, description = "The host's disk is full.", body = ErrorBody),
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    Caller(team): Caller,
    headers: HeaderMap,
    body: Body<CreateSandbox>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let wanted = Wanted::check(body.value)?;
    let outcome = service::create::create(&app, team, wanted, key, &body.raw).await?;
    let status = StatusCode::from_u16(outcome.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok((status, Json(outcome.body)).into_response())
}

/// How to page through a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paging {
    limit: Option<u32>,
    cursor: Option<String>,
    status: Option<SandboxStatus>,
}

/// List the team's sandboxes, newest first: all that are not stopped, or those of one status.
#[utoipa::path(
    get, path = "/v1/sandboxes", tag = "sandboxes", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "How many, at most. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`x-next-cursor` of the page before.", pattern = "^sb[0-9a-e][0-9a-z]{24}$"),
        ("status" = Option<SandboxStatus>, Query, description = "Only these; `stopped` shows what was deleted."),
    ),
    responses((status = 200, description = "One page.", body = Vec<Sandbox>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` for the next page; absent on the last one."))))
)]
pub(super) async fn list(
    State(app): State<App>,
    Caller(team): Caller,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(paging) = paging.map_err(|error| ApiError::invalid(error.body_text()))?;
    let limit = paging.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit is {limit}: it must be 1 to {PAGE_MAX}")));
    }
    let cursor: Option<SandboxId> = match paging.cursor {
        Some(text) => Some(text.parse().map_err(|error| ApiError::invalid(format!("cursor: {error}")))?),
        None => None,
    };
    // One more than asked for tells whether there is another page.
    let mut rows =
        db::sandboxes::page(&app.db, team, paging.status, cursor.map(SandboxId::uuid), i64::from(limit) + 1)
            .await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let mut response = Json(rows.iter().map(db::sandboxes::Row::public).collect::<Vec<_>>()).into_response();
    if let Some(last) = rows.last().filter(|_| more)
        && let Ok(value) = HeaderValue::from_str(&last.public_id().to_string())
    {
        response.headers_mut().insert(NEXT_CURSOR, value);
    }
    Ok(response)
}

/// Show one sandbox that is not stopped.
///
/// A deleted one is not found any more; `GET /v1/sandboxes?status=stopped` has its record. Under the older
/// path `/v1/capsules/{id}` its record is shown, as the clients of that path expect.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path, description = "The sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$")),
    responses(
        (status = 200, description = "The sandbox.", body = Sandbox),
        (status = 404, description = "The team has no such sandbox.", body = ErrorBody),
    )
)]
pub(super) async fn get(
    State(app): State<App>,
    older: Option<Extension<OlderPath>>,
    target: Target,
) -> Result<Json<Sandbox>, ApiError> {
    let sandbox = service::find(&app, target.team, target.id).await?.public();
    if sandbox.status == SandboxStatus::Stopped && older.is_none() {
        return Err(ApiError::new(ErrorCode::NotFound, format!("sandbox {} was deleted", target.id)));
    }
    Ok(Json(sandbox))
}

/// Delete a sandbox with all it holds, whatever its status. Repeating it is fine.
///
/// When its host does not answer, the sandbox stays `stopping` and goes as soon as the host is back.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path, description = "The sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$")),
    responses(
        (status = 204, description = "It is gone, or going."),
        (status = 404, description = "The team has no such sandbox.", body = ErrorBody),
    )
)]
pub(super) async fn delete(State(app): State<App>, target: Target) -> Result<StatusCode, ApiError> {
    service::destroy::destroy(&app, target.team, target.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
