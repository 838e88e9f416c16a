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
    OfCreate: RegistryDenied QuotaExceeded NotFound ImageNotFound SandboxNameTaken Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible
        ImagePlatformMismatch ImageDamaged ImageTooLarge ExceedsCapacity IdempotencyMismatch IdempotencyInProgress
        IdempotencySandboxDeleted TooLarge UnsupportedMediaType AgentError OutOfMemory RegistryUnavailable NoHostsAvailable
        HostUnavailable TemplateUnavailable Timeout InsufficientStorage;
    /// Error responses of operations that read the control plane's database only.
    OfLook:;
    /// Error responses of `streamEvents`.
    OfEvents: NotFound AmbiguousId;
    /// Error responses of `getSandbox`.
    OfGet: NotFound AmbiguousId;
    /// Error responses of `getSandboxMetrics`.
    OfMetrics: NotFound AmbiguousId AgentError HostUnavailable Timeout;
    /// Error responses of `deleteSandbox`.
    OfDelete: NotFound AmbiguousId Conflict;
    /// Error responses of `pauseSandbox`.
    OfPause: QuotaExceeded NotFound AmbiguousId InvalidState TooLarge UnsupportedMediaType AgentError HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `resumeSandbox`.
    OfResume: QuotaExceeded NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType
        AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `pingSandbox`.
    OfPing: NotFound AmbiguousId InvalidState TooLarge UnsupportedMediaType;
    /// Error responses of `createSnapshot`.
    OfCreateSnapshot: QuotaExceeded NotFound InvalidState NameReserved NameTaken Conflict IdempotencyMismatch IdempotencyInProgress
        IdempotencySandboxDeleted TooLarge UnsupportedMediaType AgentError HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `deleteSnapshot`.
    OfDeleteSnapshot: NotFound Forbidden;
    /// Error responses of `listVersions`.
    OfVersions: NotFound;
    /// Error responses of `moveTag`.
    OfMoveTag: NotFound TooLarge UnsupportedMediaType;
    /// Error responses of `deleteTemplate`.
    OfDeleteTemplate: NotFound Forbidden;
    /// Error responses of `loadImage`.
    OfLoadImage: ImageNotFound ImagePlatformMismatch ImageDamaged ImageTooLarge ExceedsCapacity TooLarge UnsupportedMediaType AgentError
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `deleteImage`.
    OfDeleteImage: NotFound Conflict;
    /// Error responses of `createBuild`.
    OfCreateBuild: Unsupported QuotaExceeded NotFound ImageNotFound NameReserved NameTaken TooLarge UnsupportedMediaType Timeout InsufficientStorage;
    /// Error responses of `getBuild` and `streamBuildLogs`.
    OfBuild: NotFound;
    /// Error responses of `cancelBuild`.
    OfCancelBuild: NotFound Conflict;
    /// Error responses of operations of administrators that read or change the control plane's database only.
    OfAdminLook: Forbidden;
    /// Error responses of `createPlatformBuild`.
    OfAdminCreateBuild: Unsupported Forbidden QuotaExceeded NotFound NameReserved NameTaken TooLarge UnsupportedMediaType Timeout InsufficientStorage;
    /// Error responses of `getPlatformBuild` and `streamPlatformBuildLogs`.
    OfAdminBuild: Forbidden NotFound;
    /// Error responses of `cancelPlatformBuild` and `deletePlatformSandbox`.
    OfAdminCancelBuild: Forbidden NotFound Conflict;
    /// Error responses of `movePlatformTag`.
    OfAdminMoveTag: Forbidden NotFound TooLarge UnsupportedMediaType;
    /// Error responses of `deletePlatformTemplate`.
    OfAdminTemplate: Forbidden NotFound;
    /// Error responses of `createChannel`.
    OfCreateChannel: Conflict TooLarge UnsupportedMediaType ChannelsUnavailable;
    /// Error responses of `getChannel`, `deleteChannel`, `listDeliveries` and `repeatDelivery`.
    OfChannel: NotFound;
    /// Error responses of `updateChannel`.
    OfUpdateChannel: NotFound Conflict TooLarge UnsupportedMediaType;
    /// Error responses of `configureChannel`.
    OfConfigureChannel: NotFound TooLarge UnsupportedMediaType ChannelsUnavailable;
    /// Error responses of `testChannel`.
    OfTestChannel: TooLarge UnsupportedMediaType ChannelFailed;
    /// Error responses of `updateSandbox`.
    OfUpdate: NotFound AmbiguousId SandboxNameTaken TooLarge UnsupportedMediaType;
    /// Error responses of `execCommand`.
    OfExec: QuotaExceeded NotFound AmbiguousId ProgramNotFound UserNotFound DirectoryNotFound ProgramNotExecutable InvalidState Conflict SnapshotMissing
        SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout
        InsufficientStorage;
    /// Error responses of `listProcesses`, `signalProcess` and `readScreen`.
    OfProcesses: QuotaExceeded NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError NoHostsAvailable
        HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `execStream`, `processStream` and `openTerminal`, before the connection is a WebSocket.
    OfExecStream: QuotaExceeded NotFound AmbiguousId InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError NoHostsAvailable
        HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `portStream`, before the connection is that of the port.
    OfPortStream: Forbidden QuotaExceeded NotFound InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError PortNotOpen
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations on entries of a file system.
    OfDirectories: UserNotFound AmbiguousId Forbidden QuotaExceeded NotFound InvalidState Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge
        UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `readContent` and `writeContent`, which signed URLs lead to, too.
    OfContent: IsADirectory SignatureInvalid SignatureExpired UserNotFound AmbiguousId Forbidden QuotaExceeded NotFound InvalidState Conflict
        SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge UnsupportedMediaType RangeNotSatisfiable AgentError
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `signFile`.
    OfSign: Forbidden NotFound AmbiguousId TooLarge UnsupportedMediaType;
    /// Error responses of `readArchive` and `writeArchive`.
    OfArchives: NotADirectory UserNotFound AmbiguousId Forbidden QuotaExceeded NotFound InvalidState Conflict SnapshotMissing SnapshotDamaged
        SnapshotIncompatible UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of `watchFiles`, before the connection is a WebSocket.
    OfWatch: UserNotFound AmbiguousId Forbidden QuotaExceeded NotFound InvalidState SnapshotMissing SnapshotDamaged SnapshotIncompatible AgentError
        NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations on files in forms and by requests in JSON.
    OfFiles: IsADirectory Forbidden QuotaExceeded NotFound AmbiguousId InvalidState Conflict SnapshotMissing SnapshotDamaged SnapshotIncompatible TooLarge
        UnsupportedMediaType AgentError NoHostsAvailable HostUnavailable Timeout InsufficientStorage;
    /// Error responses of operations that read a team, and of changes of it without a body.
    OfTeam: Forbidden NotFound;
    /// Error responses of `createTeam`.
    OfCreateTeam: Forbidden Conflict TooLarge UnsupportedMediaType;
    /// Error responses of `updateTeam`.
    OfUpdateTeam: Forbidden NotFound TooLarge UnsupportedMediaType;
    /// Error responses of `leaveTeam` and of changes of members without a body.
    OfMember: Forbidden NotFound Conflict MemberHasKeys;
    /// Error responses of `updateMember` and `transferTeam`.
    OfUpdateMember: Forbidden NotFound Conflict TooLarge UnsupportedMediaType;
    /// Error responses of `createInvitation`.
    OfInvite: Forbidden NotFound Conflict TooManyAttempts TooLarge UnsupportedMediaType;
    /// Error responses of `acceptInvitation`.
    OfAccept: InvalidToken Forbidden NotFound Conflict TooManyAttempts TooLarge UnsupportedMediaType;
    /// Error responses of operations of administrators that change a user or a team by a body.
    OfAdminChange: Forbidden NotFound Conflict MemberHasKeys TooLarge UnsupportedMediaType;
    /// Error responses of operations of administrators that delete something.
    OfAdminDelete: Forbidden NotFound Conflict OwnsTeamWithMembers MemberHasKeys;
    /// Error responses of `connectProvider` and `disconnectProvider`.
    OfProvider: NotFound LastLoginMethod;
    /// Error responses of `createApiKey` and `createTicket`.
    OfCreateKey: TooLarge UnsupportedMediaType;
    /// Error responses of `updateApiKey`.
    OfUpdateKey: NotFound TooLarge UnsupportedMediaType;
    /// Error responses of `revokeApiKey`.
    OfRevokeKey: NotFound;
}

