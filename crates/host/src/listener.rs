// SPDX-License-Identifier: Apache-2.0
//! Listener of the agent: mutual TLS and HTTP/2, with limits on the resources of unauthenticated clients.
//!
//! A client without a certificate only gets as far as a TLS handshake. Their number is limited; beyond it the oldest one is
//! aborted: a handshake of the control plane takes milliseconds.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::{
    net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl},
    process::{Resource, getrlimit},
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Idle time of a connection before the first keep-alive probe.
const QUIET: Duration = Duration::from_secs(30);
/// Interval between keep-alive probes.
const AGAIN: Duration = Duration::from_secs(10);
/// Number of unanswered probes after which the kernel closes the connection.
const QUESTIONS: u32 = 3;
/// Maximum number of connections; at most half of the limit of open files, because the rest is for sandboxes.
const CONNECTIONS: u64 = 4096;
/// Maximum number of concurrent TLS handshakes.
const HANDSHAKES: usize = 128;
/// Time limit of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for example for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(200);
/// Minimum interval between log messages about it.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// Maximum number of concurrent calls per connection.
const CALLS: u32 = 1024;
/// Send buffer of a call, in bytes.
const UNSENT: usize = 64 << 10;

/// Listens at this address, with TCP keep-alive: otherwise the streams of a control plane that has vanished,
/// and their commands, would run for ever.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on: is another agent running?"))?;
    // Accepted connections inherit it.
    set_socket_keepalive(&listener, true)
        .and_then(|()| set_tcp_keepidle(&listener, QUIET))
        .and_then(|()| set_tcp_keepintvl(&listener, AGAIN))
        .and_then(|()| set_tcp_keepcnt(&listener, QUESTIONS))
        .context("cannot set keep-alive on the agent's listener")?;
    Ok(listener)
}

/// Serves until `stop` is cancelled and running calls have ended. Fails if the listener itself fails.
pub(crate) async fn serve(
    listener: TcpListener,
    router: axum::Router,
    tls: Arc<ServerConfig>,
    stop: CancellationToken,
) -> io::Result<()> {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let places = Arc::new(Semaphore::new(CONNECTIONS.min(descriptors / 2) as usize));
    let (acceptor, handshakes, tasks) = (TlsAcceptor::from(tls), Handshakes::default(), TaskTracker::new());
    let mut said: Option<tokio::time::Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                if said.is_none_or(|at| at.elapsed() >= SAID_AGAIN) {
                    tracing::error!(%error, "cannot accept a connection; trying again");
                    said = Some(tokio::time::Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (handshake, acceptor, places) = (handshakes.begin(), acceptor.clone(), places.clone());
        let (router, stop) = (router.clone(), stop.clone());
        tasks.spawn(async move {
            let Some(stream) = handshake.take(acceptor, stream).await else { return };
            // Only clients with a certificate of the private CA get here.
            let Ok(_place) = places.acquire().await else { return };
            let mut server = http2::Builder::new(TokioExecutor::new());
            server.timer(TokioTimer::new()).max_concurrent_streams(CALLS).max_send_buf_size(UNSENT);
            let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Running handshakes, the oldest first.
#[derive(Debug, Clone, Default)]
struct Handshakes(Arc<Mutex<Going>>);

#[derive(Debug, Default)]
struct Going {
    next: u64,
    by_number: BTreeMap<u64, CancellationToken>,
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, Going> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a handshake; aborts the oldest one if there are too many.
    fn begin(&self) -> Handshake {
        let mut going = self.lock();
        if going.by_number.len() >= HANDSHAKES
            && let Some((_, oldest)) = going.by_number.pop_first()
        {
            oldest.cancel();
        }
        let (number, end) = (going.next, CancellationToken::new());
        going.next += 1;
        going.by_number.insert(number, end.clone());
        Handshake { all: self.clone(), number, end }
    }
}

/// A running handshake; dropping it removes it from the list.
struct Handshake {
    all: Handshakes,
    number: u64,
    end: CancellationToken,
}

impl Handshake {
    async fn take(
        self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
    ) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
        }
        tokio::select! {
            taken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => match taken {
                Ok(taken) => taken.inspect_err(|error| tracing::debug!(%error, "a TLS handshake failed")).ok(),
                Err(_) => None,
            },
            () = self.end.cancelled() => None,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustix::net::sockopt::{socket_keepalive, tcp_keepidle};
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
        server::WebPkiClientVerifier,
    };
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::TlsConnector;

    use super::*;

    #[tokio::test]
    async fn connections_are_asked_for_signs_of_life() -> anyhow::Result<()> {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let _client = TcpStream::connect(listener.local_addr()?).await?;
        let (connection, _) = listener.accept().await?;
        assert!(socket_keepalive(&connection)?);
        assert_eq!(tcp_keepidle(&connection)?, QUIET);
        Ok(())
    }

    /// TLS of both sides, with a private CA.
    fn both_sides() -> anyhow::Result<(Arc<ServerConfig>, TlsConnector)> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let side = || -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
            let key = KeyPair::generate()?;
            let leaf = CertificateParams::new(vec!["agent.wrenn".to_owned()])?.signed_by(&key, &ca)?;
            Ok((vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()).into()))
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let roots = Arc::new(roots);
        let ((cert, key), (client_cert, client_key)) = (side()?, side()?);
        let verifier = WebPkiClientVerifier::builder(roots.clone()).build()?;
        let server =
            ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(cert, key)?;
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(client_cert, client_key)?;
        Ok((Arc::new(server), TlsConnector::from(Arc::new(client))))
    }

    #[tokio::test]
    async fn strangers_hold_few_handshakes_and_keep_nobody_out() -> anyhow::Result<()> {
        let (server, client) = both_sides()?;
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let serving = tokio::spawn(serve(listener, axum::Router::new(), server, stop.clone()));
        let mut strangers = Vec::new();
        for _ in 0..HANDSHAKES + 50 {
            strangers.push(TcpStream::connect(address).await?);
        }
        // The oldest were aborted to make room, long before their time limit.
        let mut byte = [0];
        let closed = tokio::time::timeout(HANDSHAKE / 2, strangers[0].read(&mut byte)).await?;
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let name = ServerName::try_from("agent.wrenn")?;
        let known = client.connect(name, TcpStream::connect(address).await?).await?;
        drop((strangers, known));
        stop.cancel();
        serving.await??;
        Ok(())
    }
}
