// SPDX-License-Identifier: Apache-2.0
//! Streams that nobody reads must not stop other calls to the same host.

mod certificates;

use std::{error::Error, sync::Arc};

use connectrpc::{Response, Router, ServiceStream, handler_fn, streaming_handler_fn};
use futures::StreamExt as _;
use tokio::net::TcpListener;
use wrenn_api::HostId;
use wrenn_control::agents::Agents;
use wrenn_rpc::host::v1::{
    __buffa::oneof::read_file_response::Part, PingRequest, PingResponse, ReadFileRequest, ReadFileResponse,
};

type Done<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// More than the window of one connection has room for.
const STREAMS: usize = 16;
const PIECE: usize = 64 << 10;

/// A host that answers pings, and whose files have no end.
fn host() -> Router {
    let ping = handler_fn(async |_, _: PingRequest| Response::ok(PingResponse::default()));
    let read = streaming_handler_fn(async |_, _: ReadFileRequest| {
        let piece = || ReadFileResponse { part: Some(Part::Chunk(vec![0; PIECE])), ..Default::default() };
        let endless: ServiceStream<ReadFileResponse> =
            futures::stream::repeat_with(move || Ok(piece())).boxed();
        Ok(Response::new(endless))
    });
    Router::new()
        .route::<_, PingRequest, PingResponse>("host.v1.Host", "Ping", ping)
        .route_server_stream::<_, ReadFileRequest, ReadFileResponse>("host.v1.Host", "ReadFile", read)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_answers_while_nobody_reads_its_streams() -> Done<()> {
    let dir = tempfile::tempdir()?;
    let (files, server) = certificates::certificates(dir.path())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let router = axum::Router::new().fallback_service(host().into_axum_service());
    tokio::spawn(connectrpc::axum::serve_tls(listener, router, Arc::new(server)).into_future());

    let agents = Agents::new(&files)?;
    let host_id = HostId::new();
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = agents.dedicated(host_id, &address).read_file(ReadFileRequest::default()).await?;
        stream.message().await?.ok_or("no piece")?;
        unread.push(stream);
    }
    agents.at(host_id, &address).ping(PingRequest::default()).await?;
    // They are still what they were: each goes on once it is read.
    for stream in &mut unread {
        stream.message().await?.ok_or("no further piece")?;
    }
    Ok(())
}
