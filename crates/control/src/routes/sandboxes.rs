// SPDX-License-Identifier: Apache-2.0
//! Sandboxes: create, list, get, delete.

use axum::{
    Extension, Json,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use wrenn_api::{CreateSandbox, ErrorCode, Sandbox, SandboxId, SandboxStatus};
use wrenn_rpc::Foreign;

use super::{
    OlderPath,
    refusals::{OfCreate, OfDelete, OfGet, OfLook},
};
use crate::{
    db,
    error::ApiError,
    extract::{Body, Caller, Target},
    sandboxes::{self as service, create::Wanted},
    state::App,
};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
/// Maximum length of an `Idempotency-Key`.
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

/// Create a sandbox.
///
/// The response is sent once the sandbox is ready to run code. Repeating the request with the same `Idempotency-Key` within
/// 24 hours creates nothing and returns the sandbox of the first request as it is now; once that sandbox was deleted, it is
/// rejected with 409 `idempotency_sandbox_deleted`. A different request with the same key is rejected with 409; requests
/// that differ only in their JSON formatting, or in defaults that are written out, are the same. A request that failed can
/// be repeated with its key, and is then tried again.
#[utoipa::path(
    post, path = "/v1/sandboxes", operation_id = "createSandbox", tag = "sandboxes", security(("api_key" = [])),
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Any text that is unique to this sandbox, for example a UUID. It makes it safe to repeat the request.",
        min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "01890a5d-ac96-774b-bcce-b302099a8057")),
    request_body = CreateSandbox,
    responses((status = 201, description = "The sandbox is running.", body = Sandbox), OfCreate)
)]
pub(super) async fn create(
    State(app): State<App>,
    Caller(team): Caller,
    headers: HeaderMap,
    body: Body<CreateSandbox>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let wanted = Wanted::check(body.value)?;
    let row = service::create::create(&app, team, wanted, key).await?;
    Ok((StatusCode::CREATED, Json(row.public())).into_response())
}

/// Query parameters of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Paging {
    limit: Option<u32>,
    cursor: Option<SandboxId>,
    status: Option<SandboxStatus>,
}

impl Paging {
    /// Parses the parameters one by one, so that each error names the parameter and its allowed values.
    fn of(parameters: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut paging = Self::default();
        for (name, value) in parameters {
            let shown = Foreign(&value);
            let repeated = match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
                    let wrong = || ApiError::invalid(format!("limit is {shown}: it must be 1 to {PAGE_MAX}"));
                    paging.limit.replace(limit.ok_or_else(wrong)?).is_some()
                }
                "cursor" => {
                    let wrong = |error| ApiError::invalid(format!("cursor is {shown}: {error}"));
                    paging.cursor.replace(value.parse().map_err(wrong)?).is_some()
                }
                "status" => {
                    let all = SandboxStatus::ALL.map(SandboxStatus::as_str).join(", ");
                    let wrong = |()| ApiError::invalid(format!("status is {shown}: it must be one of {all}"));
                    paging.status.replace(value.parse().map_err(wrong)?).is_some()
                }
                other => {
                    let message =
                        format!("there is no parameter {}: use limit, cursor and status", Foreign(other));
                    return Err(ApiError::invalid(message));
                }
            };
            if repeated {
                return Err(ApiError::invalid(format!("{name} is given twice")));
            }
        }
        Ok(paging)
    }
}

/// List the team's sandboxes, newest first.
///
/// Without `status`, sandboxes of every status but `stopped` are listed.
#[utoipa::path(
    get, path = "/v1/sandboxes", operation_id = "listSandboxes", tag = "sandboxes", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of sandboxes in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^sb[0-9a-e][0-9a-z]{24}$"),
        ("status" = Option<SandboxStatus>, Query, description = "List only sandboxes of this status; `stopped` lists deleted ones."),
    ),
    responses((status = 200, description = "A page of sandboxes.", body = Vec<Sandbox>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(app): State<App>,
    Caller(team): Caller,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let malformed = |_| ApiError::invalid("the query is malformed: send name=value pairs in UTF-8");
    let Query(parameters) = parameters.map_err(malformed)?;
    let Paging { limit, cursor, status } = Paging::of(parameters)?;
    let limit = limit.unwrap_or(PAGE);
    // One more row than requested shows whether there is another page.
    let mut rows =
        db::sandboxes::page(&app.db, team, status, cursor.map(SandboxId::uuid), i64::from(limit) + 1).await?;
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

/// Get a sandbox.
///
/// A deleted sandbox gives 404; `GET /v1/sandboxes?status=stopped` lists its record. The older path `/v1/capsules/{id}`
/// returns the record, as the clients of that path expect.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", operation_id = "getSandbox", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 200, description = "The sandbox.", body = Sandbox), OfGet)
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

/// Delete a sandbox and its disk, whatever its status.
///
/// Repeating it is safe. If the host is offline, the sandbox stays in `stopping` and is deleted when the host comes back.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", operation_id = "deleteSandbox", tag = "sandboxes", security(("api_key" = [])),
    params(("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 204, description = "The sandbox is deleted, or will be when its host comes back."), OfDelete)
)]
pub(super) async fn delete(State(app): State<App>, target: Target) -> Result<StatusCode, ApiError> {
    service::destroy::destroy(&app, target.team, target.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paging(query: &str) -> Result<Paging, String> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Paging::of(pairs).map_err(|error| error.message)
    }

    #[test]
    fn wrong_parameters_are_named_with_what_they_may_be() {
        assert_eq!(paging(""), Ok(Paging::default()));
        let status = Some(SandboxStatus::Stopped);
        assert_eq!(paging("limit=100&status=stopped"), Ok(Paging { limit: Some(100), status, cursor: None }));
        for (query, message) in [
            ("status=nope", r#"status is "nope": it must be one of pending, starting, running"#),
            ("limit=0", r#"limit is "0": it must be 1 to 100"#),
            ("limit=x", r#"limit is "x": it must be 1 to 100"#),
            ("cursor=x", r#"cursor is "x": "#),
            ("order=x", r#"there is no parameter "order": use limit, cursor and status"#),
            ("limit=1&limit=1", "limit is given twice"),
        ] {
            let told = paging(query).err().unwrap_or_default();
            assert!(told.starts_with(message), "{query}: {told}");
        }
    }
}
