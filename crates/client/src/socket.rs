// SPDX-License-Identifier: Apache-2.0
//! WebSockets: requests that are upgraded.

use reqwest::{Method, Upgraded};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    Client, Error, Result,
    transport::{REQUEST_LIMIT, causes},
};

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Upgraded>;

impl Client {
    /// Opens a WebSocket whose frames have at most `frame_max` bytes. Returns whether the server speaks the subprotocol that is
    /// offered.
    pub(crate) async fn socket(
        &self,
        path: &str,
        subprotocol: Option<&'static str>,
        frame_max: usize,
    ) -> Result<(Socket, bool)> {
        let key = generate_key();
        let mut call = self
            .request(Method::GET, path)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key);
        if let Some(subprotocol) = subprotocol {
            call = call.header("Sec-WebSocket-Protocol", subprotocol);
        }
        let silent = || Error::Lost(format!("the API did not answer within {} s", REQUEST_LIMIT.as_secs()));
        let response = timeout(REQUEST_LIMIT, self.send(call)).await.map_err(|_| silent())??;
        let accept = response.headers().get("sec-websocket-accept").map(|value| value.as_bytes().to_vec());
        if response.status() != 101 || accept.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Error::Protocol("it did not switch to a WebSocket".to_owned()));
        }
        let chosen = response.headers().get("sec-websocket-protocol");
        let chosen = chosen
            .is_some_and(|chosen| subprotocol.is_some_and(|offered| chosen.as_bytes() == offered.as_bytes()));
        let upgraded = response.upgrade().await.map_err(|error| Error::Protocol(causes(&error)))?;
        let limits =
            WebSocketConfig::default().max_message_size(Some(frame_max)).max_frame_size(Some(frame_max));
        Ok((WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await, chosen))
    }
}
