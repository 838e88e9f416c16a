// SPDX-License-Identifier: Apache-2.0
//! Ports of sandboxes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SandboxId;

/// How a port of a sandbox is reached through the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
    "port": 8000,
    "url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727",
    "public": false,
    "token": "0b6ed1f2b0ab4b7e8c0de0b5a3c1f3a45d8e4b7a91c2465f9a3f0d5b7e6c1a28",
    "browser_url": "http://8000-sb03halx8fdhw2fu3txwbd0kdw0.localhost:9727/?wrenn_traffic_token=0b6ed1f2b0ab4b7e8c0de0b5a3c1f3a45d8e4b7a91c2465f9a3f0d5b7e6c1a28"
}))]
pub struct PortAddress {
    /// The sandbox.
    #[schema(value_type = String, pattern = "^sb[0-9a-e][0-9a-z]{24}$")]
    pub sandbox_id: SandboxId,
    /// The port.
    #[schema(minimum = 1)]
    pub port: u16,
    /// URL of the port, without a path.
    pub url: String,
    /// Whether everybody may use it.
    pub public: bool,
    /// Traffic token of the sandbox, for all of its ports: programs send it in the header `X-Wrenn-Traffic-Token`. Absent if
    /// the ports are public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// URL with which a browser gets the page of the port; it has the token, if one is needed, so it is as secret as that.
    pub browser_url: String,
}
