//! Clients of the host agents: mutual TLS, one HTTP/2 connection per host for all calls that end by themselves, and one
//! for each stream.
//!
//! All streams of a connection share its flow-control window, which is replenished as bodies are read. A
//! stream that nobody reads, such as the download of a client that has stopped, would finally block every
//! other call to the host.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig as TlsConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wrenn_api::HostId;
use wrenn_rpc::{HOST_HEADER, host::v1::HostClient};

use crate::config::AgentTls;

/// A client of one agent.
pub type AgentClient = HostClient<SharedHttp2Connection>;

/// DNS name in every agent's certificate, because addresses may change.
const AGENT_NAME: &str = "agent.wrenn";
/// What a connection may have on its way.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Calls before further ones wait.
    calls: usize,
    /// Unread bytes of one call.
    of_call: u32,
    /// Unread bytes of all calls.
    of_all: u32,
}

/// For calls whose answers are read at once.
const SHARED: Room = Room { calls: 1024, of_call: 1 << 20, of_all: 4 << 20 };
/// For one stream, whose reader may be slow: what is on its way is in memory.
const APART: Room = Room { calls: 1, of_call: 512 << 10, of_all: 512 << 10 };
/// The largest message: the output of an exec.
const MESSAGE_MAX: usize = 64 << 20;
/// A connection is tried for this long.
const CONNECT: Duration = Duration::from_secs(3);

/// Deadlines by kind of call. Streams have none.
pub(crate) mod deadline {
    use std::time::Duration;

    /// For health checks and lists.
    pub(crate) const STATE: Duration = Duration::from_secs(5);
    /// For the removal of a sandbox.
    pub(crate) const DESTROY: Duration = Duration::from_secs(60);
    /// Additional time of an exec, beyond the command's timeout.
    pub(crate) const EXEC_EXTRA: Duration = Duration::from_secs(45);
}

/// Clients of all agents.
pub struct Agents {
    tls: TlsConnector,
    /// DNS name in the certificates of all agents.
    name: ServerName<'static>,
    uri: Uri,
    /// By host, with the address that each connects to.
    clients: Mutex<HashMap<HostId, (String, AgentClient)>>,
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || format!("{} is not a readable certificate", path.display());
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).with_context(read)?.collect();
    all.with_context(read)
}

impl Agents {
    /// Creates clients with this certificate. Fails if a file is invalid.
    pub fn new(files: &AgentTls) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).context("the CA's certificate is not usable")?;
        }
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .with_context(|| format!("{} is not a readable key", files.key.display()))?;
        let mut config = TlsConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&files.cert)?, key)
            .context("the control plane's certificate does not fit its key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            name: ServerName::try_from(AGENT_NAME)?,
            uri: Uri::builder().scheme("https").authority(AGENT_NAME).path_and_query("/").build()?,
            clients: Mutex::default(),
        })
    }

    /// Returns the client of a host's agent at this address; it connects on use, and reconnects. Only for
    /// calls that have a deadline and whose response is read at once: all share one connection.
    pub fn at(&self, host: HostId, address: &str) -> AgentClient {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.get(&host).filter(|(present, _)| present == address) {
            return client.clone();
        }
        let client = self.connect(host, address, SHARED);
        clients.insert(host, (address.to_owned(), client.clone()));
        client
    }

    /// Returns a client for one stream to or from a host's agent: its connection is opened on use, and closed
    /// with the stream, so that a stalled stream delays no other call.
    pub fn apart(&self, host: HostId, address: &str) -> AgentClient {
        self.connect(host, address, APART)
    }

    /// Forgets the clients of hosts that are not registered any more.
    pub(crate) fn keep(&self, registered: impl Fn(HostId) -> bool) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|host, _| registered(*host));
    }

    fn connect(&self, host: HostId, address: &str, room: Room) -> AgentClient {
        let (tls, name, target) = (self.tls.clone(), self.name.clone(), address.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, target, name) = (tls.clone(), target.clone(), name.clone());
            async move {
                let connecting = async {
                    let stream = TcpStream::connect(&target).await?;
                    stream.set_nodelay(true)?;
                    tls.connect(name, stream).await
                };
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                tokio::time::timeout(CONNECT, connecting).await.unwrap_or(Err(late)).map(TokioIo::new)
            }
        });
        let connection = Http2Connection::builder()
            .keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(room.of_call)
            .initial_connection_window_size(room.of_all)
            .lazy_with_connector(connector, self.uri.clone())
            .shared(room.calls);
        let config = ClientConfig::new(self.uri.clone())
            .proto()
            .with_default_max_message_size(MESSAGE_MAX)
            // All agents share one name, so each call says which host it is meant for.
            .with_default_header(HOST_HEADER, host.to_string());
        HostClient::new(connection, config)
    }
}

/// Call options with a deadline.
pub(crate) fn within(limit: Duration) -> CallOptions {
    CallOptions::default().with_timeout(limit)
}
