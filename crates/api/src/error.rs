// SPDX-License-Identifier: Apache-2.0
//! The error body `{"error":{"code","message"}}` and its codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SandboxId;

/// The body of every error response.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong: `code` for programs, `message` for people.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"code": "not_found", "message": "there is no sandbox sb03halx8fdhw2fu3txwbd0kdw0"}))]
pub struct ErrorDetail {
    /// What kind of error. Codes do not change between versions; new ones may be added.
    pub code: ErrorCode,
    /// What failed, why, and what to do. The wording may change between versions.
    pub message: String,
    /// Id of the sandbox that a failed create leaves with status `error`. Delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^sb[0-9a-e][0-9a-z]{24}$")]
    pub sandbox_id: Option<SandboxId>,
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $status:literal;)*) => {
        /// Stable error codes; the HTTP status follows from the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[doc = $doc])* #[serde(rename = $text)] $name,)*
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

            /// When a response has this code, as a sentence.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii_start(),)* }
            }
        }
    };
}

error_codes! {
    /// The request is malformed, or a value is out of range.
    InvalidRequest = "invalid_request", 400;
    /// The path leads to a directory, and the operation needs a regular file.
    IsADirectory = "is_a_directory", 400;
    /// The path leads to something else than a directory, which the operation needs.
    NotADirectory = "not_a_directory", 400;
    /// The request asks for something that this version of Wrenn cannot do.
    Unsupported = "unsupported", 400;
    /// The link was used before, is too old, or is not complete.
    InvalidToken = "invalid_token", 400;
    /// The API key, token or other credential is missing or not valid.
    Unauthorized = "unauthorized", 401;
    /// The caller, or the user in the sandbox, does not have the permission.
    Forbidden = "forbidden", 403;
    /// The sandbox has the program but cannot execute it: it is a directory, its mode or format does not allow it, or the
    /// interpreter in its first line does not exist.
    ProgramNotExecutable = "program_not_executable", 403;
    /// The registry refuses access to the image, or the host may not ask it.
    RegistryDenied = "registry_denied", 403;
    /// The signature of the URL is missing or not right: it is for another method, path, user or sandbox, or was changed; or
    /// the sandbox is gone.
    SignatureInvalid = "signature_invalid", 403;
    /// The time of the signed URL is over.
    SignatureExpired = "signature_expired", 403;
    /// The password that the user has now is not the given one.
    WrongPassword = "wrong_password", 403;
    /// An administrator has shut the user out.
    AccountDisabled = "account_disabled", 403;
    /// The sandbox, template or file does not exist, or belongs to another team.
    NotFound = "not_found", 404;
    /// The sandbox does not have the program.
    ProgramNotFound = "program_not_found", 404;
    /// The sandbox does not have the user.
    UserNotFound = "user_not_found", 404;
    /// The sandbox does not have the working directory.
    DirectoryNotFound = "directory_not_found", 404;
    /// The registry has no such image, or does not show it; or none of this name was uploaded.
    ImageNotFound = "image_not_found", 404;
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The status of the sandbox does not allow this, for example because it is not running.
    InvalidState = "invalid_state", 409;
    /// The request conflicts with the current state.
    Conflict = "conflict", 409;
    /// The memory of the paused sandbox was lost; resume it with `"memory": false`, which boots it from its disk.
    SnapshotMissing = "snapshot_missing", 409;
    /// The memory of the paused sandbox is damaged; resume it with `"memory": false`, which boots it from its disk.
    SnapshotDamaged = "snapshot_damaged", 409;
    /// The memory of the paused sandbox was written by another VMM or processor; resume it with `"memory": false`, which
    /// boots it from its disk.
    SnapshotIncompatible = "snapshot_incompatible", 409;
    /// The name is one of a template of the platform, or a word of the API.
    NameReserved = "name_reserved", 409;
    /// Another snapshot or template of the team has the name.
    NameTaken = "template_name_taken", 409;
    /// A step of the build failed; the log of the build has the reason.
    BuildFailed = "build_failed", 409;
    /// The build was given up, because each of its workers died; ask for it again.
    BuildParked = "build_parked", 409;
    /// The image is made for other processors; the message lists them.
    ImagePlatformMismatch = "image_platform_mismatch", 409;
    /// The image is not what its digests say, or has what cannot be unpacked.
    ImageDamaged = "image_damaged", 409;
    /// The image is larger than the host takes.
    ImageTooLarge = "image_too_large", 409;
    /// Another sandbox of the team has the name.
    SandboxNameTaken = "sandbox_name_taken", 409;
    /// The beginning of an id is that of several sandboxes; the message lists them.
    AmbiguousId = "ambiguous_id", 409;
    /// The sandbox is larger than any host allows.
    ExceedsCapacity = "exceeds_capacity", 409;
    /// The idempotency key was used before with a different request.
    IdempotencyMismatch = "idempotency_request_mismatch", 409;
    /// The first request with this idempotency key has not finished yet.
    IdempotencyInProgress = "idempotency_in_progress", 409;
    /// The sandbox or snapshot that was made with this idempotency key has been deleted.
    IdempotencySandboxDeleted = "idempotency_sandbox_deleted", 409;
    /// The user has made API keys that still work; say with `keys` what becomes of them. The message lists them.
    MemberHasKeys = "member_has_keys", 409;
    /// The user owns a team that others are in; hand the team over or delete it first.
    OwnsTeamWithMembers = "owns_team_with_members", 409;
    /// The user could not sign in any more; set a password or connect another provider first.
    LastLoginMethod = "last_login_method", 409;
    /// The body is larger than the limit.
    TooLarge = "too_large", 413;
    /// The body does not have the documented media type.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// The file has no such part.
    RangeNotSatisfiable = "range_not_satisfiable", 416;
    /// The limit on concurrent requests, open streams or sandboxes of the team was reached; try again later.
    TooManyRequests = "too_many_requests", 429;
    /// The team would have more than a quota allows; the message says which one, and how much of it is used.
    QuotaExceeded = "quota_exceeded", 429;
    /// Too many attempts at what can be guessed, or too many mails; try again later.
    TooManyAttempts = "too_many_attempts", 429;
    /// The control plane failed; its log has the reason under the request id.
    InternalError = "internal_error", 500;
    /// The host failed; its log has the reason.
    AgentError = "agent_error", 502;
    /// The sandbox had no memory left, or its microVM reached the limit of its memory on the host.
    OutOfMemory = "out_of_memory", 502;
    /// The sandbox runs, but nothing in it listens on the port.
    PortNotOpen = "port_not_open", 502;
    /// The server on the port of the sandbox broke the connection off, or does not speak HTTP.
    PortFailed = "port_failed", 502;
    /// The registry did not answer or deliver in time; try again later.
    RegistryUnavailable = "registry_unavailable", 502;
    /// The receiver of a channel did not take the message, or could not be reached.
    ChannelFailed = "channel_failed", 502;
    /// No host has room for the sandbox now; try again later.
    NoHostsAvailable = "no_hosts_available", 503;
    /// The host of the sandbox does not respond; try again later.
    HostUnavailable = "host_unavailable", 503;
    /// No host that responds has the template, and there is no store that has it; try again later.
    TemplateUnavailable = "template_unavailable", 503;
    /// The control plane cannot reach PostgreSQL or Redis; try again later.
    ServiceUnavailable = "service_unavailable", 503;
    /// The server sends no mail: its operator has not configured an SMTP server.
    MailUnavailable = "mail_unavailable", 503;
    /// The server has no channels: its operator has not given it a key to encrypt their secrets with.
    ChannelsUnavailable = "channels_unavailable", 503;
    /// The host or the sandbox did not respond in time.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::ErrorCode;

    /// Rows of a Markdown table whose first cell is one status or several, and whose second has codes.
    fn documented(page: &str) -> BTreeMap<String, u16> {
        let section = page.split("\n## Errors\n").nth(1).expect("the section Errors");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let status: u16 = cells.next()?.parse().ok()?;
            let code = cells.next()?.trim_matches('`');
            Some((code.to_owned(), status))
        });
        rows.collect()
    }

    #[test]
    fn the_documentation_lists_every_code_with_its_status() {
        let documented = documented(include_str!("../../../docs/api.md"));
        let of_the_code =
            ErrorCode::ALL.iter().map(|code| (code.as_str().to_owned(), code.status())).collect();
        assert_eq!(documented, of_the_code, "the table in docs/api.md, section Errors");
    }

    #[test]
    fn descriptions_are_sentences() {
        for code in ErrorCode::ALL {
            let text = code.description();
            assert!(text.starts_with(char::is_uppercase) && text.ends_with('.'), "{code}: {text:?}");
        }
    }
}
