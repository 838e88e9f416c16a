//! Extractors of request parts, with error messages of this API.

use axum::{
    RequestPartsExt as _,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
};
use http::{header, request::Parts};
use serde::de::DeserializeOwned;
use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId};

use crate::{auth::Team, error::ApiError, state::App};

/// A JSON object of a known shape.
pub(crate) struct Body<T> {
    pub(crate) value: T,
}

/// The whole body, no larger than `max`.
async fn read(request: Request, max: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(request.into_body(), max).await.map_err(|error| {
        let error = error.into_inner();
        if error.is::<http_body_util::LengthLimitError>() {
            return ApiError::new(ErrorCode::TooLarge, format!("the body is larger than {max} bytes"));
        }
        ApiError::invalid(format!("the body could not be read: {error}"))
    })
}

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = kind.is_some_and(|kind| {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        });
        if !is_json {
            let message = "send the body as JSON, with the header Content-Type: application/json";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
        }
        let raw = read(request, app.limits.json_body).await?;
        if raw.is_empty() {
            return Err(ApiError::invalid("the body is empty: send a JSON object, at least {}"));
        }
        // First the shape: serde would also take an array for an object.
        let value: serde_json::Value = serde_json::from_slice(&raw)
            .map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
        if !value.is_object() {
            return Err(ApiError::invalid("the body must be a JSON object"));
        }
        // From the text, not the value: so that a repeated field is noticed, and the place is told.
        let value = serde_json::from_slice(&raw)
            .map_err(|error| ApiError::invalid(format!("the body is not as documented: {error}")))?;
        Ok(Self { value })
    }
}

/// The sandbox in the path, and the authenticated team.
pub(crate) struct Target {
    pub(crate) team: Uuid,
    pub(crate) id: SandboxId,
}

impl FromRequestParts<App> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Caller(team) = Caller::from_request_parts(parts, app).await?;
        let Path(text): Path<String> =
            parts.extract().await.map_err(|_| ApiError::invalid("the sandbox id in the path is not text"))?;
        let id = text
            .parse()
            .map_err(|error| ApiError::invalid(format!("the sandbox id in the path: {error}")))?;
        Ok(Self { team, id })
    }
}

/// The authenticated team.
pub(crate) struct Caller(pub(crate) Uuid);

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        let team = parts.extensions.get::<Team>().copied();
        // Routes without the key check have no caller: a fault of ours, not of the client.
        team.map(|Team(id)| Self(id))
            .ok_or_else(|| ApiError::new(ErrorCode::InternalError, "the request reached a handler unchecked"))
    }
}
