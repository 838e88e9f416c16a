// SPDX-License-Identifier: Apache-2.0
//! The error responses of each operation, for the OpenAPI document: which codes it can answer with, and an example of each.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, ToSchema as _,
    openapi::{
        Ref, RefOr, Response, ResponseBuilder,
        content::ContentBuilder,
        example::{Example, ExampleBuilder},
    },
};
use wrenn_api::{ErrorBody, ErrorCode, ErrorDetail};

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)*;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                by_status(&[$(ErrorCode::$code),*])
            }
        }
    )*};
}

refusals! {
    /// Error responses of `createSandbox`.
    OfCreate: NotFound SandboxNameTaken Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible ExceedsCapacity IdempotencyMismatch IdempotencyInProgress IdempotencySandboxDeleted TooLarge UnsupportedMediaType
        AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations that read the control plane's database only.
    OfLook:;
    /// Error responses of `streamEvents`.
    OfEvents: NotFound AmbiguousId;
    /// Error responses of `getSandbox`.
    OfGet: NotFound AmbiguousId;
    /// Error responses of `deleteSandbox`.
    OfDelete: NotFound AmbiguousId Conflict;
    /// Error responses of `pauseSandbox`.
    OfPause: NotFound AmbiguousId InvalidState TooLarge UnsupportedMediaType AgentError HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `resumeSandbox`.
    OfResume: NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType
        AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `pingSandbox`.
    OfPing: NotFound AmbiguousId InvalidState TooLarge UnsupportedMediaType;
    /// Error responses of `createSnapshot`.
    OfCreateSnapshot: NotFound InvalidState NameReserved NameTaken Conflict IdempotencyMismatch IdempotencyInProgress
        IdempotencySandboxDeleted TooLarge UnsupportedMediaType AgentError HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `deleteSnapshot`.
    OfDeleteSnapshot: NotFound Forbidden;
    /// Error responses of `updateSandbox`.
    OfUpdate: NotFound AmbiguousId SandboxNameTaken TooLarge UnsupportedMediaType;
    /// Error responses of `execCommand`.
    OfExec: NotFound AmbiguousId ProgramNotFound UserNotFound DirectoryNotFound ProgramNotExecutable InvalidState Conflict SnapshotMissing
        SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout
        InsufficientStorage;
    /// Error responses of `listProcesses`, `signalProcess` and `readScreen`.
    OfProcesses: NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError NoHostsAvailable
        HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `execStream`, `processStream` and `openTerminal`, before the connection is a WebSocket.
    OfExecStream: NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError NoHostsAvailable
        HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `portStream`, before the connection is that of the port.
    OfPortStream: Forbidden NotFound InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError PortNotOpen
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations on entries of a file system.
    OfDirectories: UserNotFound AmbiguousId Forbidden NotFound InvalidState Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge
        UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `readContent` and `writeContent`, which signed URLs lead to, too.
    OfContent: IsADirectory SignatureInvalid SignatureExpired UserNotFound AmbiguousId Forbidden NotFound InvalidState Conflict
        SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType RangeNotSatisfiable AgentError
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `signFile`.
    OfSign: Forbidden NotFound AmbiguousId TooLarge UnsupportedMediaType;
    /// Error responses of `readArchive` and `writeArchive`.
    OfArchives: NotADirectory UserNotFound AmbiguousId Forbidden NotFound InvalidState Conflict SnapshotMissing SnapshotDamaged
        SnapshotIncompatible UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `watchFiles`, before the connection is a WebSocket.
    OfWatch: UserNotFound AmbiguousId Forbidden NotFound InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations on files in forms and by requests in JSON.
    OfFiles: IsADirectory Forbidden NotFound AmbiguousId InvalidState Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge
        UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
}

/// Codes of every operation that needs an API key.
const EVERYWHERE: [ErrorCode; 5] = [
    ErrorCode::InvalidRequest,
    ErrorCode::Unauthorized,
    ErrorCode::TooManyRequests,
    ErrorCode::InternalError,
    ErrorCode::ServiceUnavailable,
];

/// One response per status, with an example of each of its codes.
fn by_status(own: &[ErrorCode]) -> BTreeMap<String, RefOr<Response>> {
    let mut statuses: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in own.iter().chain(&EVERYWHERE) {
        statuses.entry(code.status()).or_default().push(*code);
    }
    statuses.into_iter().map(|(status, codes)| (status.to_string(), RefOr::T(response(&codes)))).collect()
}

fn response(codes: &[ErrorCode]) -> Response {
    let lines: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}", code.description())).collect();
    let examples = codes.iter().map(|code| {
        let name = code.as_str();
        (name.to_owned(), RefOr::Ref(Ref::new(format!("#/components/examples/{name}"))))
    });
    let schema = RefOr::Ref(Ref::from_schema_name(ErrorBody::name()));
    let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build();
    ResponseBuilder::new().description(lines.join("\n\n")).content("application/json", content).build()
}

