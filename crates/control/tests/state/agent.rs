// SPDX-License-Identifier: Apache-2.0
//! A fake host agent without sandboxes: it responds to the control plane as the test configures it, even in
//! ways that no real one does.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use connectrpc::{
    ConnectError, RequestContext, Response, Router, ServiceStream, handler_fn, streaming_handler_fn,
};
use futures::{StreamExt as _, stream};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore};
use wrenn_api::{ErrorCode, HostId};
use wrenn_rpc::{
    HOST_HEADER, fault,
    host::v1::{
        CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, ExecStreamRequest,
        ExecStreamResponse, Failure, Fleet, ListRequest, ListResponse, PingRequest, PingResponse, Sandbox,
        SandboxState,
        exec_stream_response::{Event, Start},
    },
};

/// Configuration of the fake agent, and the calls that it received.
pub(crate) struct Now {
    /// Its sandboxes; failed and unknown ones with a cause.
    pub(crate) sandboxes: BTreeMap<String, SandboxState>,
    /// Host id that it reports.
    pub(crate) host: HostId,
    pub(crate) max_sandboxes: u32,
    pub(crate) memory_mb: u64,
    pub(crate) quarantine: String,
    /// Errors of the next creates.
    pub(crate) create_fails: Vec<(ErrorCode, fault::Of)>,
    /// The fleet of the last ping.
    pub(crate) fleet: Option<Fleet>,
    /// Number of list calls received, and answered.
    pub(crate) lists: (usize, usize),
    /// Destroy calls, with the fleet of each.
    pub(crate) destroys: Vec<(String, Option<Fleet>)>,
    /// Target host ids of calls.
    pub(crate) meant: HashSet<String>,
}

/// A fake agent.
pub(crate) struct Agent {
    pub(crate) id: HostId,
    pub(crate) address: std::net::SocketAddr,
    now: Mutex<Now>,
    /// Closed to make lists or destroys hang.
    pub(crate) list_gate: Semaphore,
    pub(crate) destroy_gate: Semaphore,
}

/// Cause of the agent's failed and unknown sandboxes.
pub(crate) const WHY: &str = "the journal is of a newer agent: upgrade this one";
/// Permits of an open gate.
const OPEN: usize = 1 << 20;

