// SPDX-License-Identifier: Apache-2.0
//! Changes in a directory of a sandbox, over a WebSocket.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use wrenn_api::{FileWatchFrame, SandboxId};

use crate::{Client, Error, Result, socket::Socket, transport::decode};

/// Time without frames after which a ping is sent: nothing may change, but the server answers.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Maximum number of unanswered pings in a row.
const PINGS_MAX: u32 = 4;
/// Maximum size of a frame in bytes.
const FRAME_MAX: usize = 256 << 10;

/// Changes in a directory, in order.
#[derive(Debug)]
pub struct FileChanges {
    socket: Socket,
}

impl Client {
    /// Watches a directory; with `recursive` also those below it.
    pub async fn watch_files(&self, id: SandboxId, path: &str, recursive: bool) -> Result<FileChanges> {
        let recursive = if recursive { "true" } else { "false" };
        let place = format!("{}/v1/sandboxes/{id}/files/watch", self.url());
        let unusable = |_| Error::Protocol("the URL of the API cannot be extended".to_owned());
        let query = [("path", path), ("recursive", recursive)];
        let place = Url::parse_with_params(&place, query).map_err(unusable)?;
        let place = format!("/v1/sandboxes/{id}/files/watch?{}", place.query().unwrap_or_default());
        let (socket, _) = self.socket(&place, None, FRAME_MAX).await?;
        Ok(FileChanges { socket })
    }
}

impl FileChanges {
    /// Waits for the next change; the first is [`FileWatchFrame::Start`]. Fails when the directory is gone, or the sandbox ended
    /// or was paused.
    pub async fn next(&mut self) -> Result<FileWatchFrame> {
        let mut pings = 0;
        loop {
            let Ok(received) = timeout(PING_EVERY, self.socket.next()).await else {
                pings += 1;
                let sent = timeout(PING_EVERY, self.socket.send(Message::Ping(Bytes::new()))).await;
                if pings > PINGS_MAX || !matches!(sent, Ok(Ok(()))) {
                    return Err(lost());
                }
                continue;
            };
            pings = 0;
            match received {
                Some(Ok(Message::Text(text))) => return read(text.as_bytes()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(lost()),
                Some(Ok(_)) => {}
            }
        }
    }
}

fn lost() -> Error {
    Error::Lost("the API server went away; what changed since is not known".to_owned())
}

fn read(frame: &[u8]) -> Result<FileWatchFrame> {
    match decode(frame)? {
        FileWatchFrame::Error { data, code } => Err(Error::Api {
            status: code.status(),
            code: code.as_str().to_owned(),
            message: data,
            request_id: None,
            sandbox_id: None,
        }),
        frame => Ok(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_understood_and_errors_are_those_of_the_api() {
        let create = read(br#"{"type":"create","name":"a b"}"#);
        assert!(matches!(create, Ok(FileWatchFrame::Create { name }) if name == "a b"));
        let error = read(br#"{"type":"error","data":"paused","code":"invalid_state"}"#);
        assert_eq!(
            error.err().and_then(|error| error.code().map(str::to_owned)).as_deref(),
            Some("invalid_state")
        );
        assert!(matches!(read(b"{}"), Err(Error::Protocol(_))));
    }
}
