// SPDX-License-Identifier: Apache-2.0
//! Ports of sandboxes: their addresses at the proxy, and connections to them by API key.

use reqwest::Method;
use tokio::time::timeout;
use wrenn_api::{PortAddress, SandboxId};

use crate::{
    Client, Error, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT, causes},
};

/// Connection to a port of a sandbox: bytes in both directions, each of which ends by itself.
pub type PortConnection = reqwest::Upgraded;

impl Client {
    /// Returns the address of a port, with the token that it needs. It does not matter whether anything listens there.
    pub async fn port(&self, id: SandboxId, port: u16) -> Result<PortAddress> {
        let call = self.request(Method::GET, &format!("/v1/sandboxes/{id}/ports/{port}"));
        self.json(call.timeout(REQUEST_LIMIT), ANSWER_MAX).await
    }

    /// Connects to a port over TCP, also to one that only the sandbox's own programs could reach.
    pub async fn connect_port(&self, id: SandboxId, port: u16) -> Result<PortConnection> {
        let call = self
            .request(Method::GET, &format!("/v1/sandboxes/{id}/ports/{port}/stream"))
            .header("Connection", "upgrade")
            .header("Upgrade", "tcp");
        let late = |_| Error::Lost("the API server does not answer".to_owned());
        let response = timeout(REQUEST_LIMIT, self.send(call)).await.map_err(late)??;
        if response.status() != 101 {
            return Err(Error::Protocol("it did not make the connection that of the port".to_owned()));
        }
        response.upgrade().await.map_err(|error| Error::Protocol(causes(&error)))
    }
}
