//! Streams that nobody reads must not stop other calls to the same host.

use std::{error::Error, path::Path, sync::Arc};

use connectrpc::{Response, Router, ServiceStream, handler_fn, streaming_handler_fn};
use futures::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpListener;
use wrenn_api::HostId;
use wrenn_control::{AgentTls, agents::Agents};
use wrenn_rpc::host::v1::{
    __buffa::oneof::read_file_response::Part, PingRequest, PingResponse, ReadFileRequest, ReadFileResponse,
};

type Done<T> = Result<T, Box<dyn Error>>;

/// More than the window of one connection has room for.
const STREAMS: usize = 16;
const PIECE: usize = 64 << 10;

/// Certificates of both sides; those of the control plane are written to `dir`.
fn certificates(dir: &Path) -> Done<(AgentTls, ServerConfig)> {
    let mut of_ca = CertificateParams::default();
    of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(of_ca, KeyPair::generate()?)?;
    let leaf = |names: Vec<String>| -> Done<_> {
        let key = KeyPair::generate()?;
        Ok((CertificateParams::new(names)?.signed_by(&key, &ca)?, key))
    };
    let (agent, agent_key) = leaf(vec!["agent.wrenn".into()])?;
    let (control, control_key) = leaf(Vec::new())?;
    let files = AgentTls { ca: dir.join("ca"), cert: dir.join("cert"), key: dir.join("key") };
    std::fs::write(&files.ca, ca.pem())?;
    std::fs::write(&files.cert, control.pem())?;
    std::fs::write(&files.key, control_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec()))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        .with_single_cert(
            vec![agent.der().clone()],
            PrivateKeyDer::Pkcs8(agent_key.serialize_der().into()),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((files, config))
}

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
    let (files, server) = certificates(dir.path())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let router = axum::Router::new().fallback_service(host().into_axum_service());
    tokio::spawn(connectrpc::axum::serve_tls(listener, router, Arc::new(server)).into_future());

    let agents = Agents::new(&files)?;
    let host_id = HostId::new();
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = agents.apart(host_id, &address).read_file(ReadFileRequest::default()).await?;
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
