// SPDX-License-Identifier: Apache-2.0
//! Connections to ports of sandboxes for HTTP: pooled by sandbox and port, and opened through the host of the sandbox.

use std::{
    collections::HashMap,
    error::Error as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
};
use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId};

use super::address::Address;
use crate::{
    admission::{Place, Places},
    by::By,
    db::sandboxes::PortAccess,
    error::Fault,
    sandboxes::{PortPipe, Reached, Sandboxes},
};

/// Time for which what is known of a sandbox is used without another look: who may use its ports, and that it runs. Its use is
/// noted as often, and its pause is put off by so much.
const FRESH: Duration = Duration::from_secs(2);
/// Time after which an idle connection is closed, which is before common servers close theirs, and the maximum number of them
/// for one port.
const IDLE: Duration = Duration::from_secs(4);
const IDLE_MAX: usize = 16;
/// Maximum number of sandboxes that are looked up at a time; anybody can ask for any.
const LOOKUPS: usize = 16;
/// Maximum size of the head of a response, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Client of all ports.
pub(super) struct Upstream {
    client: Client<Connector, Body>,
    shared: Arc<Shared>,
}

struct Shared {
    sandboxes: Sandboxes,
    accesses: Cache<PortAccess>,
    reached: Cache<Reached>,
    lookups: Semaphore,
    /// Places of connections, idle ones included, by sandbox.
    places: Places,
}

impl Upstream {
    /// Creates a client with these places for connections.
    pub(super) fn new(sandboxes: Sandboxes, places: Places) -> Self {
        let shared = Arc::new(Shared {
            sandboxes,
            accesses: Cache::default(),
            reached: Cache::default(),
            lookups: Semaphore::new(LOOKUPS),
            places,
        });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .set_host(false)
            .http1_max_buf_size(HEAD_MAX)
            .build(Connector(shared.clone()));
        Self { client, shared }
    }

    /// Returns who may use the ports of a sandbox.
    pub(super) async fn access(&self, id: SandboxId) -> Result<Arc<PortAccess>, Fault> {
        self.shared.access(id).await
    }

    /// Reaches a sandbox, which is active as long as the result exists. Resumes it if it is to be resumed by its use.
    pub(super) async fn reach(&self, team: Uuid, id: SandboxId) -> Result<Arc<Reached>, Fault> {
        self.shared.reach(team, id).await.map(|(reached, _)| reached)
    }

    /// Knows a sandbox as if it had just been looked at.
    #[cfg(test)]
    pub(super) fn know(&self, id: SandboxId, access: PortAccess, reached: Reached) {
        self.shared.accesses.lock().insert(id, Arc::new(access));
        self.shared.reached.lock().insert(id, Arc::new(reached));
    }

    /// Sends a request to a port, and returns its response when its head has come.
    pub(super) async fn send(
        &self,
        address: Address,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Fault> {
        let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        // The pool's name of the port; the server in the sandbox sees the path only.
        let uri: Uri = format!("http://{address}.sandbox{path}")
            .parse()
            .map_err(|_| Fault::invalid("the path of the request is not valid"))?;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_11;
        self.client.request(request).await.map_err(|error| fault_of(&error))
    }
}

/// Finds the fault of a failed request.
fn fault_of(error: &Error) -> Fault {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(fault) = found.downcast_ref::<Fault>() {
            return fault.clone();
        }
        // An I/O error shows what it wraps only itself.
        let inner = found.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(fault) = inner.and_then(|inner| inner.downcast_ref::<Fault>()) {
            return fault.clone();
        }
        cause = found.source();
    }
    tracing::debug!(%error, cause = error.source().map(tracing::field::display), "a port gave no answer");
    let message = "the server on the port of the sandbox broke the connection off, or does not speak HTTP";
    Fault::new(ErrorCode::PortFailed, message)
}

