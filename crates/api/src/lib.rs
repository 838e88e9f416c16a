// SPDX-License-Identifier: Apache-2.0
//! Types of the REST API, shared by the control plane, the client and the command line: typed ids, request
//! and response bodies, and error codes. Does no I/O.

mod entry;
mod error;
mod event;
mod exec_frames;
mod frame_schema;
mod id;
mod integer;
mod port;
mod process;
mod reference;
mod sandbox;
mod snapshot;
mod template;
mod terminal;
mod terminal_frames;
mod transfer;

pub use entry::{EntryPath, FileEntries, FileEntry, FileKind, ListFiles, MoveFile, OneEntry};
pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use event::{Event, EventKind, Resync, SandboxEvent, SandboxEventKind, ServerSentEvent};
pub use exec_frames::{
    ExecClientFrame, ExecError, ExecExit, ExecInput, ExecLost, ExecOutput, ExecServerFrame, ExecSignal,
    ExecStart, ExecStarted, ExecStdinClosed,
};
pub use id::{ApiKeyId, HostId, IdError, SandboxId, TeamId};
pub use port::PortAddress;
pub use process::{BackgroundProcess, ProcessInfo, ProcessList, Signal, SignalError, Signalled};
pub use reference::{ReferenceError, SandboxRef};
pub use sandbox::{
    CreateSandbox, DriverHealth, Encoding, ExecRequest, ExecResponse, Health, LabelFilter, OnTimeout,
    PauseSandbox, PingSandbox, ReadFile, ResumeSandbox, Sandbox, SandboxStatus, UpdateSandbox,
};
pub use snapshot::{CreateSnapshot, Snapshot};
pub use template::{Template, TemplateKind};
pub use terminal::{TerminalCursor, TerminalScreen, TerminalSize};
pub use terminal_frames::{
    TerminalClientFrame, TerminalConnect, TerminalError, TerminalExit, TerminalInput, TerminalOutput,
    TerminalServerFrame, TerminalStart, TerminalStarted,
};
pub use transfer::{
    ChangeFile, CopyFile, FileOperation, FileWatchFrame, SignFile, SignedFile, WrittenArchive, WrittenFile,
};
