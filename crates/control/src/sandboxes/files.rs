// SPDX-License-Identifier: Apache-2.0
//! Files and archives of sandboxes, streamed: none is ever in memory as a whole.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use connectrpc::ConnectError;
use futures::{
    SinkExt as _,
    channel::mpsc,
    stream::{self, BoxStream, StreamExt as _},
};
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    __buffa::oneof::{read_file_response, write_file_request::Part},
    FileForm, ReadFileRequest, WriteFileRequest, WriteFileResponse,
    read_file_response::State,
    write_file_request::{Commit, Open},
};

use super::{
    attached::Attached,
    paths::{AnyPath, FilePath},
    rights::{OfUser, Rights},
};
use crate::{
    error::Fault,
    stall::{By, moving},
};

/// Number of buffered pieces of an upload, and the maximum size of one, in bytes.
const PENDING: usize = 4;
const PIECE: usize = 128 << 10;
/// Time limit for a guest to write the whole file to its disk, which may be slow.
const SETTLE: Duration = Duration::from_secs(600);

/// Conditions under which a file is read, and which part of it: fields of HTTP (RFC 9110); empty if the client sent none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conditions {
    /// The part.
    pub range: String,
    /// The version of which the client has another part.
    pub if_range: String,
    /// Versions that the client has.
    pub if_none_match: String,
    /// The time of the version that the client has.
    pub if_modified_since: String,
}

/// What is sent of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sent {
    /// All of it.
    Whole,
    /// A part: where it begins, and its length.
    Part(u64, u64),
    /// Nothing, because the client has this version.
    Unchanged,
    /// Nothing, because there is no such part.
    NoSuchPart,
}

/// Content of a file or an archive that is read.
#[non_exhaustive]
pub struct Download {
    /// What is sent of it.
    pub sent: Sent,
    /// Size of the whole file in bytes, if it is known in advance.
    pub size: Option<u64>,
    /// Version of the content, as fields of HTTP; empty if there is none. What it says comes from the sandbox.
    pub etag: String,
    /// Time of the version.
    pub last_modified: String,
    /// The content, exactly of the size that was told. If it breaks off, its last item is a fault.
    pub content: BoxStream<'static, Result<Bytes, Fault>>,
}

/// Content of a file or an archive that is written.
pub struct Upload {
    pieces: mpsc::Sender<WriteFileRequest>,
    max: Option<usize>,
    sent: usize,
}

impl Upload {
    /// Sends a piece of the content; false if the sandbox takes no more, because it has rejected the file.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<bool, Fault> {
        self.sent = self.sent.saturating_add(bytes.len());
        if let Some(max) = self.max.filter(|max| self.sent > *max) {
            let message = format!("the file is larger than {max} bytes (server.upload_body)");
            return Err(Fault::new(ErrorCode::TooLarge, message));
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if !self.pass(message(Part::Chunk(piece.into()))).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn pass(&mut self, request: WriteFileRequest) -> Result<bool, Fault> {
        Ok(moving(By::SandboxTakes, self.pieces.send(request)).await?.is_ok())
    }
}

/// What is written, and where.
#[derive(Debug, Clone)]
pub struct Destination {
    open: Open,
    max: Option<usize>,
}

impl Destination {
    /// A file. Missing parents are created.
    pub fn file(path: FilePath, user: OfUser, rights: Rights) -> Self {
        let (mode, owner, group) = rights.into_parts();
        let open =
            Open { path: path.into_text(), user: user.into_name(), mode, owner, group, ..Default::default() };
        Self { open, max: None }
    }

    /// A directory into which an archive is unpacked. It is created if it is missing.
    pub fn directory(path: AnyPath, user: OfUser) -> Self {
        let form = FileForm::FILE_FORM_TAR.into();
        Self {
            open: Open { path: path.into_text(), user: user.into_name(), form, ..Default::default() },
            max: None,
        }
    }

