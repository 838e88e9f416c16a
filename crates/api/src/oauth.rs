// SPDX-License-Identifier: Apache-2.0
//! Accounts of users at providers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a browser goes to connect an account at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"auth_url": "https://github.com/login/oauth/authorize?response_type=code&client_id=Iv1.8a61f9b3a7aba766"}))]
pub struct ConnectProvider {
    /// URL of the provider, for the browser that has got the cookie of this response.
    pub auth_url: String,
}
