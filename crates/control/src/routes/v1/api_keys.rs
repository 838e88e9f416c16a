// SPDX-License-Identifier: Apache-2.0
//! API keys of the team: create, list, change, revoke.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, HeaderName, StatusCode};
use wrenn_api::{ApiKey, ApiKeyId, CreateApiKey, CreatedApiKey, UpdateApiKey};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfCreateKey, OfLook, OfRevokeKey, OfUpdateKey},
    extract::{Body, Parameters},
};
use crate::{caller::Caller, error::Fault, keys::KeyPage, services::Services};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// Create an API key of the team.
///
/// The response is the only one that has the key itself. A key does no more than its maker may, also when the maker's role changes
/// later.
#[utoipa::path(
    post, path = "/v1/api-keys", operation_id = "createApiKey", tag = "keys",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body = CreateApiKey,
    responses((status = 201, description = "The key, which is not shown again.", body = CreatedApiKey), OfCreateKey)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    body: Body<CreateApiKey>,
) -> Result<(StatusCode, Json<CreatedApiKey>), Fault> {
    Ok((StatusCode::CREATED, Json(services.keys().create(&caller, body.value).await?)))
}

/// List the team's API keys that were not revoked, newest first.
#[utoipa::path(
    get, path = "/v1/api-keys", operation_id = "listApiKeys", tag = "keys",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of keys in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^key[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of keys, without their secrets.", body = Vec<ApiKey>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<ApiKey>>), Fault> {
    let (keys, next) = services.keys().list(&caller, page(parameters)?).await?;
    let mut headers = HeaderMap::new();
    if let Some(Ok(next)) = next.map(|id| id.to_string().parse()) {
        headers.insert(NEXT_CURSOR, next);
    }
    Ok((headers, Json(keys)))
}

/// Change an API key.
///
/// Its secret stays the same. The change takes effect at once, also for streams that are open.
#[utoipa::path(
    patch, path = "/v1/api-keys/{id}", operation_id = "updateApiKey", tag = "keys",
    params(
        ("id" = String, Path, description = "Id of the key.", pattern = "^key[0-9a-e][0-9a-z]{24}$", example = "key03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = UpdateApiKey,
    responses((status = 200, description = "The key as it is now.", body = ApiKey), OfUpdateKey)
)]
pub(super) async fn update(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: Body<UpdateApiKey>,
) -> Result<Json<ApiKey>, Fault> {
    Ok(Json(services.keys().update(&caller, key(id)?, body.value).await?))
}

/// Revoke an API key.
///
/// It is refused from now on by every server, and streams that were opened with it end.
#[utoipa::path(
    delete, path = "/v1/api-keys/{id}", operation_id = "revokeApiKey", tag = "keys",
    params(
        ("id" = String, Path, description = "Id of the key.", pattern = "^key[0-9a-e][0-9a-z]{24}$", example = "key03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The key is revoked."), OfRevokeKey)
)]
pub(super) async fn revoke(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    services.keys().revoke(&caller, key(id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn key(id: Result<Path<String>, PathRejection>) -> Result<ApiKeyId, Fault> {
    let Path(text) = id.map_err(|_| Fault::invalid("the id in the path is not text"))?;
    text.parse().map_err(|error| Fault::invalid(format!("the id in the path: {error}")))
}

fn page(parameters: Parameters) -> Result<KeyPage, Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let mut page = KeyPage::default();
    if let Some(limit) = limit {
        let parsed = limit.parse().ok().filter(|limit| (1..=KeyPage::MAX).contains(limit));
        let wrong =
            || Fault::invalid(format!("limit is {}: it must be 1 to {}", Foreign(&limit), KeyPage::MAX));
        page.limit = parsed.ok_or_else(wrong)?;
    }
    if let Some(cursor) = cursor {
        let wrong = |error| Fault::invalid(format!("cursor is {}: {error}", Foreign(&cursor)));
        page.before = Some(cursor.parse().map_err(wrong)?);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<KeyPage, Fault> {
        page(Parameters(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ))
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!(read(&[]).expect("a page").limit, 50);
        let id = ApiKeyId::new();
        let page = read(&[("limit", "100"), ("cursor", &id.to_string())]).expect("a page");
        assert_eq!((page.limit, page.before), (100, Some(id)));
        for wrong in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("cursor", "sb1"), ("after", "1")] {
            assert!(read(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