impl Shared {
    async fn access(&self, id: SandboxId) -> Result<Arc<PortAccess>, Fault> {
        if let Some(access) = self.accesses.get(id) {
            return Ok(access);
        }
        // The semaphore is never closed.
        let _turn = self.lookups.acquire().await.ok();
        let found = self.sandboxes.port_access(id).await?;
        let access =
            found.ok_or_else(|| Fault::new(ErrorCode::NotFound, format!("there is no sandbox {id}")))?;
        Ok(self.accesses.put(id, access))
    }

    /// Reaches a sandbox; returns whether it was just looked at.
    async fn reach(&self, team: Uuid, id: SandboxId) -> Result<(Arc<Reached>, bool), Fault> {
        if let Some(reached) = self.reached.get(id) {
            return Ok((reached, false));
        }
        let reached = self.sandboxes.reach_ports(team, id, By::VISITOR).await?;
        Ok((self.reached.put(id, reached), true))
    }

    async fn open(&self, Address { port, id }: Address) -> Result<Upstreamed, Fault> {
        let place = self.places.take(Some(id.uuid())).map_err(|_| {
            let message =
                format!("sandbox {id} has too many connections to its ports: close some, or try again");
            Fault::new(ErrorCode::TooManyRequests, message)
        })?;
        let access = self.access(id).await?;
        let (reached, new) = match self.reach(access.team_id, id).await {
            // It may be known only from before it was deleted: then it is not there.
            Err(fault) if is_of_sandbox(fault.code) => {
                self.accesses.forget(id);
                return self.access(id).await.and(Err(fault));
            }
            reached => reached?,
        };
        let pipe = match reached.open(port).await {
            // It may have been paused or deleted since the last look.
            Err(fault) if !new && is_of_sandbox(fault.code) => {
                self.reached.forget(id);
                self.accesses.forget(id);
                let access = self.access(id).await?;
                self.reach(access.team_id, id).await?.0.open(port).await?
            }
            opened => opened?,
        };
        Ok(Upstreamed { pipe, _place: place })
    }
}

/// Whether a fault may mean that the sandbox is another one than was known.
fn is_of_sandbox(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::InvalidState | ErrorCode::NotFound | ErrorCode::HostUnavailable)
}

/// What is known of sandboxes for a short time.
struct Cache<T>(Arc<Mutex<HashMap<SandboxId, Arc<T>>>>);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Send + Sync + 'static> Cache<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: SandboxId) -> Option<Arc<T>> {
        self.lock().get(&id).cloned()
    }

    /// Keeps a value as long as it is fresh. The number of values has the bound of requests in that time.
    fn put(&self, id: SandboxId, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let before = self.lock().insert(id, value.clone());
        drop(before);
        let (all, own) = (Self(self.0.clone()), Arc::downgrade(&value));
        tokio::spawn(async move {
            tokio::time::sleep(FRESH).await;
            let mut values = all.lock();
            let expired = values.get(&id).is_some_and(|value| std::ptr::eq(Arc::as_ptr(value), own.as_ptr()));
            let removed = if expired { values.remove(&id) } else { None };
            drop(values);
            // Dropping it may do more than free memory.
            drop(removed);
        });
        value
    }

    fn forget(&self, id: SandboxId) {
        let removed = self.lock().remove(&id);
        drop(removed);
    }
}

/// Opens connections for the client's pool, by the address in its URIs.
#[derive(Clone)]
struct Connector(Arc<Shared>);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Upstreamed>;
    type Error = Fault;
    type Future = BoxFuture<'static, Result<Self::Response, Fault>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = self.0.clone();
        async move {
            let address = uri.host().and_then(Address::of_host).ok_or_else(Fault::internal)?;
            shared.open(address).await.map(TokioIo::new)
        }
        .boxed()
    }
}

/// Connection to a port, with its place.
struct Upstreamed {
    pipe: PortPipe,
    _place: Place,
}

impl Connection for Upstreamed {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Upstreamed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Upstreamed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
