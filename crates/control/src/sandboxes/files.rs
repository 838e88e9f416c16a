// SPDX-License-Identifier: Apache-2.0
//! Files of sandboxes, streamed: no file is ever in memory as a whole.

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
    ReadFileRequest, WriteFileRequest,
    write_file_request::{Commit, Open},
};

use super::attached::Attached;
use crate::{
    error::Fault,
    stall::{By, moving},
};

/// Maximum length of a path, in characters.
const PATH_MAX: usize = 4096;
/// Number of buffered pieces of an upload.
const PENDING: usize = 4;
/// Time limit for a guest to write the whole file to its disk, which may be slow.
const SETTLE: Duration = Duration::from_secs(600);

/// Path of a file in a sandbox: absolute, or relative to a home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(String);

impl FilePath {
    /// Maximum length of a path, in bytes.
    pub const MAX: usize = PATH_MAX * 4;

    /// Checks a path as far as possible without the sandbox.
    pub fn new(path: impl Into<String>) -> Result<Self, Fault> {
        let path = checked_path("path", path.into())?;
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.bytes().all(|byte| byte == b'.') {
            return Err(Fault::invalid(
                "path: it ends with '/' or with dots only, so it names a directory, not a file",
            ));
        }
        Ok(Self(path))
    }

    /// Returns the fault of a path that is too long or no path at all.
    pub fn wrong_length() -> Fault {
        wrong_length("path")
    }
}

/// Checks the length of a path; `field` is its name in the request.
pub(super) fn checked_path(field: &str, path: String) -> Result<String, Fault> {
    let good = !path.is_empty() && path.chars().count() <= PATH_MAX && !path.contains('\0');
    if good { Ok(path) } else { Err(wrong_length(field)) }
}

fn wrong_length(field: &str) -> Fault {
    Fault::invalid(format!("{field}: 1 to {PATH_MAX} characters without NUL"))
}

/// Content of a file that is read.
pub struct Download {
    /// Size in bytes, if it is known in advance.
    pub size: Option<u64>,
    /// The content, exactly of this size. If it breaks off, its last item is a fault.
    pub content: BoxStream<'static, Result<Bytes, Fault>>,
}

/// Content of a file that is written.
pub struct Upload {
    pieces: mpsc::Sender<WriteFileRequest>,
    max: usize,
    sent: usize,
}

impl Upload {
    /// Sends a piece of the content; false if the sandbox takes no more, because it has rejected the file.
    pub async fn send(&mut self, piece: Bytes) -> Result<bool, Fault> {
        self.sent += piece.len();
        if self.sent > self.max {
            let message = format!("the file is larger than {} bytes (server.upload_body)", self.max);
            return Err(Fault::new(ErrorCode::TooLarge, message));
        }
        self.pass(message(Part::Chunk(piece.into()))).await
    }

    async fn pass(&mut self, request: WriteFileRequest) -> Result<bool, Fault> {
        Ok(moving(By::SandboxTakes, self.pieces.send(request)).await?.is_ok())
    }
}

impl Attached {
    /// Writes a file, which is replaced only when its content is complete. `content` sends it, and gives the
    /// upload back at its end; if it fails, the old file stays. If the sandbox rejects the file early, `content` is
    /// dropped.
    pub async fn write_file<F>(&self, path: FilePath, content: impl FnOnce(Upload) -> F) -> Result<(), Fault>
    where
        F: Future<Output = Result<Upload, Fault>>,
    {
        let (mut pieces, requests) = mpsc::channel(PENDING);
        let open = Open { sandbox_id: self.id.to_string(), path: path.0, ..Default::default() };
        let _ = pieces.send(message(Part::Open(open.into()))).await;
        let sending = content(Upload { pieces, max: self.upload_max, sent: 0 });
        let mut writing = pin!(self.agent.write_file(requests));
        let mut sending = pin!(async move {
            // If the upload is dropped without a commit, the agent leaves the file unchanged.
            let mut upload = sending.await?;
            upload.pass(message(Part::Commit(Commit::default().into()))).await
        });
        tokio::select! {
            written = &mut writing => {
                // Rejected, or else the rest of what is sent has no effect.
                written?;
                sending.await?;
            }
            sent = &mut sending => {
                sent?;
                settled(writing).await?;
            }
        }
        Ok(())
    }

    /// Reads a file.
    pub async fn read_file(self, path: FilePath) -> Result<Download, Fault> {
        let request = ReadFileRequest { sandbox_id: self.id.to_string(), path: path.0, ..Default::default() };
        let mut parts = moving(By::SandboxSends, self.agent.read_file(request)).await??;
        let nothing = || Fault::new(ErrorCode::AgentError, "the sandbox's host sent no file; try again");
        let first =
            moving(By::SandboxSends, parts.message()).await??.ok_or_else(nothing)?.to_owned_message().part;
        let size = match first {
            Some(read_file_response::Part::Size(size)) => Some(size),
            Some(read_file_response::Part::Unsized(_)) => None,
            _ => return Err(nothing()),
        };
        let content = stream::try_unfold((parts, size), async |(mut parts, left)| {
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
        Ok(Download { size, content: content.boxed() })
    }
}

fn message(part: Part) -> WriteFileRequest {
    WriteFileRequest { part: Some(part), ..Default::default() }
}

/// Waits for the response to a write that was sent completely.
async fn settled<T>(writing: impl Future<Output = Result<T, ConnectError>>) -> Result<(), Fault> {
    let late = |_| {
        let message = format!(
            "the sandbox did not bring the file to its disk within {} s; try again, or see whether its guest works",
            SETTLE.as_secs()
        );
        Fault::new(ErrorCode::Timeout, message)
    };
    tokio::time::timeout(SETTLE, writing).await.map_err(late)??;
    Ok(())
}

fn shrunk() -> Fault {
    Fault::new(ErrorCode::Conflict, "the file became shorter while it was read; read it again")
}
