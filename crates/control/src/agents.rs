// SPDX-License-Identifier: Apache-2.0
//! Clients of the host agents: mutual TLS, one HTTP/2 connection per host for all calls that end by themselves, and one
//! for each stream.
//!
//! All streams of a connection share its flow-control window, which is replenished as bodies are read. A
//! stream that nobody reads, such as the download of a client that has stopped, would finally block every
//! other call to the host.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use connectrpc::{
    ConnectError,
    client::{
        CallOptions, ClientBody, ClientConfig, ClientTransport, Http2Connection, SharedHttp2Connection,
    },
};
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig as TlsConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use uuid::Uuid;
use wrenn_api::HostId;
use wrenn_os::tls_files;
use wrenn_rpc::{
    HOST_HEADER, OUTPUT_HEADER,
    host::v1::{HostClient, PingRequest},
};

use crate::{
    admission::{Held, Memory},
    config::AgentTls,
    request_trace,
};

/// VMM driver of an agent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DriverInUse {
    /// Name and accelerator.
    pub name: String,
    /// Reason for its choice.
    pub reason: String,
    /// Whether it isolates untrusted code from the host.
    pub security_boundary: bool,
}

/// Client of one agent.
pub type AgentClient = HostClient<Link>;

/// Clients of all agents.
pub struct Agents {
    tls: TlsConnector,
    /// DNS name in the certificates of all agents.
    name: ServerName<'static>,
    uri: Uri,
    /// Clients by host, with the address that each connects to.
    links: Mutex<HashMap<HostId, (String, Link)>>,
}

/// DNS name in every agent's certificate, because addresses may change.
const AGENT_NAME: &str = "agent.wrenn";

/// Flow-control limits of a connection.
#[derive(Debug, Clone, Copy)]
struct Flow {
    /// Maximum number of concurrent calls.
    calls: usize,
    /// Unread bytes of one call.
    of_call: u32,
    /// Unread bytes of all calls.
    of_all: u32,
    /// Time without an answer to a ping after which the connection, with all its calls, is given up.
    silence: Duration,
}

/// For calls whose responses are read at once.
///
/// The window of all calls together is the sum of theirs, so that responses that wait for memory block no
/// other call.
///
/// Its calls have deadlines of their own: a host that stands still for a while, such as under memory pressure, does not lose them.
const SHARED: Flow =
    Flow { calls: 1024, of_call: 64 << 10, of_all: 64 << 20, silence: Duration::from_secs(30) };
/// For one stream, whose reader may be slow: unread bytes are in memory.
const DEDICATED: Flow =
    Flow { calls: 1, of_call: 512 << 10, of_all: 512 << 10, silence: Duration::from_secs(10) };
/// For one connection to a port of a sandbox.
const PIPE: Flow = Flow { of_call: 256 << 10, of_all: 256 << 10, ..DEDICATED };
/// For one stream of a template, whose pieces have 4 MiB and are passed on to another one.
const TRANSFER: Flow = Flow { calls: 1, of_call: 8 << 20, of_all: 8 << 20, silence: Duration::from_secs(30) };
/// Maximum size of a message of such a stream, in bytes.
const TRANSFER_MAX: usize = 16 << 20;
/// Maximum size of a message, in bytes: the output of an exec.
const MESSAGE_MAX: usize = 64 << 20;
/// Maximum size of a message of a stream, in bytes.
const PIECE_MAX: usize = 1 << 20;
/// Time limit for connecting.
const CONNECT: Duration = Duration::from_secs(3);

/// Deadlines by kind of call. Streams have none.
pub(crate) mod deadline {
    use std::time::Duration;

    /// For health checks and lists.
    pub(crate) const STATE: Duration = Duration::from_secs(5);
    /// For a check whether a host that was silent answers again.
    pub(crate) const ANSWER: Duration = Duration::from_secs(2);
    /// For the removal of a sandbox.
    pub(crate) const DESTROY: Duration = Duration::from_secs(60);
    /// Additional time of an exec, beyond the command's timeout.
    pub(crate) const EXEC_EXTRA: Duration = Duration::from_secs(45);
}

