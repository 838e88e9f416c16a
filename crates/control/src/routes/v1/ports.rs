// SPDX-License-Identifier: Apache-2.0
//! Ports of sandboxes: their addresses at the proxy, and connections to them by API key.

use std::sync::Arc;

use axum::{
    Extension, Json, RequestPartsExt as _,
    body::Body,
    extract::{FromRequestParts, Path, Request, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::copy_bidirectional_with_sizes;
use wrenn_api::PortAddress;

use super::{
    error_responses::{OfGet, OfPortStream},
    extract::Target,
};
use crate::{
    admission::InWork, caller::Caller, error::Fault, proxy::TOKEN_PARAMETER, request_trace,
    sandboxes::PortPipe, services::Services, serving::Connection,
};

/// Size of the buffer of each direction, in bytes.
const BUFFER: usize = 16 << 10;

/// A port of a sandbox: the parameter `{port}` of a path.
pub(super) struct OfPort(u16);

impl FromRequestParts<Services> for OfPort {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Named {
            port: String,
        }
        let none = || Fault::invalid("the port in the path: give a number from 1 to 65535");
        let Path(Named { port }): Path<Named> = parts.extract().await.map_err(|_| none())?;
        let is_usual = !port.starts_with(['0', '+']);
        port.parse().ok().filter(|_| is_usual).map(Self).ok_or_else(none)
    }
}

/// Get the address of a port.
///
/// It does not matter whether anything listens there. Requests to `url` are passed on to the server on that port, also to one
/// that only the sandbox's own programs could reach. If the ports are private, they need the traffic token: in the header
/// `X-Wrenn-Traffic-Token` for programs, or as in `browser_url`, which sets a cookie.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/ports/{port}", operation_id = "getPort", tag = "ports",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("port" = u16, Path, description = "The port.", minimum = 1, maximum = 65535, example = 8000),
    ),
    responses((status = 200, description = "The address.", body = PortAddress), OfGet)
)]
pub(super) async fn get(
    State(services): State<Services>,
    target: Target,
    OfPort(port): OfPort,
) -> Result<Json<PortAddress>, Fault> {
    let (public, token) = services.sandboxes().traffic_token(&target.caller, target.id).await?;
    let url = services
        .state()
        .port_url
        .replace("{port}", &port.to_string())
        .replace("{id}", &target.id.to_string());
    let url = url.trim_end_matches('/').to_owned();
    let token = (!public).then_some(token);
    let query = token.as_ref().map(|token| format!("?{TOKEN_PARAMETER}={token}")).unwrap_or_default();
    let browser_url = format!("{url}/{query}");
    Ok(Json(PortAddress { sandbox_id: target.id, port, url, public, token, browser_url }))
}

/// Connect to a port over TCP.
///
/// The request asks for an upgrade of the connection: `Connection: upgrade` and `Upgrade: tcp`. After the response 101 it is
/// that of the port: bytes in both directions, each of which ends by itself. It ends when the sandbox is paused.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/ports/{port}/stream", operation_id = "portStream", tag = "ports",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("port" = u16, Path, description = "The port.", minimum = 1, maximum = 65535, example = 8000),
    ),
    responses((status = 101, description = "The connection is that of the port now."), OfPortStream)
)]
pub(super) async fn stream(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    OfPort(port): OfPort,
    mut request: Request,
) -> Result<Response, Fault> {
    let sandboxes = services.sandboxes();
    sandboxes.get(&target.caller, target.id).await?;
    if !asks_for_upgrade(request.headers()) {
        return Err(Fault::invalid("ask for an upgrade: send Connection: upgrade and Upgrade: tcp"));
    }
    let pipe = sandboxes.connect(&target.caller, target.id, port).await?;
    let client = hyper::upgrade::on(&mut request);
    let work = connection.work();
    request_trace::spawn(async move {
        let _held = (in_work, work);
        match client.await {
            Ok(client) => pass(&services, &target.caller, TokioIo::new(client), pipe).await,
            Err(error) => tracing::debug!(%error, "an upgrade failed"),
        }
    });
    let tcp = HeaderValue::from_static("tcp");
    let headers = [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, tcp)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"tcp"))
}

/// Passes bytes on until both directions have ended, the caller's key is revoked or the server stops.
async fn pass(
    services: &Services,
    caller: &Caller,
    mut client: TokioIo<hyper::upgrade::Upgraded>,
    mut pipe: PortPipe,
) {
    tokio::select! {
        // How it ended is told by both ends.
        _ = copy_bidirectional_with_sizes(&mut client, &mut pipe, BUFFER, BUFFER) => {}
        () = services.access().ended(caller) => {}
        () = services.shutdown().cancelled() => {}
    }
}
