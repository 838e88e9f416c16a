//! The error envelope `{"error":{"code","message"}}` and its codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every response that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, for programs (`code`) and for people (`message`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable across versions.
    pub code: ErrorCode,
    /// The thing, the cause and the remedy.
    pub message: String,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// Stable error codes; the HTTP status follows from the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status that carries this code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The code as it stands in a response.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

error_codes! {
    /// The request is malformed.
    InvalidRequest = "invalid_request", 400;
    /// No valid API key.
    Unauthorized = "unauthorized", 401;
    /// The key is valid but may not do this.
    Forbidden = "forbidden", 403;
    /// The thing does not exist, or belongs to another team.
    NotFound = "not_found", 404;
    /// The sandbox has no such program, or not the interpreter that its first line names.
    ProgramNotFound = "program_not_found", 404;
    /// The program cannot be executed: it is a directory, or its mode or format does not allow it.
    ProgramNotExecutable = "program_not_executable", 403;
    /// The sandbox has no such user.
    UserNotFound = "user_not_found", 404;
    /// The sandbox has no such directory to start in.
    DirectoryNotFound = "directory_not_found", 404;
    /// The path exists but not for this method.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The sandbox is not in a status that allows this.
    InvalidState = "invalid_state", 409;
    /// The request contradicts the present state.
    Conflict = "conflict", 409;
    /// No host is large enough for this sandbox.
    ExceedsCapacity = "exceeds_capacity", 409;
    /// The idempotency key was used with another request.
    IdempotencyMismatch = "idempotency_request_mismatch", 409;
    /// The first request with this idempotency key is still being answered.
    IdempotencyInProgress = "idempotency_in_progress", 409;
    /// The body is larger than allowed.
    TooLarge = "too_large", 413;
    /// The body is not of the documented media type.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// A limit on concurrent requests or streams was reached.
    TooManyRequests = "too_many_requests", 429;
    /// A fault of ours; the request id finds it in the log.
    InternalError = "internal_error", 500;
    /// The host answered with a fault of its own.
    AgentError = "agent_error", 502;
    /// No host can take the sandbox now.
    NoHostsAvailable = "no_hosts_available", 503;
    /// The sandbox's host cannot be reached.
    HostUnavailable = "host_unavailable", 503;
    /// PostgreSQL or Redis cannot be reached.
    ServiceUnavailable = "service_unavailable", 503;
    /// The sandbox did not answer in time.
    Timeout = "timeout", 504;
    /// The disk of the host or of the sandbox is full.
    InsufficientStorage = "insufficient_storage", 507;
}

// By hand: the derive does not see names that come out of a macro.
impl utoipa::PartialSchema for ErrorCode {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let codes = Self::ALL.iter().map(|code| code.as_str());
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("Stable error codes; the HTTP status follows from the code."))
            .enum_values(Some(codes))
            .into()
    }
}

impl ToSchema for ErrorCode {
    fn name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(())
    }
}