impl Agents {
    /// Creates clients with this certificate. Fails if a file is invalid.
    pub fn new(files: &AgentTls) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in tls_files::certificates(&files.ca)? {
            roots.add(certificate).context("the CA's certificate is not usable")?;
        }
        let key = tls_files::key(&files.key)?;
        let mut config = TlsConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(tls_files::certificates(&files.cert)?, key)
            .context("the control plane's certificate does not fit its key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            name: ServerName::try_from(AGENT_NAME)?,
            uri: Uri::builder().scheme("https").authority(AGENT_NAME).path_and_query("/").build()?,
            links: Mutex::default(),
        })
    }

    /// Returns the client of a host's agent at this address; it connects on use, and reconnects. Only for
    /// calls that have a deadline and whose response is read at once: all share one connection.
    pub fn at(&self, host: HostId, address: &str) -> AgentClient {
        self.client(host, self.link(host, address), MESSAGE_MAX)
    }

    /// Returns a client for one call with a large response, which is read when there is memory for it.
    pub(crate) fn with_memory(&self, host: HostId, address: &str, memory: ResponseMemory) -> AgentClient {
        self.client(host, Link { memory: Some(memory), ..self.link(host, address) }, MESSAGE_MAX)
    }

    /// Returns a client for one stream to or from a host's agent: its connection is opened on use, and closed
    /// with the stream, so that a stalled stream delays no other call.
    pub fn dedicated(&self, host: HostId, address: &str) -> AgentClient {
        self.client(host, self.connect(address, DEDICATED), PIECE_MAX)
    }

    /// Returns a client for one connection to a port of a sandbox, as [`Self::dedicated`].
    pub(crate) fn piped(&self, host: HostId, address: &str) -> AgentClient {
        self.client(host, self.connect(address, PIPE), PIECE_MAX)
    }

    /// Returns a client for one stream of a template, as [`Self::dedicated`].
    pub(crate) fn transferring(&self, host: HostId, address: &str) -> AgentClient {
        self.client(host, self.connect(address, TRANSFER), TRANSFER_MAX)
    }

    /// Asks an agent which VMM driver it uses.
    pub async fn driver_of(&self, host: HostId, address: SocketAddr) -> anyhow::Result<DriverInUse> {
        let client = self.dedicated(host, &address.to_string());
        let answer = client.ping_with_options(PingRequest::default(), within(deadline::STATE)).await?;
        let ping = answer.into_owned();
        let (name, reason) = (ping.driver, ping.driver_reason);
        Ok(DriverInUse { name, reason, security_boundary: ping.security_boundary })
    }

    /// Drops the connections to hosts that are no longer registered.
    pub(crate) fn keep(&self, registered: impl Fn(HostId) -> bool) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|host, _| registered(*host));
    }

    fn client(&self, host: HostId, link: Link, message_max: usize) -> AgentClient {
        let config = ClientConfig::new(self.uri.clone())
            .proto()
            .with_default_max_message_size(message_max)
            // The certificates of all agents have the same name, so each call names its host.
            .with_default_header(HOST_HEADER, host.to_string());
        HostClient::new(link, config)
    }

    fn link(&self, host: HostId, address: &str) -> Link {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, link)) = links.get(&host).filter(|(present, _)| present == address) {
            return link.clone();
        }
        let link = self.connect(address, SHARED);
        links.insert(host, (address.to_owned(), link.clone()));
        link
    }

    fn connect(&self, address: &str, flow: Flow) -> Link {
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
            .keep_alive_timeout(flow.silence)
            .initial_stream_window_size(flow.of_call)
            .initial_connection_window_size(flow.of_all)
            .lazy_with_connector(connector, self.uri.clone())
            .shared(flow.calls);
        Link { connection, memory: None }
    }
}

/// Memory for the response to one call.
#[derive(Debug, Clone)]
pub(crate) struct ResponseMemory {
    memory: Arc<Memory>,
    team: Uuid,
    held: Arc<Mutex<Option<Held>>>,
}

impl ResponseMemory {
    pub(crate) fn new(memory: Arc<Memory>, team: Uuid) -> Self {
        Self { memory, team, held: Arc::default() }
    }

    /// Waits for memory for a response of this many bytes, both encoded and decoded.
    async fn make(&self, bytes: usize) {
        let held = self.memory.take(self.team, bytes.saturating_mul(2)).await;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Returns the reserved memory after the response has arrived, reduced to `bytes`.
    pub(crate) fn held(&self, bytes: usize) -> Option<Held> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map(|held| held.shrink(bytes))
    }
}

/// A connection to an agent. Adds the request id to calls, and reads a response only when there is memory for
/// it.
#[derive(Clone)]
pub struct Link {
    connection: SharedHttp2Connection,
    memory: Option<ResponseMemory>,
}

impl ClientTransport for Link {
    type ResponseBody = <SharedHttp2Connection as ClientTransport>::ResponseBody;
    type Error = ConnectError;

    fn send(
        &self,
        mut request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<Self::ResponseBody>, Self::Error>> {
        if let Some(id) = request_trace::request_id() {
            request.headers_mut().insert("x-request-id", id);
        }
        let (sending, memory) = (self.connection.send(request), self.memory.clone());
        Box::pin(async move {
            let response = sending.await?;
            if let Some(memory) = memory {
                let output = response.headers().get(OUTPUT_HEADER);
                let output = output.and_then(|bytes| bytes.to_str().ok()?.parse().ok());
                memory.make(output.unwrap_or(MESSAGE_MAX)).await;
            }
            Ok(response)
        })
    }
}

/// Call options with a deadline.
pub(crate) fn within(limit: Duration) -> CallOptions {
    CallOptions::default().with_timeout(limit)
}
