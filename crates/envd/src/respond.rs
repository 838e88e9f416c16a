// SPDX-License-Identifier: Apache-2.0
//! Error responses of the plain HTTP endpoints.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

/// Message of an error response, for the log.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) String);

/// Builds an error response of the plain HTTP endpoints.
pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    told(status, message.into(), |_| {})
}

/// Builds an error response whose reason programs can tell from others with its status: a code of the REST API.
pub(crate) fn error_with_reason(
    status: StatusCode,
    reason: &'static str,
    message: impl Into<String>,
) -> Response {
    told(status, message.into(), |body| body["reason"] = reason.into())
}

fn told(status: StatusCode, message: String, add: impl FnOnce(&mut Value)) -> Response {
    let mut body = json!({"code": status.as_u16(), "message": message});
    add(&mut body);
    let mut response = (status, Json(body)).into_response();
    response.extensions_mut().insert(Told(message));
    response
}