macro_rules! open_refusals {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)*;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                by_status_of([$(ErrorCode::$code),*].iter().chain(&OPEN))
            }
        }
    )*};
}

open_refusals! {
    /// Error responses of `beginOauth` and `finishOauth`.
    OfOauth: NotFound;
    /// Error responses of `signUp`.
    OfSignUp: MailUnavailable;
    /// Error responses of `activateAccount`.
    OfActivate: InvalidToken Conflict;
    /// Error responses of `logIn`.
    OfLogin: Unauthorized AccountDisabled;
    /// Error responses of `useLink`.
    OfSignInLink: InvalidToken Unauthorized AccountDisabled;
    /// Error responses of `requestReset`.
    OfRequestReset: MailUnavailable;
    /// Error responses of `confirmReset`.
    OfConfirmReset: InvalidToken;
}

refusals! {
    /// Error responses of `getMe`, `logOut` and `listSessions`.
    OfMe: NotFound;
    /// Error responses of `switchTeam`.
    OfSwitchTeam: NotFound TooLarge UnsupportedMediaType;
    /// Error responses of `updateMe`.
    OfUpdateMe: TooLarge UnsupportedMediaType;
    /// Error responses of `deleteMe`.
    OfDeleteMe: WrongPassword Conflict OwnsTeamWithMembers TooLarge UnsupportedMediaType TooManyAttempts;
    /// Error responses of `changePassword`.
    OfPassword: WrongPassword TooLarge UnsupportedMediaType TooManyAttempts;
    /// Error responses of `endSession`.
    OfEndSession: NotFound;
}

