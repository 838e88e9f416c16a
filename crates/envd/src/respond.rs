// SPDX-License-Identifier: Apache-2.0
//! Error responses of the plain HTTP endpoints.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::json;

/// Message of an error response, for the log.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) String);

/// Builds an error response of the plain HTTP endpoints.
pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    let message = message.into();
    let mut response = (status, Json(json!({"code": status.as_u16(), "message": message}))).into_response();
    response.extensions_mut().insert(Told(message));
    response
}
