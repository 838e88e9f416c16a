// SPDX-License-Identifier: Apache-2.0
//! A simulated host agent: it has sandboxes with the states of a real one, but no microVMs, and responds to the control
//! plane as the test configures it, even in ways that no real one does.
#![expect(clippy::unused_async, reason = "its router awaits every call alike")]

/// Adds unary calls to a router, which are methods of the agent.
macro_rules! unary {
    ($agent:expr, $router:expr, $($name:literal: $request:ty => $response:ty, $method:ident;)*) => {
        $router$(.route::<_, $request, $response>("host.v1.Host", $name, {
            let agent = $agent.clone();
            ::connectrpc::handler_fn(move |context, request: $request| {
                agent.note(&context);
                let agent = agent.clone();
                async move { ::connectrpc::Response::ok(agent.$method(request).await?) }
            })
        }))*
    };
}

mod artifacts;
mod files;
mod guests;
mod images;
mod life;
pub(crate) mod metrics;
mod ports;
mod processes;
mod snapshots;

pub(crate) use artifacts::CHUNKS;
pub(crate) use files::Written;
pub(crate) use images::image_id;
pub(crate) use processes::Does;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use connectrpc::{ConnectError, RequestContext, Router};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use wrenn_api::{ErrorCode, HostId};
use wrenn_rpc::{
    HOST_HEADER, fault,
    host::v1::{
        CreateRequest, CreateResponse, DeleteImageRequest, DeleteImageResponse, DeleteSnapshotRequest,
        DeleteSnapshotResponse, DestroyRequest, DestroyResponse, ExecRequest, ExecResponse, Failure, Fleet,
        GetImportProgressRequest, GetImportProgressResponse, GetRequest, GetResponse, ImportImageRequest,
        ImportImageResponse, ListRequest, ListResponse, MakeImageRequest, MakeImageResponse, MakeUserRequest,
        MakeUserResponse, MetricsRequest, MetricsResponse, OutOfMemory, PauseRequest, PauseResponse,
        PingRequest, PingResponse, PutSecretRequest, PutSecretResponse, RemoveSecretsRequest,
        RemoveSecretsResponse, ResumeRequest, ResumeResponse, Sandbox, SandboxState, SnapshotRequest,
        SnapshotResponse,
    },
};

