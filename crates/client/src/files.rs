// SPDX-License-Identifier: Apache-2.0
//! Files of a sandbox as they are, and directories as tar archives, streamed both ways; and URLs for them that need no API
//! key.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::{Body, Method, RequestBuilder, Response, header};
use tokio::time::timeout;
use wrenn_api::{SandboxId, SignFile, SignedFile, WrittenArchive, WrittenFile};

use crate::{
    Client, Error, Result,
    transport::{ANSWER_MAX, causes},
};

/// Time limit of an upload. The server ends one that stands still long before.
const UPLOAD_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Time limit for the start of a response, and between two pieces of it.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the start of an archive, before which the server looks at all that is to be in it.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(90);

/// How a file is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The user whom a new file belongs to, and from whose home directory a relative path begins.
    pub user: Option<String>,
    /// Permission bits. Else they are those of the file that is replaced, or 0644.
    pub mode: Option<u32>,
    /// The owner, by name or number.
    pub owner: Option<String>,
    /// The group, by name or number.
    pub group: Option<String>,
    /// Size of the content in bytes, if it is known.
    pub size: Option<u64>,
}

/// How a file is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The user from whose home directory a relative path begins.
    pub user: Option<String>,
    /// The part to read, as HTTP has it: `bytes=0-99`.
    pub range: Option<String>,
}

/// Content that is read.
pub struct FileContent<S> {
    /// Number of bytes that come, if it is known.
    pub size: Option<u64>,
    /// The pieces. If it breaks off, the last one is an error.
    pub pieces: S,
}

impl Client {
    /// Writes a file of any size, and creates missing parent directories. The file is replaced when the content is complete.
    pub async fn write_file(
        &self,
        id: SandboxId,
        path: &str,
        options: &WriteOptions,
        content: impl Into<Body>,
    ) -> Result<WrittenFile> {
        let mode = options.mode.map(|mode| format!("{mode:04o}"));
        let call = self.content(Method::PUT, id, "content", path).query(
            &[
                ("user", options.user.as_deref()),
                ("mode", mode.as_deref()),
                ("owner", options.owner.as_deref()),
                ("group", options.group.as_deref()),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect::<Vec<_>>(),
        );
        let call = match options.size {
            Some(size) => call.header(header::CONTENT_LENGTH, size),
            None => call,
        };
        let call = call.header(header::CONTENT_TYPE, "application/octet-stream");
        self.json(call.timeout(UPLOAD_LIMIT).body(content), ANSWER_MAX).await
    }

    /// Reads a file of any size, or a part of it.
    pub async fn read_file(
        &self,
        id: SandboxId,
        path: &str,
        options: &ReadOptions,
    ) -> Result<FileContent<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>>> {
        let mut call = of_user(self.content(Method::GET, id, "content", path), options.user.as_deref());
        if let Some(range) = &options.range {
            call = call.header(header::RANGE, range);
        }
        self.read(call, IDLE_LIMIT).await
    }

    /// Unpacks a tar archive into a directory, with the rights of the user.
    pub async fn write_archive(
        &self,
        id: SandboxId,
        path: &str,
        user: Option<&str>,
        archive: impl Into<Body>,
    ) -> Result<WrittenArchive> {
        let call = of_user(self.content(Method::PUT, id, "archive", path), user);
        let call = call.header(header::CONTENT_TYPE, "application/x-tar");
        self.json(call.timeout(UPLOAD_LIMIT).body(archive), ANSWER_MAX).await
    }

    /// Reads a directory with its content as a tar archive, with the rights of the user.
    pub async fn read_archive(
        &self,
        id: SandboxId,
        path: &str,
        user: Option<&str>,
    ) -> Result<FileContent<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>>> {
        let call = of_user(self.content(Method::GET, id, "archive", path), user);
        self.read(call, ARCHIVE_LIMIT).await
    }

    /// Signs a URL with which a file is read or written without an API key. The result has the whole URL.
    pub async fn sign_file(&self, id: SandboxId, what: &SignFile) -> Result<SignedFile> {
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/files/sign")).json(what);
        let signed: SignedFile = self.json(call, ANSWER_MAX).await?;
        Ok(SignedFile { url: format!("{}{}", self.url(), signed.url), ..signed })
    }

    fn content(&self, method: Method, id: SandboxId, what: &str, path: &str) -> RequestBuilder {
        self.request(method, &format!("/v1/sandboxes/{id}/files/{what}")).query(&[("path", path)])
    }

    async fn read(
        &self,
        call: RequestBuilder,
        limit: Duration,
    ) -> Result<FileContent<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>>> {
        let response = timeout(limit, self.send(call)).await.map_err(|_| silent(limit))??;
        let size = response.headers().get(header::CONTENT_LENGTH);
        let size = size.and_then(|size| size.to_str().ok()?.parse().ok());
        Ok(FileContent { size, pieces: Box::pin(pieces(response)) })
    }
}

fn of_user(call: RequestBuilder, user: Option<&str>) -> RequestBuilder {
    match user {
        Some(user) => call.query(&[("user", user)]),
        None => call,
    }
}

fn silent(limit: Duration) -> Error {
    Error::Lost(format!("the API sent nothing for {} s", limit.as_secs()))
}

fn pieces(response: Response) -> impl Stream<Item = Result<Bytes>> + Send {
    let body = Box::pin(response.bytes_stream());
    stream::try_unfold(body, |mut body| async move {
        match timeout(IDLE_LIMIT, body.next()).await {
            Err(_) => Err(silent(IDLE_LIMIT)),
            Ok(None) => Ok(None),
            Ok(Some(Ok(piece))) => Ok(Some((piece, body))),
            Ok(Some(Err(error))) => Err(Error::Lost(format!("the file broke off: {}", causes(&error)))),
        }
    })
}