    /// Refuses more than this number of bytes.
    #[must_use]
    pub fn of_at_most(self, bytes: usize) -> Self {
        Self { max: Some(bytes), ..self }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Number of bytes.
    pub size: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Number of entries of an archive.
    pub entries: u64,
}

impl Attached {
    /// Writes a file, which is replaced only when its content is complete, or unpacks an archive. `content` sends it, and
    /// gives the upload back at its end; if it fails, the old file stays. If the sandbox rejects the file early, `content`
    /// is dropped.
    pub async fn write_file<F>(
        &self,
        to: Destination,
        content: impl FnOnce(Upload) -> F,
    ) -> Result<Written, Fault>
    where
        F: Future<Output = Result<Upload, Fault>>,
    {
        let (mut pieces, requests) = mpsc::channel(PENDING);
        let open = Open { sandbox_id: self.id.to_string(), ..to.open };
        let _ = pieces.send(message(Part::Open(open.into()))).await;
        let sending = content(Upload { pieces, max: to.max, sent: 0 });
        let mut writing = pin!(self.agent.write_file(requests));
        let mut sending = pin!(async move {
            // If the upload is dropped without a commit, the agent leaves the file unchanged.
            let mut upload = sending.await?;
            upload.pass(message(Part::Commit(Commit::default().into()))).await
        });
        let written = tokio::select! {
            written = &mut writing => {
                // Rejected, or else the rest of what is sent has no effect.
                let written = written?;
                sending.await?;
                written
            }
            sent = &mut sending => {
                sent?;
                settled(writing).await?
            }
        };
        let WriteFileResponse { size, sha256, entries, .. } = written.into_owned();
        Ok(Written { size, sha256, entries })
    }

    /// Reads a file, or a part of it.
    pub async fn read_file(
        self,
        path: FilePath,
        user: OfUser,
        conditions: Conditions,
    ) -> Result<Download, Fault> {
        let Conditions { range, if_range, if_none_match, if_modified_since } = conditions;
        let request = ReadFileRequest {
            sandbox_id: self.id.to_string(),
            path: path.into_text(),
            user: user.into_name(),
            range,
            if_range,
            if_none_match,
            if_modified_since,
            ..Default::default()
        };
        self.read(request).await
    }

    /// Reads a directory with its content, as a tar archive.
    pub async fn read_archive(self, path: AnyPath, user: OfUser) -> Result<Download, Fault> {
        let form = FileForm::FILE_FORM_TAR.into();
        let (sandbox_id, path) = (self.id.to_string(), path.into_text());
        let user = user.into_name();
        self.read(ReadFileRequest { sandbox_id, path, user, form, ..Default::default() }).await
    }

    async fn read(self, request: ReadFileRequest) -> Result<Download, Fault> {
        let mut parts = moving(By::SandboxSends, self.agent.read_file(request)).await??;
        let nothing = || Fault::new(ErrorCode::AgentError, "the sandbox's host sent no file; try again");
        let first =
            moving(By::SandboxSends, parts.message()).await??.ok_or_else(nothing)?.to_owned_message().part;
        let Some(read_file_response::Part::Head(head)) = first else { return Err(nothing()) };
        let head = *head;
        let (sent, left) = match head.state.as_known() {
            Some(State::STATE_WHOLE) => (Sent::Whole, head.size),
            Some(State::STATE_PART) => (Sent::Part(head.start, head.length), Some(head.length)),
            Some(State::STATE_UNCHANGED) => (Sent::Unchanged, Some(0)),
            Some(State::STATE_NO_SUCH_PART) => (Sent::NoSuchPart, Some(0)),
            None => return Err(nothing()),
        };
        let content = stream::try_unfold((parts, left), async |(mut parts, left)| {
            loop {
                let Some(message) = moving(By::SandboxSends, parts.message()).await?? else {
                    return match left {
                        None | Some(0) => Ok::<_, Fault>(None),
                        Some(_) => Err(shrunk()),
                    };
                };
                let Some(read_file_response::Part::Chunk(bytes)) = message.to_owned_message().part else {
                    continue;
                };
                let mut bytes = Bytes::from(bytes);
                // Data appended after the size was announced is not sent.
                bytes.truncate(left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX)));
                let left = left.map(|left| left - bytes.len() as u64);
                return Ok(Some((bytes, (parts, left))));
            }
        });
        // The sandbox is active as long as it is read.
        let content = content.inspect(move |_| {
            let _ = &self;
        });
        let (etag, last_modified) = (head.etag, head.last_modified);
        Ok(Download { sent, size: head.size, etag, last_modified, content: content.boxed() })
    }
}

fn message(part: Part) -> WriteFileRequest {
    WriteFileRequest { part: Some(part), ..Default::default() }
}

/// Waits for the response to a write that was sent completely.
async fn settled<T>(writing: impl Future<Output = Result<T, ConnectError>>) -> Result<T, Fault> {
    let late = |_| {
        let message = format!(
            "the sandbox did not bring the file to its disk within {} s; try again, or see whether its guest works",
            SETTLE.as_secs()
        );
        Fault::new(ErrorCode::Timeout, message)
    };
    Ok(tokio::time::timeout(SETTLE, writing).await.map_err(late)??)
}

fn shrunk() -> Fault {
    Fault::new(ErrorCode::Conflict, "the file became shorter while it was read; read it again")
}