/// Failure of an operation: code and message.
pub(crate) type Fails = (ErrorCode, &'static str);

/// Configuration of the simulated agent, and the calls that it received.
pub(crate) struct Now {
    /// Its sandboxes.
    pub(crate) sandboxes: BTreeMap<String, Simulated>,
    /// Ids of its snapshots and of its images.
    pub(crate) snapshots: HashSet<String>,
    pub(crate) images: HashSet<String>,
    /// What its registry has: whole names with their digests, and the only account that may pull them, if it is not for all.
    pub(crate) registry: BTreeMap<String, String>,
    pub(crate) account: Option<(&'static str, &'static str)>,
    /// Imports that it was asked for, in this order, and the number of the next ones whose image is gone at once.
    pub(crate) imports: Vec<ImportImageRequest>,
    pub(crate) import_loses: usize,
    /// How far its imports are: bytes in all, fetched and unpacked.
    pub(crate) import_progress: (u64, u64, u64),
    /// Names and sizes of the archives that were sent to it, the errors of the next ones, and the name that they give.
    pub(crate) loads: Vec<(String, u64)>,
    pub(crate) load_fails: Vec<Fails>,
    pub(crate) told_name: &'static str,
    /// Secrets that were put into its sandboxes, in this order.
    pub(crate) secrets: Vec<PutSecretRequest>,
    /// Ids of the snapshots and images that it has sent to others, and that others have sent to it, each time that it took all of
    /// one; and the errors of the next ones that it is to take.
    pub(crate) exported: Vec<String>,
    pub(crate) taken: Vec<String>,
    pub(crate) take_fails: Vec<Fails>,
    /// Digests of its templates that it reports.
    pub(crate) template_digests: BTreeMap<String, String>,
    /// Host id that it reports.
    pub(crate) host: HostId,
    pub(crate) max_sandboxes: u32,
    pub(crate) memory_mb: u64,
    pub(crate) quarantine: String,
    /// Time that a create, a pause and a resume take.
    pub(crate) takes: Duration,
    /// Errors of the next creates, pauses, resumes and snapshots.
    pub(crate) create_fails: Vec<(ErrorCode, fault::Of)>,
    pub(crate) pause_fails: Vec<Fails>,
    pub(crate) resume_fails: Vec<Fails>,
    pub(crate) snapshot_fails: Vec<Fails>,
    /// What commands do that are started or attached to with a stream, by a part of their text; without a rule they print
    /// nothing and never end. The last rule counts.
    pub(crate) rules: Vec<(String, Does)>,
    /// Texts of such commands in the order of their starts, and of those whose caller left before their end.
    pub(crate) commands: Vec<String>,
    pub(crate) left: Vec<String>,
    /// Texts of the commands that were started without a stream.
    pub(crate) started: Vec<String>,
    /// Paths at which there is nothing; at all others there is something.
    pub(crate) absent: HashSet<String>,
    /// What was written to files and unpacked.
    pub(crate) written: Vec<Written>,
    /// What sandboxes were asked for, in this order.
    pub(crate) creates: Vec<CreateRequest>,
    /// The fleet of the last ping.
    pub(crate) fleet: Option<Fleet>,
    /// Number of list calls received, and answered.
    pub(crate) lists: (usize, usize),
    /// Destroy calls, with the fleet of each.
    pub(crate) destroys: Vec<(String, Option<Fleet>)>,
    /// Sandboxes whose metrics were asked for, and of how many seconds. If `metrics_hang`, there is no answer.
    pub(crate) metrics_asked: Vec<(String, u32)>,
    pub(crate) metrics_hang: bool,
    /// Other calls that concern a sandbox: what was called, and the sandbox.
    pub(crate) calls: Vec<(&'static str, String)>,
    /// Target host ids of calls.
    pub(crate) meant: HashSet<String>,
}

/// A sandbox of the simulated agent.
#[derive(Debug, Clone)]
pub(crate) struct Simulated {
    pub(crate) state: SandboxState,
    /// Why it failed, or why the memory of a paused one was lost.
    pub(crate) failure: Option<(ErrorCode, String)>,
    /// The last process in it that was killed for want of memory: its time in milliseconds since 1970, id and name.
    pub(crate) killed: Option<(i64, u32, &'static str)>,
    /// Number of times that it was paused, which names its memory.
    pauses: usize,
}

/// A simulated agent.
pub(crate) struct Agent {
    pub(crate) id: HostId,
    pub(crate) address: std::net::SocketAddr,
    now: Mutex<Now>,
    /// Closed to make lists, destroys, pauses and resumes, commands or snapshots hang.
    pub(crate) list_gate: Semaphore,
    pub(crate) destroy_gate: Semaphore,
    pub(crate) life_gate: Semaphore,
    /// Closed to make resumes hang before the sandbox is another one.
    pub(crate) begin_gate: Semaphore,
    pub(crate) exec_gate: Semaphore,
    pub(crate) snapshot_gate: Semaphore,
    /// Closed to make imports hang, or the images that are made of snapshots.
    pub(crate) import_gate: Semaphore,
    pub(crate) image_gate: Semaphore,
    /// Closed to make it take nothing that others have sent.
    pub(crate) take_gate: Semaphore,
    /// Tells those who wait that a sandbox has another state.
    changed: watch::Sender<()>,
}

/// Cause of the agent's failed and unknown sandboxes.
pub(crate) const WHY: &str = "the journal is of a newer agent: upgrade this one";
/// Permits of an open gate.
pub(crate) const OPEN: usize = 1 << 20;

impl Agent {
    pub(crate) async fn start(tls: Arc<ServerConfig>) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let id = HostId::new();
        let now = Now {
            sandboxes: BTreeMap::new(),
            snapshots: HashSet::new(),
            images: HashSet::new(),
            registry: BTreeMap::new(),
            account: None,
            imports: Vec::new(),
            import_loses: 0,
            import_progress: (0, 0, 0),
            loads: Vec::new(),
            load_fails: Vec::new(),
            told_name: "told:1",
            secrets: Vec::new(),
            exported: Vec::new(),
            taken: Vec::new(),
            take_fails: Vec::new(),
            template_digests: BTreeMap::new(),
            host: id,
            max_sandboxes: 64,
            memory_mb: 65_536,
            quarantine: String::new(),
            takes: Duration::from_millis(2),
            create_fails: Vec::new(),
            pause_fails: Vec::new(),
            resume_fails: Vec::new(),
            snapshot_fails: Vec::new(),
            rules: Vec::new(),
            commands: Vec::new(),
            left: Vec::new(),
            started: Vec::new(),
            absent: HashSet::new(),
            written: Vec::new(),
            creates: Vec::new(),
            fleet: None,
            lists: (0, 0),
            destroys: Vec::new(),
            metrics_asked: Vec::new(),
            metrics_hang: false,
            calls: Vec::new(),
            meant: HashSet::new(),
        };
        let agent = Arc::new(Self {
            id,
            address: listener.local_addr()?,
            now: Mutex::new(now),
            list_gate: Semaphore::new(OPEN),
            destroy_gate: Semaphore::new(OPEN),
            life_gate: Semaphore::new(OPEN),
            begin_gate: Semaphore::new(OPEN),
            exec_gate: Semaphore::new(OPEN),
            snapshot_gate: Semaphore::new(OPEN),
            import_gate: Semaphore::new(OPEN),
            image_gate: Semaphore::new(OPEN),
            take_gate: Semaphore::new(OPEN),
            changed: watch::Sender::new(()),
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
        let fails = matches!(state, SandboxState::SANDBOX_STATE_FAILED | SandboxState::SANDBOX_STATE_UNKNOWN);
        let failure = fails.then(|| (ErrorCode::AgentError, WHY.to_owned()));
        self.now().sandboxes.insert(id.to_owned(), Simulated { state, failure, killed: None, pauses: 0 });
        self.changed.send_replace(());
    }

    /// Returns whether a destroy of this sandbox was called.
    pub(crate) fn was_told_to_destroy(&self, id: &str) -> bool {
        self.now().destroys.iter().any(|(destroyed, _)| destroyed == id)
    }

    /// Returns of how many seconds the metrics of a sandbox were asked for.
    pub(crate) fn metrics_asked(&self, id: &str) -> Vec<u32> {
        self.now().metrics_asked.iter().filter(|(of, _)| of == id).map(|(_, seconds)| *seconds).collect()
    }

    /// Returns what was called for a sandbox, apart from destroys and questions for its metrics.
    pub(crate) fn calls_of(&self, id: &str) -> Vec<&'static str> {
        self.now().calls.iter().filter(|(_, of)| of == id).map(|(what, _)| *what).collect()
    }

    fn note(&self, context: &RequestContext) {
        let meant = context.header(HOST_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.now().meant.insert(meant.to_owned());
    }

    async fn ping(&self, request: PingRequest) -> Result<PingResponse, ConnectError> {
        let mut now = self.now();
        now.fleet = request.fleet.into_option();
        Ok(PingResponse {
            host_id: now.host.to_string(),
            driver: "none".into(),
            cpus: 64,
            memory_mb: now.memory_mb,
            disk_mb: 1 << 20,
            disk_free_mb: 1 << 20,
            templates: vec!["minimal".into()],
            template_digests: now.template_digests.clone().into_iter().collect(),
            max_sandboxes: now.max_sandboxes,
            max_vcpus: 16,
            max_memory_mb: now.memory_mb,
            max_disk_size_mb: 1 << 20,
            quarantine: now.quarantine.clone(),
            ..Default::default()
        })
    }

    async fn create(&self, request: CreateRequest) -> Result<CreateResponse, ConnectError> {
        let id = &request.sandbox_id;
        let (takes, fails) = {
            let mut now = self.now();
            now.creates.push(request.clone());
            (now.takes, now.create_fails.pop())
        };
        tokio::time::sleep(takes).await;
        if let Some((code, of)) = fails {
            return Err(fault::attach(ConnectError::internal("it was told to fail"), code.as_str(), of));
        }
        if !request.image_id.is_empty() && !self.now().images.contains(&request.image_id) {
            let message = format!("this host has no image {}", request.image_id);
            return Err(refusal(ErrorCode::NotFound, message));
        }
        self.has(id, SandboxState::SANDBOX_STATE_RUNNING);
        Ok(CreateResponse { sandbox: self.described(id).into(), ..Default::default() })
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, ConnectError> {
        self.now().lists.0 += 1;
        let _open = self.list_gate.acquire().await;
        let mut now = self.now();
        now.lists.1 += 1;
        let sandboxes = now.sandboxes.iter().map(|(id, sandbox)| sandbox.describe(id)).collect();
        // Those that were imported: the ids of others have no hyphens.
        let imported = now.images.iter().filter(|id| request.images && id.contains('-'));
        Ok(ListResponse { sandboxes, image_ids: imported.cloned().collect(), ..Default::default() })
    }

    async fn destroy(&self, request: DestroyRequest) -> Result<DestroyResponse, ConnectError> {
        self.now().destroys.push((request.sandbox_id.clone(), request.fleet.into_option()));
        let _open = self.destroy_gate.acquire().await;
        self.now().sandboxes.remove(&request.sandbox_id);
        self.changed.send_replace(());
        Ok(DestroyResponse::default())
    }

    fn router(self: &Arc<Self>) -> Router {
        unary! {
            self, self.guests(),
            "Ping": PingRequest => PingResponse, ping;
            "Create": CreateRequest => CreateResponse, create;
            "List": ListRequest => ListResponse, list;
            "Destroy": DestroyRequest => DestroyResponse, destroy;
            "Get": GetRequest => GetResponse, get;
            "Metrics": MetricsRequest => MetricsResponse, metrics;
            "Pause": PauseRequest => PauseResponse, pause;
            "Resume": ResumeRequest => ResumeResponse, resume;
            "Exec": ExecRequest => ExecResponse, exec;
            "Snapshot": SnapshotRequest => SnapshotResponse, snapshot;
            "DeleteSnapshot": DeleteSnapshotRequest => DeleteSnapshotResponse, delete_snapshot;
            "MakeImage": MakeImageRequest => MakeImageResponse, make_image;
            "ImportImage": ImportImageRequest => ImportImageResponse, import_image;
            "GetImportProgress": GetImportProgressRequest => GetImportProgressResponse, get_import_progress;
            "DeleteImage": DeleteImageRequest => DeleteImageResponse, delete_image;
            "MakeUser": MakeUserRequest => MakeUserResponse, make_user;
            "PutSecret": PutSecretRequest => PutSecretResponse, put_secret;
            "RemoveSecrets": RemoveSecretsRequest => RemoveSecretsResponse, remove_secrets;
        }
    }
}

/// Error of a call, with its code.
fn refusal(code: ErrorCode, message: impl Into<String>) -> ConnectError {
    fault::attach(ConnectError::internal(message.into()), code.as_str(), fault::Of::OF_CALLER)
}

impl Simulated {
    fn describe(&self, id: &str) -> Sandbox {
        let failure = self.failure.as_ref().map(|(code, message)| Failure {
            code: code.as_str().to_owned(),
            message: message.clone(),
            ..Default::default()
        });
        let killed = self.killed.map(|(at_unix_ms, pid, command)| OutOfMemory {
            at_unix_ms,
            pid,
            command: command.to_owned(),
            ..Default::default()
        });
        let kept = self.state == SandboxState::SANDBOX_STATE_PAUSED && failure.is_none();
        Sandbox {
            id: id.to_owned(),
            state: self.state.into(),
            failure: failure.into(),
            last_out_of_memory: killed.into(),
            generation: if kept { format!("memory-{}", self.pauses) } else { String::new() },
            ..Default::default()
        }
    }
}
