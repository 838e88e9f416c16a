// SPDX-License-Identifier: Apache-2.0
//! Faults of services: plain data, which each surface renders in its own form.

use connectrpc::{ConnectError, ErrorCode as Wire};
use wrenn_api::{ErrorCode, SandboxId};
use wrenn_rpc::{Foreign, fault};

/// A failed operation, with a message for clients. In the log it is escaped and truncated, because it may
/// quote a guest or a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {}", Foreign(.message))]
#[non_exhaustive]
pub struct Fault {
    /// Stable code.
    pub code: ErrorCode,
    /// What failed, why, and what to do.
    pub message: String,
    /// Sandbox that a failed create leaves.
    pub sandbox_id: Option<SandboxId>,
    /// Code of an extension's own, which clients get instead of `code`.
    pub own_code: Option<&'static str>,
}

impl Fault {
    /// Creates a fault.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), sandbox_id: None, own_code: None }
    }

    /// Creates a fault with a code of an extension's own, in `snake_case`. What `like` is decides the HTTP status.
    pub fn of_extension(own_code: &'static str, like: ErrorCode, message: impl Into<String>) -> Self {
        Self { own_code: Some(own_code), ..Self::new(like, message) }
    }

    /// Creates the fault of an invalid request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// Creates the fault of a bug or a broken machine, whose cause is in the log.
    pub(crate) fn internal() -> Self {
        Self::new(ErrorCode::InternalError, "the control plane could not do this; its log says why")
    }

    /// Names the sandbox that a failed create leaves, so that the client can delete it.
    pub(crate) fn leaving(self, sandbox: SandboxId) -> Self {
        Self { sandbox_id: Some(sandbox), ..self }
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        // Errors of PostgreSQL while it starts, stops, refuses connections or cancels slow statements:
        // classes 08, 53 and 57, lock timeouts, and deadlocks.
        let away = match &error {
            E::Io(_) | E::PoolTimedOut | E::PoolClosed | E::Tls(_) | E::Protocol(_) | E::WorkerCrashed => {
                true
            }
            E::Database(cause) => cause.code().is_some_and(|code| {
                ["08", "40P01", "53", "55P03", "57"].iter().any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        if away {
            tracing::warn!(%error, "the database is not available");
            let message = "the control plane cannot reach its database; try again in a moment";
            return Self::new(ErrorCode::ServiceUnavailable, message);
        }
        tracing::error!(%error, "a statement failed");
        Self::internal()
    }
}

impl From<redis::RedisError> for Fault {
    fn from(error: redis::RedisError) -> Self {
        tracing::warn!(%error, "redis is not available");
        Self::new(
            ErrorCode::ServiceUnavailable,
            "the control plane cannot reach its event store; try again in a moment",
        )
    }
}

/// Message of an error, which may come from a guest.
fn words(error: &ConnectError) -> Foreign<'_> {
    Foreign(error.message.as_deref().unwrap_or_default())
}

/// Returns whether a connection broke amid a response: the RPC library has no other mark of that than its text.
fn has_broken(error: &ConnectError) -> bool {
    error.message.as_deref().is_some_and(|text| text.starts_with("failed to read response body"))
}

/// Converts an error of an agent: its `Fault` has the code, and its message is for clients. Errors without
/// this detail come from the connection or the RPC library, and their text is only logged.
impl From<ConnectError> for Fault {
    fn from(error: ConnectError) -> Self {
        let code = fault::of(&error).and_then(|(code, _)| code.parse().ok());
        if let Some(code) = code {
            return Self::new(code, error.message.unwrap_or_default());
        }
        match error.code {
            Wire::Unavailable => {
                tracing::warn!(code = ?error.code, words = %words(&error), "a host does not answer");
                let message = "the sandbox's host does not answer; try again in a moment";
                Self::new(ErrorCode::HostUnavailable, message)
            }
            Wire::Internal if has_broken(&error) => {
                tracing::warn!(words = %words(&error), "the connection to a host broke");
                let message = "the connection to the sandbox's host broke: what was asked may have been done";
                Self::new(ErrorCode::HostUnavailable, message)
            }
            Wire::DeadlineExceeded => {
                Self::new(ErrorCode::Timeout, "the sandbox's host did not answer in time; try again")
            }
            _ => {
                tracing::error!(code = ?error.code, words = %words(&error), "a host answered with a fault");
                let message = "the sandbox's host could not do this; its log says why";
                Self::new(ErrorCode::AgentError, message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use wrenn_rpc::fault::Of;

    use super::*;

    /// Captured log output.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::Error::other("poisoned"))?.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_guest_forges_a_line_of_the_log() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let text = format!("x\n2026-01-01T00:00:00Z  INFO wrenn: FORGED\r\u{1b}[31m{}", "y".repeat(4 << 20));
        tracing::subscriber::with_default(subscriber, || {
            for error in [ConnectError::unavailable(&text), ConnectError::internal(&text)] {
                let _ = Fault::from(error);
            }
            let told = fault::attach(ConnectError::internal(&text), "agent_error", Of::OF_HOST);
            let error = Fault::from(told);
            tracing::warn!(%error, "a delete waits for its host");
        });
        let logged = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("UTF-8");
        assert_eq!(logged.lines().count(), 3, "{logged}");
        assert!(logged.len() < 6000 && !logged.contains(['\r', '\u{1b}']), "{} bytes", logged.len());
    }
}
