// SPDX-License-Identifier: Apache-2.0
//! Reading and writing files of a sandbox as streams.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use reqwest::{Body, Method, Response, multipart};
use tokio::time::timeout;
use wrenn_api::{ReadFile, SandboxId};

use crate::{Client, Error, Result, transport::causes};

/// Time limit of an upload.
const UPLOAD_LIMIT: Duration = Duration::from_secs(3600);
/// Time limit for the start of a response, and between two pieces of it.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

impl Client {
    /// Writes a file and creates missing parent directories. With `size`, the server can reject a file that is too large
    /// before it is transferred.
    pub async fn write_file(
        &self,
        id: SandboxId,
        path: &str,
        content: impl Into<Body>,
        size: Option<u64>,
    ) -> Result<()> {
        // The path must be the first part: the server streams the file and needs the path before.
        let part = match size {
            Some(size) => multipart::Part::stream_with_length(content, size),
            None => multipart::Part::stream(content),
        };
        let part = part.file_name("upload");
        let form = multipart::Form::new().text("path", path.to_owned()).part("file", part);
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/files/write"));
        self.send(call.timeout(UPLOAD_LIMIT).multipart(form)).await.map(drop)
    }

    /// Reads a file as a stream.
    pub async fn read_file(
        &self,
        id: SandboxId,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/files/read"));
        let answer = self.send(call.json(&ReadFile { path: path.to_owned() }));
        let response = timeout(IDLE_LIMIT, answer).await.map_err(|_| silent())??;
        Ok(Box::pin(pieces(response)))
    }
}

fn silent() -> Error {
    Error::Lost(format!("the API sent nothing for {} s", IDLE_LIMIT.as_secs()))
}

fn pieces(response: Response) -> impl Stream<Item = Result<Bytes>> + Send {
    let body = Box::pin(response.bytes_stream());
    stream::try_unfold(body, |mut body| async move {
        match timeout(IDLE_LIMIT, body.next()).await {
            Err(_) => Err(silent()),
            Ok(None) => Ok(None),
            Ok(Some(Ok(piece))) => Ok(Some((piece, body))),
            Ok(Some(Err(error))) => Err(Error::Lost(format!("the file broke off: {}", causes(&error)))),
        }
    })
}
