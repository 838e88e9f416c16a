// SPDX-License-Identifier: Apache-2.0
//! Tests of the proxy with a host over the real RPC, whose sandboxes have a server on each port.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use connectrpc::{ConnectError, Response as RpcResponse, Router, ServiceStream, bidi_streaming_handler_fn};
use futures::{StreamExt as _, stream};
use tower::ServiceExt as _;
use wrenn_rpc::{
    fault::{self, Of},
    host::v1::{
        __buffa::oneof::{connect_request::Part, connect_response::Event},
        ConnectRequest, ConnectResponse,
        connect_response::Opened,
    },
};

use super::*;
use crate::{config::Limits, serving, state::App, testing};

const TOKEN: &str = "secret";
/// Ports: one on which nothing listens, one that never answers, one whose server speaks no HTTP; all others answer.
const CLOSED: u16 = 1;
const SILENT: u16 = 2;
const STRANGE: u16 = 3;

/// A host whose ports answer each piece of a request with the whole of it.
fn host() -> Router {
    let connect = bidi_streaming_handler_fn(|_, mut requests: ServiceStream<ConnectRequest>| async move {
        let Some(Ok(ConnectRequest { part: Some(Part::Open(open)), .. })) = requests.next().await else {
            return Err(ConnectError::internal("no port"));
        };
        let port = open.port as u16;
        if port == CLOSED {
            let refused = ConnectError::failed_precondition("nothing listens");
            return Err(fault::attach(refused, "port_not_open", Of::OF_CALLER));
        }
        let answers = requests.filter_map(move |message| async move {
            let Some(Part::Data(bytes)) = message.ok()?.part else { return None };
            let answer = match port {
                SILENT => return None,
                STRANGE => b"220 mail.example ESMTP\r\n".to_vec(),
                _ => {
                    [format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len()).as_bytes(), &bytes]
                        .concat()
                }
            };
            Some(Ok(Event::Data(answer)))
        });
        let opened = stream::iter([Ok(Event::Opened(Opened::default().into()))]);
        let events = opened.chain(answers);
        let events: ServiceStream<ConnectResponse> = events
            .map(|event| event.map(|event| ConnectResponse { event: Some(event), ..Default::default() }))
            .boxed();
        Ok(RpcResponse::new(events))
    });
    Router::new().route_bidi_stream::<_, ConnectRequest, ConnectResponse>("host.v1.Host", "Connect", connect)
}

/// A proxy that knows one sandbox of this host.
async fn proxy(settings: &ProxySettings) -> (Proxy, SandboxId, App) {
    let (app, address) = testing::app(Limits::default(), host()).await;
    let proxy = Proxy::new(&Services::new(app.clone()), settings).unwrap();
    let id = SandboxId::new();
    let access = PortAccess { team_id: Uuid::now_v7(), public_ports: false, traffic_token: TOKEN.to_owned() };
    proxy.0.upstream.know(id, access, Reached::at(&app, id, address));
    (proxy, id, app)
}

fn get(id: SandboxId, port: u16, path: &str) -> http::request::Builder {
    let request = http::Request::get(path).header("host", format!("{port}-{id}.localhost"));
    request.header("x-wrenn-traffic-token", TOKEN)
}

async fn ask(proxy: &Proxy, request: http::request::Builder) -> (u16, String) {
    let response = proxy.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_comes_to_its_port_without_what_is_not_for_it() {
    let (proxy, id, _app) = proxy(&ProxySettings::default()).await;
    let request = get(id, 8000, "/a%2Fb?c").header("connection", "x-own").header("x-own", "1");
    let (status, text) = ask(&proxy, request).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.starts_with("GET /a%2Fb?c HTTP/1.1\r\n"), "{text}");
    assert!(text.contains(&format!("host: 8000-{id}.localhost\r\n")), "{text}");
    assert!(!text.contains("x-own") && !text.contains(TOKEN), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_behind_the_proxy_has_its_code() {
    let (proxy, id, _app) =
        proxy(&ProxySettings { idle: Duration::from_secs(1), ..ProxySettings::default() }).await;
    for (port, status, code) in
        [(CLOSED, 502, "port_not_open"), (SILENT, 504, "timeout"), (STRANGE, 502, "port_failed")]
    {
        let (got, text) = ask(&proxy, get(id, port, "/")).await;
        assert_eq!(got, status, "{text}");
        assert!(text.contains(&format!("\"code\":\"{code}\"")), "{text}");
    }
    let (status, text) = ask(&proxy, http::Request::get("/").header("host", "x")).await;
    assert!(status == 400 && text.contains("invalid_request"), "{text}");
    let host = format!("8000-{id}.localhost");
    let (status, text) = ask(&proxy, http::Request::get("/").header("host", &host)).await;
    assert!(status == 403 && text.contains("forbidden"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sandbox_has_so_many_requests_at_a_time() {
    const PLACES: usize = 2;
    let settings = ProxySettings { requests_per_sandbox: PLACES, ..ProxySettings::default() };
    let (proxy, id, _app) = proxy(&settings).await;
    let silent = || get(id, SILENT, "/").body(Body::empty()).unwrap();
    let mut held: Vec<_> = (0..PLACES).map(|_| Box::pin(proxy.clone().oneshot(silent()))).collect();
    for request in &mut held {
        assert!(futures::poll!(request).is_pending());
    }
    let (status, text) = ask(&proxy, get(id, 8000, "/")).await;
    assert!(status == 429 && text.contains("too_many_requests"), "{text}");
    held.pop();
    assert_eq!(ask(&proxy, get(id, 8000, "/")).await.0, 200);
}

/// Sends a request over TLS with this protocol, and returns status and body.
async fn ask_over_tls(
    at: std::net::SocketAddr,
    roots: rustls::RootCertStore,
    protocol: &[u8],
    id: SandboxId,
) -> (u16, String) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let host = format!("8000-{id}.ports.example");
    let name = rustls::pki_types::ServerName::try_from(host.clone()).unwrap();
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    let request = http::Request::get(format!("https://{host}/x")).header("x-wrenn-traffic-token", TOKEN);
    let response = if protocol == b"h2" {
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap()
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = request.uri("/x").header("host", &host);
        sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_serves_both_versions_of_http() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["*.ports.example".to_owned()])
        .unwrap()
        .self_signed(&pair)
        .unwrap();
    std::fs::write(&cert, made.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let settings = ProxySettings { tls_cert: Some(cert), tls_key: Some(key), ..ProxySettings::default() };
    let (proxy, id, app) = proxy(&settings).await;
    let acceptor = tls::Certificate::of(&settings).unwrap().unwrap().acceptor().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let long = Duration::from_secs(600);
    let bounds = serving::Bounds {
        connections: 64,
        per_address: 64,
        head: long,
        idle: long,
        stall: long,
        linger: long,
    };
    tokio::spawn(serving::serve(listener, proxy, bounds, Some(acceptor), app.shutdown.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.der().clone()).unwrap();
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let (status, text) = ask_over_tls(at, roots.clone(), protocol, id).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("host: 8000-{id}.ports.example\r\n")), "{text}");
        assert!(text.contains("x-forwarded-proto: https\r\n"), "{text}");
    }
    app.shutdown.cancel();
}
