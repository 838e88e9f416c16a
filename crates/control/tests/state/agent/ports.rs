// SPDX-License-Identifier: Apache-2.0
//! Ports of simulated sandboxes: on each one is a server that speaks as much HTTP as the cases need.

use connectrpc::ServiceStream;
use futures::{StreamExt as _, future};
use wrenn_rpc::host::v1::{
    __buffa::oneof::{connect_request::Part, connect_response::Event},
    ConnectRequest, ConnectResponse,
    connect_response::Opened,
};

/// Connects to a port.
pub(super) fn connect(requests: ServiceStream<ConnectRequest>) -> ServiceStream<ConnectResponse> {
    requests.filter_map(|request| future::ready(request.map(respond).transpose())).boxed()
}

fn respond(request: ConnectRequest) -> Option<ConnectResponse> {
    let event = match request.part? {
        Part::Open(_) => Event::Opened(Opened::default().into()),
        // A request comes in one piece.
        Part::Data(request) => Event::Data(answer(&request).into()),
    };
    Some(ConnectResponse { event: Some(event), ..Default::default() })
}

/// Answers a request of HTTP: one for a WebSocket gets it, and the answer to one for `/endless` has no end.
fn answer(request: &[u8]) -> &'static str {
    let request = String::from_utf8_lossy(request).to_lowercase();
    if request.contains("upgrade: websocket") {
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    } else if request.starts_with("get /endless ") {
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    } else {
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    }
}