/// Codes of every operation that needs a credential.
const EVERYWHERE: [ErrorCode; 6] = [
    ErrorCode::InvalidRequest,
    ErrorCode::Unauthorized,
    ErrorCode::Forbidden,
    ErrorCode::TooManyRequests,
    ErrorCode::InternalError,
    ErrorCode::ServiceUnavailable,
];

/// Codes of every operation that needs no credentials.
const OPEN: [ErrorCode; 7] = [
    ErrorCode::InvalidRequest,
    ErrorCode::TooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::TooManyAttempts,
    ErrorCode::TooManyRequests,
    ErrorCode::InternalError,
    ErrorCode::ServiceUnavailable,
];

/// One response per status, with an example of each of its codes.
fn by_status(own: &[ErrorCode]) -> BTreeMap<String, RefOr<Response>> {
    by_status_of(own.iter().chain(&EVERYWHERE))
}

fn by_status_of<'a>(codes: impl Iterator<Item = &'a ErrorCode>) -> BTreeMap<String, RefOr<Response>> {
    let mut statuses: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in codes {
        let of_status = statuses.entry(code.status()).or_default();
        if !of_status.contains(code) {
            of_status.push(*code);
        }
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
        ErrorCode::Unsupported => {
            "line 3, column 1, RUN: this version has no secrets: leave --secret out, and use what is not secret"
        }
        ErrorCode::InvalidToken => {
            "the link was used before, is too old, or is not complete: ask for another one"
        }
        ErrorCode::WrongPassword => "current_password is not your password",
        ErrorCode::AccountDisabled => {
            "an administrator has shut this account out: ask the operator of the server"
        }
        ErrorCode::MemberHasKeys => {
            "Grace has made 2 API keys that still work: \"ci\" (wrn_3f9a, last used 2026-01-31 09:30 UTC), \"old\" (wrn_77c0, never \
             used); say keys=revoke to end them now, or keys=keep to leave them to the team"
        }
        ErrorCode::QuotaExceeded => {
            "the team may have 10 running sandboxes (quota running), it has 10, and this needs 1 more: pause or delete some, or ask \
             an administrator of the platform for a larger quota"
        }
        ErrorCode::LastLoginMethod => {
            "you could not sign in any more: set a password first, or connect another provider"
        }
        ErrorCode::OwnsTeamWithMembers => {
            "you own the team \"shop\", which others are in: hand it over or delete it first"
        }
        ErrorCode::TooManyAttempts => "there were too many attempts; try again in 15 minutes",
        ErrorCode::MailUnavailable => {
            "this server sends no mail: its operator has to configure an SMTP server (server.smtp_host), or to make the account \
             with `wrenn user create`"
        }
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
            "the team has a snapshot named \"after-setup\": choose another name, delete it, or overwrite it"
        }
        ErrorCode::BuildFailed => "step 2 (line 2) ended with 100",
        ErrorCode::ImageNotFound => {
            "the registry has no image debian:bookwrm, or does not show it: check the name"
        }
        ErrorCode::RegistryDenied => {
            "the registry refuses access to registry.example.com/team/app: give an account"
        }
        ErrorCode::RegistryUnavailable => "the registry docker.io did not answer: try again later",
        ErrorCode::ImagePlatformMismatch => "the image is made for linux/arm64, and the host is linux/amd64",
        ErrorCode::ImageDamaged => "layer 2 of the image is not what its digest says: push the image again",
        ErrorCode::ImageTooLarge => {
            "the image has more than 10240 MiB (agent.image_max_mb): use a smaller one"
        }
        ErrorCode::BuildParked => "its worker died three times: build the template again",
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
        ErrorCode::OutOfMemory => {
            "the microVM was killed because its memory limit of 704 MiB on the host was reached. Its disk is kept: resume it with \
             memory false, which boots it from its disk, or delete it"
        }
        ErrorCode::PortNotOpen => "nothing listens on port 8000 of the sandbox: start a server there",
        ErrorCode::PortFailed => {
            "the server on the port of the sandbox broke the connection off, or does not speak HTTP"
        }
        ErrorCode::ChannelFailed => "the receiver answered 404: check the configuration of the channel",
        ErrorCode::ChannelsUnavailable => {
            "this server cannot keep secrets of channels: its operator sets server.channels_key_file"
        }
        ErrorCode::NoHostsAvailable => "no host has room for the sandbox; try again later",
        ErrorCode::HostUnavailable => "the sandbox's host does not answer; try again in a moment",
        ErrorCode::TemplateUnavailable => {
            "template \"web\" is not available: its host does not respond, and there is no store; try again when the host is back"
        }
        ErrorCode::ServiceUnavailable => "the control plane cannot reach its database; try again in a moment",
        ErrorCode::Timeout => "the sandbox's host did not answer in time; try again",
        ErrorCode::InsufficientStorage => {
            "the host's disk is full: delete sandboxes, or give the host more disk"
        }
    }
}
