// SPDX-License-Identifier: Apache-2.0
//! Connection to a TCP port of a guest: a pipe of bytes through envd, which also reaches what only the guest's loopback has.

use std::time::Duration;

use http::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use wrenn_api::ErrorCode;

use super::guest::{ENVD_PORT, Guest, checked, empty, overdue, unreachable};
use crate::error::AgentError;

/// Time limit for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Both directions of a connection to a port.
pub(crate) trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// Connects to a port of a guest.
pub(crate) async fn connect(guest: &Guest, port: u32) -> Result<Box<dyn Pipe>, AgentError> {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
        return Err(AgentError::new(ErrorCode::InvalidRequest, format!("{port} is not a port")));
    };
    let connecting = async {
        if port == ENVD_PORT {
            // envd itself checks who may use it.
            return guest.meanwhile(to_envd(guest)).await?;
        }
        through_envd(guest, port).await
    };
    timeout(CONNECT, connecting).await.map_err(|_| overdue())?
}

async fn to_envd(guest: &Guest) -> Result<Box<dyn Pipe>, AgentError> {
    let stream = TcpStream::connect(&guest.authority).await.map_err(|error| unreachable(&error))?;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY on a connection to a guest");
    }
    Ok(Box::new(stream))
}

async fn through_envd(guest: &Guest, port: u16) -> Result<Box<dyn Pipe>, AgentError> {
    let mut request = guest.request(Method::POST, &format!("/connect?port={port}"), empty())?;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("tcp"));
    let response = guest.answer(request).await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let pipe = guest.meanwhile(hyper::upgrade::on(response)).await?;
            Ok(Box::new(TokioIo::new(pipe.map_err(|error| unreachable(&error))?)))
        }
        StatusCode::BAD_GATEWAY => {
            let message = format!("nothing listens on port {port} of the sandbox: start a server there");
            Err(AgentError::new(ErrorCode::PortNotOpen, message))
        }
        StatusCode::GATEWAY_TIMEOUT => {
            let message = format!("what listens on port {port} of the sandbox accepts no connection");
            Err(AgentError::new(ErrorCode::Timeout, message))
        }
        // An envd from before the update of its host, in a memory that goes on.
        StatusCode::NOT_FOUND => {
            let message = "the sandbox goes on from a memory of an older version, which has no way to its ports: \
                           resume it with \"memory\": false";
            Err(AgentError::new(ErrorCode::SnapshotIncompatible, message))
        }
        _ => match checked(response).await {
            Err(error) => Err(error),
            Ok(_) => Err(AgentError::new(ErrorCode::AgentError, "the sandbox did not open the connection")),
        },
    }
}