/// An example of every code, under its name.
pub(in crate::routes) fn examples() -> impl Iterator<Item = (String, Example)> {
    ErrorCode::ALL.iter().map(|&code| {
        let body =
            ErrorBody { error: ErrorDetail { code, message: message(code).to_owned(), sandbox_id: None } };
        let value = serde_json::to_value(body).unwrap_or_default();
        let example = ExampleBuilder::new().summary(code.description()).value(Some(value)).build();
        (code.as_str().to_owned(), example)
    })
}

/// The message of a code's example.
fn message(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest => "vcpus is 0: it must be 1 to 64",
        ErrorCode::IsADirectory => "/etc is a directory",
        ErrorCode::NotADirectory => "cannot read /etc/passwd: it is not a directory",
        ErrorCode::SignatureInvalid => {
            "the signature does not fit the method, path, user and time of the URL: sign another one"
        }
        ErrorCode::SignatureExpired => "the time of the signed URL is over: sign another one",
        ErrorCode::RangeNotSatisfiable => "the file has 6 bytes, and no part as it is asked for",
        ErrorCode::Unauthorized => "Missing or invalid API key. Send it in the header X-API-Key.",
        ErrorCode::Forbidden => "cannot write /proc/version: permission denied",
        ErrorCode::ProgramNotExecutable => "/etc/passwd: permission denied",
        ErrorCode::NotFound => "there is no sandbox sb03halx8fdhw2fu3txwbd0kdw0",
        ErrorCode::ProgramNotFound => "python4: command not found",
        ErrorCode::UserNotFound => "there is no user \"alice\" in the sandbox",
        ErrorCode::DirectoryNotFound => "there is no directory \"/work\" in the sandbox",
        ErrorCode::MethodNotAllowed => "this path does not take this method; GET /docs lists what it takes",
        ErrorCode::InvalidState => "sandbox sb03halx8fdhw2fu3txwbd0kdw0 is starting, not running",
        ErrorCode::Conflict => "the sandbox was deleted while it was starting",
        ErrorCode::NameReserved => {
            "\"minimal\" is the name of a template of the platform: choose another one"
        }
        ErrorCode::NameTaken => {
            "the team has a snapshot named \"after-setup\": choose another name, or delete it"
        }
        ErrorCode::SandboxNameTaken => {
            "the team has a sandbox named \"web\": choose another name, or delete that one or rename it"
        }
        ErrorCode::AmbiguousId => {
            "several sandboxes begin with sb03hal: sb03halx8fdhw2fu3txwbd0kdw0 \"web\" (running), sb03haly0c2k7v9m4qz1r8t5n6p \
             (paused); write more of the id"
        }
        ErrorCode::SnapshotMissing => {
            "its memory was lost when its host was restarted; resume it with memory false, which boots it from its disk"
        }
        ErrorCode::SnapshotDamaged => {
            "the memory of snapshot 01890a5d-ac96-774b-bcce-b302099a8057 is damaged: bytes 0 to 1048576 are not what was \
             written; start the sandbox without its memory"
        }
        ErrorCode::SnapshotIncompatible => {
            "snapshot 01890a5d-ac96-774b-bcce-b302099a8057 was made with the VMM \"firecracker 1.12.0\", and here is \
             \"firecracker 1.13.0\": start the sandbox without its memory"
        }
        ErrorCode::ExceedsCapacity => "no host takes a sandbox with 64 vCPUs; the largest takes 16",
        ErrorCode::IdempotencyMismatch => {
            "this Idempotency-Key was used with a different request; use a new key"
        }
        ErrorCode::IdempotencyInProgress => {
            "the first request with this Idempotency-Key is still being processed"
        }
        ErrorCode::IdempotencySandboxDeleted => {
            "the first request with this Idempotency-Key made sandbox sb03halx8fdhw2fu3txwbd0kdw0, which was deleted since: use \
             a new key for a new sandbox"
        }
        ErrorCode::TooLarge => "the body is larger than 2097152 bytes",
        ErrorCode::UnsupportedMediaType => {
            "send the body as JSON, with the header Content-Type: application/json"
        }
        ErrorCode::TooManyRequests => {
            "the control plane has too many requests in work; try again in a moment"
        }
        ErrorCode::InternalError => "the control plane could not do this; its log says why",
        ErrorCode::AgentError => "the sandbox's host could not do this; its log says why",
        ErrorCode::PortNotOpen => "nothing listens on port 8000 of the sandbox: start a server there",
        ErrorCode::PortFailed => {
            "the server on the port of the sandbox broke the connection off, or does not speak HTTP"
        }
        ErrorCode::NoHostsAvailable => "no host has room for the sandbox; try again later",
        ErrorCode::HostUnavailable => "the sandbox's host does not answer; try again in a moment",
        ErrorCode::ServiceUnavailable => "the control plane cannot reach its database; try again in a moment",
        ErrorCode::Timeout => "the sandbox's host did not answer in time; try again",
        ErrorCode::InsufficientStorage => {
            "the host's disk is full: delete sandboxes, or give the host more disk"
        }
    }
}
