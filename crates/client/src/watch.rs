// SPDX-License-Identifier: Apache-2.0
//! Changes in a directory of a sandbox, over a WebSocket.

use reqwest::Url;
use wrenn_api::{FileWatchFrame, SandboxId};

use crate::{
    Client, Error, Result,
    transport::decode,
    websocket::{Purpose, Received, Receiver},
};

const PURPOSE: Purpose = Purpose {
    subprotocol: None,
    broken: "what changed since is not known",
    silent: "what changed since is not known",
};

/// Changes in a directory, in order.
#[derive(Debug)]
pub struct FileChanges {
    frames: Receiver,
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
        let (_, frames) = self.web_socket(&place, PURPOSE).await?;
        Ok(FileChanges { frames })
    }
}

impl FileChanges {
    /// Waits for the next change; the first is [`FileWatchFrame::Start`]. Fails when the directory is gone, or the sandbox ended
    /// or was paused.
    pub async fn next(&mut self) -> Result<FileWatchFrame> {
        loop {
            if let Received::Text(text) = self.frames.next().await? {
                return read(&text);
            }
        }
    }
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
