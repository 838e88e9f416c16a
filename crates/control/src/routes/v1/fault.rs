// SPDX-License-Identifier: Apache-2.0
//! Rendering of faults as v1's error object, with the HTTP status of their code.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::json;
use wrenn_api::{ErrorBody, ErrorDetail};

use crate::error::Fault;

impl IntoResponse for Fault {
    /// The response also keeps the fault itself, for the log, and for a surface whose errors have another form.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = match self.own_code {
            // Not of the type of the other codes, which is closed.
            Some(code) => {
                let body = json!({"error": {"code": code, "message": self.message}});
                (status, Json(body)).into_response()
            }
            None => (status, Json(body(&self))).into_response(),
        };
        response.extensions_mut().insert(self);
        response
    }
}

fn body(fault: &Fault) -> ErrorBody {
    let (code, message, sandbox_id) = (fault.code, fault.message.clone(), fault.sandbox_id);
    ErrorBody { error: ErrorDetail { code, message, sandbox_id } }
}
