// SPDX-License-Identifier: Apache-2.0
//! API keys of the team.

use reqwest::Method;
use wrenn_api::{ApiKey, ApiKeyId, CreateApiKey, CreatedApiKey, UpdateApiKey};

use crate::{
    Client, Result,
    paging::ALL,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Creates an API key. Only this answer has the key itself.
    pub async fn create_api_key(&self, new: &CreateApiKey) -> Result<CreatedApiKey> {
        let call = self.request(Method::POST, "/v1/api-keys").timeout(REQUEST_LIMIT).json(new);
        self.json(call, ANSWER_MAX).await
    }

    /// Lists the team's API keys that were not revoked, newest first.
    pub async fn list_api_keys(&self) -> Result<Vec<ApiKey>> {
        self.every("/v1/api-keys", &ALL).await
    }

    /// Changes an API key; its secret stays.
    pub async fn update_api_key(&self, key: ApiKeyId, update: &UpdateApiKey) -> Result<ApiKey> {
        let call = self.request(Method::PATCH, &format!("/v1/api-keys/{key}")).timeout(REQUEST_LIMIT);
        self.json(call.json(update), ANSWER_MAX).await
    }

    /// Revokes an API key at once, which ends what is open by it.
    pub async fn revoke_api_key(&self, key: ApiKeyId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/api-keys/{key}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }
}