impl Agent {
    pub(crate) async fn start(tls: Arc<ServerConfig>) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let id = HostId::new();
        let now = Now {
            sandboxes: BTreeMap::new(),
            host: id,
            max_sandboxes: 64,
            memory_mb: 65_536,
            quarantine: String::new(),
            create_fails: Vec::new(),
            fleet: None,
            lists: (0, 0),
            destroys: Vec::new(),
            meant: HashSet::new(),
        };
        let agent = Arc::new(Self {
            id,
            address: listener.local_addr()?,
            now: Mutex::new(now),
            list_gate: Semaphore::new(OPEN),
            destroy_gate: Semaphore::new(OPEN),
        });
        let router = axum::Router::new().fallback_service(agent.router().into_axum_service());
        tokio::spawn(connectrpc::axum::serve_tls(listener, router, tls).into_future());
        Ok(agent)
    }

    pub(crate) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a sandbox in this state.
    pub(crate) fn has(&self, id: &str, state: SandboxState) {
        self.now().sandboxes.insert(id.to_owned(), state);
    }

    /// Returns whether a destroy of this sandbox was called.
    pub(crate) fn was_told_to_destroy(&self, id: &str) -> bool {
        self.now().destroys.iter().any(|(destroyed, _)| destroyed == id)
    }

    fn note(&self, context: &RequestContext) {
        let meant = context.header(HOST_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.now().meant.insert(meant.to_owned());
    }

    fn ping(&self, request: PingRequest) -> PingResponse {
        let mut now = self.now();
        now.fleet = request.fleet.into_option();
        PingResponse {
            host_id: now.host.to_string(),
            driver: "none".into(),
            cpus: 64,
            memory_mb: now.memory_mb,
            disk_mb: 1 << 20,
            disk_free_mb: 1 << 20,
            templates: vec!["minimal".into()],
            max_sandboxes: now.max_sandboxes,
            max_vcpus: 16,
            max_memory_mb: now.memory_mb,
            max_disk_size_mb: 1 << 20,
            quarantine: now.quarantine.clone(),
            ..Default::default()
        }
    }

    fn create(&self, id: &str) -> Result<CreateResponse, ConnectError> {
        let mut now = self.now();
        if let Some((code, of)) = now.create_fails.pop() {
            return Err(fault::attach(ConnectError::internal("it was told to fail"), code.as_str(), of));
        }
        now.sandboxes.insert(id.to_owned(), SandboxState::SANDBOX_STATE_RUNNING);
        let sandbox = describe(id, SandboxState::SANDBOX_STATE_RUNNING);
        Ok(CreateResponse { sandbox: Some(sandbox).into(), ..Default::default() })
    }

    async fn list(&self) -> ListResponse {
        self.now().lists.0 += 1;
        let _open = self.list_gate.acquire().await;
        let mut now = self.now();
        now.lists.1 += 1;
        let sandboxes = now.sandboxes.iter().map(|(id, state)| describe(id, *state)).collect();
        ListResponse { sandboxes, ..Default::default() }
    }

    async fn destroy(&self, request: DestroyRequest) {
        self.now().destroys.push((request.sandbox_id.clone(), request.fleet.into_option()));
        let _open = self.destroy_gate.acquire().await;
        self.now().sandboxes.remove(&request.sandbox_id);
    }

    fn router(self: &Arc<Self>) -> Router {
        let of = || self.clone();
        let (ping, create, list, destroy) = (of(), of(), of(), of());
        let ping = handler_fn(move |context, request: PingRequest| {
            ping.note(&context);
            let answer = ping.ping(request);
            async move { Response::ok(answer) }
        });
        let create = handler_fn(move |context, request: CreateRequest| {
            create.note(&context);
            let answer = create.create(&request.sandbox_id);
            async move { Response::ok(answer?) }
        });
        let list = handler_fn(move |context, _: ListRequest| {
            list.note(&context);
            let agent = list.clone();
            async move { Response::ok(agent.list().await) }
        });
        let destroy = handler_fn(move |context, request: DestroyRequest| {
            destroy.note(&context);
            let agent = destroy.clone();
            async move {
                agent.destroy(request).await;
                Response::ok(DestroyResponse::default())
            }
        });
        // Its commands print nothing, and never end.
        let run = streaming_handler_fn(|_, _: ExecStreamRequest| {
            let start = Event::Start(Start { pid: 7, ..Default::default() }.into());
            let started = ExecStreamResponse { event: Some(start), ..Default::default() };
            let events: ServiceStream<ExecStreamResponse> =
                stream::iter([Ok(started)]).chain(stream::pending()).boxed();
            async move { Ok(Response::new(events)) }
        });
        Router::new()
            .route_server_stream::<_, ExecStreamRequest, ExecStreamResponse>(
                "host.v1.Host",
                "ExecStream",
                run,
            )
            .route::<_, PingRequest, PingResponse>("host.v1.Host", "Ping", ping)
            .route::<_, CreateRequest, CreateResponse>("host.v1.Host", "Create", create)
            .route::<_, ListRequest, ListResponse>("host.v1.Host", "List", list)
            .route::<_, DestroyRequest, DestroyResponse>("host.v1.Host", "Destroy", destroy)
    }
}

fn describe(id: &str, state: SandboxState) -> Sandbox {
    let failure = Failure {
        code: ErrorCode::AgentError.as_str().to_owned(),
        message: WHY.to_owned(),
        ..Default::default()
    };
    let fails = matches!(state, SandboxState::SANDBOX_STATE_FAILED | SandboxState::SANDBOX_STATE_UNKNOWN);
    Sandbox {
        id: id.to_owned(),
        state: state.into(),
        failure: fails.then_some(failure).into(),
        ..Default::default()
    }
}
