// SPDX-License-Identifier: Apache-2.0
//! Images: those that the team has uploaded, and those of registries that hosts have for it.

use std::time::Duration;

use reqwest::{Body, Method, header};
use wrenn_api::Image;

use crate::{
    Client, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

/// Time limit of an upload and of what the server does with it. The server ends one that stands still long before.
const UPLOAD_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 64 << 20;

impl Client {
    /// Uploads an image: a tar archive with an OCI layout or of `docker save`, also compressed with gzip or zstd. It is sent as a
    /// stream. Without a name (`NAME` or `NAME:TAG`), it has the one that the archive gives to it.
    pub async fn load_image(&self, name: Option<&str>, archive: impl Into<Body>) -> Result<Image> {
        let query: Vec<_> = name.map(|name| ("name", name)).into_iter().collect();
        let call = self.request(Method::POST, "/v1/images").query(&query).timeout(UPLOAD_LIMIT);
        let call = call.header(header::CONTENT_TYPE, "application/octet-stream");
        self.json(call.body(archive), ANSWER_MAX).await
    }

    /// Lists the images, by reference.
    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let call = self.request(Method::GET, "/v1/images").timeout(REQUEST_LIMIT);
        self.json(call, LIST_MAX).await
    }

    /// Deletes an image that was uploaded, by `NAME` or `NAME:TAG`.
    pub async fn delete_image(&self, name: &str) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/images/{name}"));
        self.send(call.timeout(REQUEST_LIMIT)).await.map(drop)
    }
}
