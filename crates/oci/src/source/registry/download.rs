// SPDX-License-Identifier: Apache-2.0
//! Downloads of blobs, which go on where they broke.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};

use super::connection::{Connection, causes};
use crate::{digest::Digest, manifest::Descriptor, source::SourceError};

/// Maximum number of times that a download is resumed, also if it got further each time.
const RESUMES: u32 = 64;

/// Downloads a blob in pieces. What comes is not verified here.
pub(super) fn pieces(
    connection: Arc<Connection>,
    descriptor: &Descriptor,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static + use<> {
    let download = Download {
        connection,
        digest: descriptor.digest,
        size: descriptor.size,
        got: 0,
        again: 0,
        response: None,
        fruitless: 0,
        resumes: 0,
    };
    stream::try_unfold(download, Download::next)
}

struct Download {
    connection: Arc<Connection>,
    digest: Digest,
    size: u64,
    /// Bytes that were returned.
    got: u64,
    /// Bytes of the answer that were returned before it broke, and came again.
    again: u64,
    response: Option<Response>,
    /// How often it broke since it got further, and in all.
    fruitless: u32,
    resumes: u32,
}

impl Download {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, SourceError> {
        while self.got < self.size {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => self.begin().await?,
            };
            let cause = match response.chunk().await {
                Ok(Some(mut piece)) => {
                    self.response = Some(response);
                    let known = self.again.min(piece.len() as u64);
                    self.again -= known;
                    let new = piece.split_off(known as usize);
                    if new.is_empty() {
                        continue;
                    }
                    self.got += new.len() as u64;
                    self.fruitless = 0;
                    return Ok(Some((new, self)));
                }
                Ok(None) => "the connection ended early".to_owned(),
                Err(error) => causes(&error),
            };
            let error = self.connection.unreachable(response.url(), cause);
            self.resumes += 1;
            if self.resumes > RESUMES {
                return Err(error);
            }
            self.connection.pause(&mut self.fruitless, error).await?;
        }
        Ok(None)
    }

    /// Asks for what is missing.
    async fn begin(&mut self) -> Result<Response, SourceError> {
        let response = self.connection.blob(&self.digest.to_string(), self.got).await?;
        let image = self.connection.image();
        if response.status() == StatusCode::PARTIAL_CONTENT {
            self.again = 0;
            if first_byte(&response) != Some(self.got) {
                let cause = "it sends another part than it was asked for".to_owned();
                return Err(self.connection.unreachable(response.url(), cause));
            }
        } else {
            self.again = self.got;
            if response.content_length().is_some_and(|length| length != self.size) {
                return Err(SourceError::damaged(image, self.digest));
            }
        }
        Ok(response)
    }
}

/// Returns where a part of a blob begins.
fn first_byte(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
