// SPDX-License-Identifier: Apache-2.0
//! Errors of API calls.

use wrenn_api::{ErrorBody, SandboxId};

/// Maximum number of characters quoted from a response without an error object.
const QUOTE_MAX: usize = 300;

/// Error of an API call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API returned an error.
    #[error("{message} ({code}{})", request(request_id.as_deref()))]
    Api {
        /// HTTP status.
        status: u16,
        /// Stable code, see [`wrenn_api::ErrorCode`].
        code: String,
        /// Error message, with cause and remedy.
        message: String,
        /// Id of the request in the server's log.
        request_id: Option<String>,
        /// Sandbox that a failed create left with status `error`.
        sandbox_id: Option<SandboxId>,
    },
    /// The given address of the API is not a URL.
    #[error("{url:?} is not the URL of an API: {cause}")]
    Url {
        /// The given address.
        url: String,
        /// Cause, and the right form.
        cause: String,
    },
    /// No connection to the API; the request was not sent.
    #[error("cannot reach the API at {url}: {cause}")]
    Connect {
        /// URL of the API.
        url: String,
        /// Cause and remedy.
        cause: String,
    },
    /// The connection broke before the response was complete; the request may have been carried out.
    #[error("{0}")]
    Lost(String),
    /// The response does not conform to the API.
    #[error("unexpected answer from the API: {0}")]
    Protocol(String),
}

fn request(id: Option<&str>) -> String {
    id.map(|id| format!(", request {id}")).unwrap_or_default()
}

impl Error {
    /// Returns whether the request may have been carried out although no complete response came.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Returns the stable code of an API error.
    pub fn code(&self) -> Option<&str> {
        if let Self::Api { code, .. } = self { Some(code) } else { None }
    }

    /// Builds the error for an unsuccessful response.
    pub(crate) fn from_answer(status: u16, request_id: Option<String>, body: &[u8]) -> Self {
        if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
            let (code, message) = (error.code.as_str().to_owned(), error.message);
            return Self::Api { status, code, message, request_id, sandbox_id: error.sandbox_id };
        }
        // A newer server may know codes that this client does not.
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if let (Some(code), Some(message)) =
            (value["error"]["code"].as_str(), value["error"]["message"].as_str())
        {
            let (code, message) = (code.to_owned(), message.to_owned());
            let sandbox_id = value["error"]["sandbox_id"].as_str().and_then(|id| id.parse().ok());
            return Self::Api { status, code, message, request_id, sandbox_id };
        }
        let quote: String = String::from_utf8_lossy(body).chars().take(QUOTE_MAX).collect();
        Self::Protocol(format!("status {status}: {}", quote.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_becomes_an_api_error() {
        let body = br#"{"error":{"code":"not_found","message":"there is no such sandbox"}}"#;
        let error = Error::from_answer(404, Some("r1".to_owned()), body);
        assert_eq!(error.code(), Some("not_found"));
        assert_eq!(error.to_string(), "there is no such sandbox (not_found, request r1)");
    }

    #[test]
    fn a_code_from_the_future_is_kept() {
        let error = Error::from_answer(418, None, br#"{"error":{"code":"teapot","message":"short"}}"#);
        assert_eq!(error.code(), Some("teapot"));
    }

    #[test]
    fn any_other_answer_is_quoted() {
        let error = Error::from_answer(502, None, b"<html>bad gateway</html>");
        assert!(error.to_string().contains("502") && error.to_string().contains("bad gateway"), "{error}");
    }
}
