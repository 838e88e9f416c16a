// SPDX-License-Identifier: Apache-2.0
//! Accounts of users at providers. They are connected in a browser.

use reqwest::Method;

use crate::{Client, Result, transport::REQUEST_LIMIT};

impl Client {
    /// Disconnects the user's account at a provider, such as `github`.
    pub async fn disconnect_provider(&self, provider: &str) -> Result<()> {
        let path = format!("/v1/me/providers/{provider}");
        self.send(self.request(Method::DELETE, &path).timeout(REQUEST_LIMIT)).await.map(drop)
    }
}
