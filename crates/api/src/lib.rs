// SPDX-License-Identifier: Apache-2.0
//! Types of the REST API, shared by the control plane, the client and the command line: typed ids, request
//! and response bodies, and error codes. Does no I/O.

mod account;
mod actor;
mod audit;
mod build;
mod channel;
mod entry;
mod error;
mod event;
mod exec_frames;
mod frame_schema;
mod id;
mod image;
mod integer;
mod key;
mod metrics;
mod oauth;
mod out_of_memory;
mod platform;
mod port;
mod process;
mod reference;
mod sandbox;
mod secret;
mod snapshot;
mod team;
mod template;
mod terminal;
mod terminal_frames;
mod transfer;
mod usage;

pub use account::{
    ChangePassword, ConfirmReset, DeleteMe, KeptIn, Login, Me, Notice, RequestReset, Session, SignUp,
    SignedIn, SwitchTeam, UpdateMe, UseLink,
};
pub use actor::{Actor, ActorKind, Cause, Caused};
pub use audit::{AuditOutcome, AuditRecord, AuditedResource, ExportFormat};
pub use build::{
    Build, BuildError, BuildLogEntry, BuildSecrets, BuildStatus, BuildStep, BuildStepStatus, BuildStream,
    CreateBuild,
};
pub use channel::{
    Channel, ChannelActor, ChannelConfig, ChannelEvent, ChannelProvider, ChannelResource, ConfigureChannel,
    CreateChannel, Delivery, DeliveryStatus, TestChannel, TestedChannel, UpdateChannel, Wanted,
};
pub use entry::{EntryPath, FileEntries, FileEntry, FileKind, ListFiles, MoveFile, OneEntry};
pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use event::{
    Event, EventHost, EventKind, HostEvent, Resync, SandboxEvent, ServerSentEvent, SnapshotEvent,
    WantedEventKind,
};
pub use exec_frames::{
    ExecClientFrame, ExecError, ExecExit, ExecInput, ExecLost, ExecOutput, ExecServerFrame, ExecSignal,
    ExecStart, ExecStarted, ExecStdinClosed,
};
pub use id::{
    ApiKeyId, AuditId, BuildId, ChannelId, DeliveryId, HostId, IdError, InvitationId, SandboxId, SessionId,
    TeamId, UserId,
};
pub use image::{Image, RegistryAccount, SandboxImage};
pub use key::{ApiKey, CreateApiKey, CreateTicket, CreatedApiKey, CreatedTicket, KeyMaker, UpdateApiKey};
pub use metrics::{MetricsPoint, MetricsRange, SandboxMetrics};
pub use oauth::ConnectProvider;
pub use out_of_memory::OutOfMemory;
pub use platform::{
    AdminHost, AdminSandbox, AdminTeam, AdminTemplate, AdminUser, MadeKeys, SetActive, SetAdmin, SetByoc,
    UserStatus,
};
pub use port::PortAddress;
pub use process::{
    BackgroundProcess, KilledProcess, ProcessInfo, ProcessList, Signal, SignalError, Signalled,
};
pub use reference::{ReferenceError, SandboxRef};
pub use sandbox::{
    CreateSandbox, DriverHealth, Encoding, ExecRequest, ExecResponse, Health, LabelFilter, OnTimeout,
    PauseSandbox, PingSandbox, ReadFile, ResumeSandbox, Sandbox, SandboxStatus, UpdateSandbox,
};
pub use secret::Secret;
pub use snapshot::{CreateSnapshot, Snapshot};
pub use team::{
    AcceptInvitation, CreateInvitation, CreateTeam, GivenRole, Invitation, MadeInvitation, MyInvitation,
    Quota, QuotaName, Team, TeamMember, TeamQuotas, TeamRole, TransferTeam, UpdateMember, UpdateTeam,
};
pub use template::{MoveTag, PrunedCache, Template, TemplateKind, TemplateVersion};
pub use terminal::{TerminalCursor, TerminalScreen, TerminalSize};
pub use terminal_frames::{
    TerminalClientFrame, TerminalConnect, TerminalError, TerminalExit, TerminalInput, TerminalOutput,
    TerminalServerFrame, TerminalStart, TerminalStarted,
};
pub use transfer::{
    ChangeFile, CopyFile, FileOperation, FileWatchFrame, SignFile, SignedFile, WrittenArchive, WrittenFile,
};
pub use usage::{Stats, StatsLevel, StatsPoint, StatsRange, Usage, UsageAmounts, UsageDay};
