// SPDX-License-Identifier: Apache-2.0
//! The Connect service `host.v1.Host`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use futures::{SinkExt as _, StreamExt as _, channel::mpsc, stream};
use sha2::{Digest as _, Sha256};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_oci::Credentials;
use wrenn_rpc::{
    OUTPUT_HEADER,
    filesystem::WatchDirResponse,
    host::v1::{
        __buffa::oneof::{
            connect_request, export_artifact_request, load_image_request, process_stream_request,
            process_stream_request::attach, read_file_response, write_file_request,
        },
        ChangeFileRequest, ChangeFileResponse, ConnectRequest, ConnectResponse, CopyFileRequest,
        CopyFileResponse, CreateRequest, CreateResponse, DeleteImageRequest, DeleteImageResponse,
        DeleteSnapshotRequest, DeleteSnapshotResponse, DestroyRequest, DestroyResponse, ExecRequest,
        ExecResponse, ExportArtifactRequest, ExportArtifactResponse, Failure, GetImportProgressRequest,
        GetImportProgressResponse, GetRequest, GetResponse, Host, ImportArtifactRequest,
        ImportArtifactResponse, ImportImageRequest, ImportImageResponse, ListDirectoryRequest,
        ListDirectoryResponse, ListProcessesRequest, ListProcessesResponse, ListRequest, ListResponse,
        LoadImageRequest, MakeDirectoryRequest, MakeDirectoryResponse, MakeImageRequest, MakeImageResponse,
        MakeUserRequest, MakeUserResponse, MetricsPoint, MetricsRequest, MetricsResponse, MoveFileRequest,
        MoveFileResponse, OutOfMemory, PauseRequest, PauseResponse, PingRequest, PingResponse,
        ProcessStreamRequest, ProcessStreamResponse, PutSecretRequest, PutSecretResponse, ReadFileRequest,
        ReadFileResponse, ReadScreenRequest, ReadScreenResponse, RemoveFileRequest, RemoveFileResponse,
        RemoveSecretsRequest, RemoveSecretsResponse, ResumeRequest, ResumeResponse, Sandbox, SandboxState,
        SignalProcessRequest, SignalProcessResponse, SnapshotRequest, SnapshotResponse, StartProcessRequest,
        StartProcessResponse, StatFileRequest, StatFileResponse, StepTiming, WatchFilesRequest,
        WriteFileRequest, WriteFileResponse,
        import_image_response::Variable,
    },
};

use crate::{
    agent::{Agent, Wanted},
    answer::Answer,
    artifacts::{Kind, Message},
    call::Call,
    config::PATH_MAX,
    error::AgentError,
    memory::STREAM,
    metrics::Sample,
    oci::{Archive, HowFar, ImportedImage, Loaded},
    port_stream::{PIPE, exchange as exchange_bytes},
    process_stream::{command, exchange, selector, size},
    sandbox::{
        actor::Handle,
        admit::Wish,
        directories, files,
        guest::Guest,
        phase::State,
        port,
        processes::{self, From},
        usage::Kill,
        watch,
    },
};

/// Default timeout of a command.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of buffered pieces of an upload.
const PENDING: usize = 4;
/// Maximum range of metrics in seconds: a day.
const RANGE_MAX: u32 = 86_400;

/// Implementation of the service.
pub(crate) struct Service {
    pub(crate) agent: Arc<Agent>,
}

impl Service {
    fn call(
        &self,
        context: &RequestContext,
        operation: &'static str,
        sandbox: &str,
    ) -> Result<Call, AgentError> {
        Call::of(context, self.agent.config.host_id, operation, sandbox)
    }

    /// Returns the connection to a running sandbox, for one call.
    async fn guest(&self, sandbox: &str, call: &Call) -> Result<Guest, AgentError> {
        Ok(self.agent.guest(sandbox).await?.for_request(call.request_id.clone()))
    }
}

fn invalid(message: impl Into<String>) -> ConnectError {
    AgentError::new(ErrorCode::InvalidRequest, message).into()
}

fn imported(image: ImportedImage) -> ImportImageResponse {
    let variable = |(name, value)| Variable { name, value, ..Default::default() };
    ImportImageResponse {
        image_id: image.image_id,
        digest: image.digest,
        size_mb: image.size_mb,
        sha256: image.sha256,
        env: image.env.into_iter().map(variable).collect(),
        user: image.user,
        workdir: image.workdir,
        entrypoint: image.entrypoint,
        cmd: image.cmd,
        skipped: image.skipped,
        first_skipped: image.first_skipped,
        ..Default::default()
    }
}

fn describe(agent: &Agent, id: &str, handle: &Handle) -> Sandbox {
    let (spec, now) = (&handle.spec, handle.now());
    let state = match now.state {
        State::Creating => SandboxState::SANDBOX_STATE_STARTING,
        State::Running => SandboxState::SANDBOX_STATE_RUNNING,
        State::Pausing => SandboxState::SANDBOX_STATE_PAUSING,
        State::Paused => SandboxState::SANDBOX_STATE_PAUSED,
        State::Resuming => SandboxState::SANDBOX_STATE_RESUMING,
        State::Destroying => SandboxState::SANDBOX_STATE_STOPPING,
        State::Unknown => SandboxState::SANDBOX_STATE_UNKNOWN,
        State::Failing | State::Failed | State::Gone => SandboxState::SANDBOX_STATE_FAILED,
    };
    let failure = now.failure.map(|error| Failure {
        code: error.code.as_str().to_owned(),
        message: error.message,
        ..Default::default()
    });
    let vmm = &agent.shared.vmm;
    let metadata = [
        ("agent_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("vmm", format!("{} {}", vmm.name(), vmm.version())),
    ];
    let metadata = metadata.into_iter().chain(now.boot_reason.map(|reason| ("boot_reason", reason)));
    Sandbox {
        id: id.to_owned(),
        state: state.into(),
        template: spec.template.clone(),
        vcpus: spec.vcpus,
        memory_mb: spec.memory_mb,
        disk_size_mb: spec.disk_size_mb,
        created_at_unix_ms: spec.created_at_unix_ms,
        failure: failure.into(),
        last_out_of_memory: agent.metrics.last_kill(id).map(out_of_memory).into(),
        generation: now.generation.map(|build| build.to_string()).unwrap_or_default(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).collect(),
        ..Default::default()
    }
}

fn out_of_memory(kill: Kill) -> OutOfMemory {
    let Kill { at_ms, pid, command } = kill;
    OutOfMemory { at_unix_ms: i64::try_from(at_ms).unwrap_or(i64::MAX), pid, command, ..Default::default() }
}

/// Durations of the operation that brought the sandbox to run.
fn timings(handle: &Handle) -> Vec<StepTiming> {
    let timings = handle.now().timings.into_iter().map(|(step, took)| StepTiming {
        step: step.to_owned(),
        micros: took.as_micros() as u64,
        ..Default::default()
    });
    timings.collect()
}

fn point(sample: &Sample) -> MetricsPoint {
    let (guest, bytes) = (sample.guest, |kib: u32| u64::from(kib) << 10);
    MetricsPoint {
        timestamp_unix_ms: sample.time_ms as i64,
        cpu_hundredths: sample.cpu.into(),
        mem_bytes: sample.mem_bytes,
        disk_bytes: sample.disk_bytes,
        net_rx_bytes: sample.net_rx_bytes,
        net_tx_bytes: sample.net_tx_bytes,
        guest_mem_used_bytes: bytes(guest.mem_used),
        guest_mem_total_bytes: bytes(guest.mem_total),
        guest_disk_used_bytes: bytes(guest.disk_used),
        guest_disk_total_bytes: bytes(guest.disk_total),
        ..Default::default()
    }
}

/// Time limit of a command; none for 0.
fn limit(timeout_ms: u32) -> Option<Duration> {
    (timeout_ms > 0).then(|| Duration::from_millis(u64::from(timeout_ms)))
}

fn checked_path(path: &str) -> Result<(), ConnectError> {
    if path.is_empty() || path.chars().count() > PATH_MAX || path.contains('\0') {
        return Err(invalid(format!("a path has 1 to {PATH_MAX} characters and no NUL")));
    }
    Ok(())
}

impl Host for Service {
    async fn ping<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, PingRequest>,
    ) -> ServiceResult<impl Encodable<PingResponse> + Send + use<'a>> {
        let call = self.call(&ctx, "ping", "")?;
        let agent = &self.agent;
        let fleet = request.to_owned_message().fleet.into_option();
        let quarantine = agent.fleets.check(fleet.as_ref()).instrument(call.span).await.err();
        let (disk_mb, disk_free_mb) = agent.disk_mb().await?;
        let (max_vcpus, max_memory_mb, max_disk_size_mb) = agent.most();
        let (sandboxes_running, sandboxes_paused) = agent.running_and_paused();
        Response::ok(PingResponse {
            host_id: agent.config.host_id.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: agent.shared.vmm.name().to_owned(),
            driver_reason: agent.driver_reason.clone(),
            cpus: agent.machine.cpus,
            memory_mb: agent.machine.memory_mb,
            disk_mb,
            disk_free_mb,
            templates: agent.shared.assets.templates.keys().cloned().collect(),
            sandboxes: agent.list().len() as u32,
            max_sandboxes: agent.config.settings.limits.sandboxes,
            max_vcpus,
            max_memory_mb,
            max_disk_size_mb,
            security_boundary: agent.shared.vmm.capabilities().security_boundary,
            quarantine: quarantine.map(|cause| cause.message).unwrap_or_default(),
            sandboxes_running,
            sandboxes_paused,
            sandboxes_cpu_milli: agent.metrics.cpu_milli(),
            sandboxes_memory_bytes: agent.metrics.memory_bytes(),
            sampler_micros: agent.metrics.round_micros(),
            template_digests: agent
                .shared
                .assets
                .templates
                .iter()
                .map(|(name, template)| (name.clone(), template.sha256.clone()))
                .collect(),
            ..Default::default()
        })
    }

    async fn create<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateRequest>,
    ) -> ServiceResult<impl Encodable<CreateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let id = request.sandbox_id.clone();
        let call = self.call(&ctx, "create", &id)?;
        let wanted = Wanted {
            id: request.sandbox_id,
            template: request.template,
            vcpus: request.vcpus,
            memory_mb: request.memory_mb,
            disk_size_mb: request.disk_size_mb,
            envs: request.envs.into_iter().collect(),
            default_user: request.default_user,
            default_workdir: request.default_workdir,
            snapshot: request.snapshot_id,
            image: request.image_id,
        };
        let handle = self.agent.create(wanted).instrument(call.span).await?;
        Response::ok(CreateResponse {
            sandbox: describe(&self.agent, &id, &handle).into(),
            timings: timings(&handle),
            ..Default::default()
        })
    }

    async fn pause<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, PauseRequest>,
    ) -> ServiceResult<impl Encodable<PauseResponse> + Send + use<'a>> {
        let id = request.sandbox_id.to_owned();
        let call = self.call(&ctx, "pause", &id)?;
        let handle = self.agent.pause(&id).instrument(call.span).await?;
        Response::ok(PauseResponse {
            sandbox: describe(&self.agent, &id, &handle).into(),
            ..Default::default()
        })
    }

    async fn resume<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ResumeRequest>,
    ) -> ServiceResult<impl Encodable<ResumeResponse> + Send + use<'a>> {
        let (id, from_disk) = (request.sandbox_id.to_owned(), request.from_disk);
        let call = self.call(&ctx, "resume", &id)?;
        let handle = self.agent.resume(&id, !from_disk).instrument(call.span).await?;
        Response::ok(ResumeResponse {
            sandbox: describe(&self.agent, &id, &handle).into(),
            timings: timings(&handle),
            ..Default::default()
        })
    }

    async fn destroy<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, DestroyRequest>,
    ) -> ServiceResult<impl Encodable<DestroyResponse> + Send + use<'a>> {
        let call = self.call(&ctx, "destroy", request.sandbox_id)?;
        let request = request.to_owned_message();
        let destroy = async {
            self.agent.fleets.check(request.fleet.as_option()).await?;
            self.agent.destroy(&request.sandbox_id).await
        };
        let destroyed = destroy.instrument(call.span.clone()).await;
        destroyed.inspect_err(|error| {
            call.span.in_scope(|| tracing::warn!(code = %error.code, %error, "a destroy failed"));
        })?;
        Response::ok(DestroyResponse::default())
    }

    async fn snapshot<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, SnapshotRequest>,
    ) -> ServiceResult<impl Encodable<SnapshotResponse> + Send + use<'a>> {
        let (id, snapshot) = (request.sandbox_id.to_owned(), request.snapshot_id.to_owned());
        let wish = Wish { id: snapshot.clone(), without_memory: request.without_memory };
        let call = self.call(&ctx, "snapshot", &id)?;
        self.agent.snapshot(&id, wish).instrument(call.span).await?;
        let disk_bytes = self.agent.snapshot_disk_bytes(&snapshot).await;
        Response::ok(SnapshotResponse { disk_bytes, ..Default::default() })
    }

    async fn delete_snapshot<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, DeleteSnapshotRequest>,
    ) -> ServiceResult<impl Encodable<DeleteSnapshotResponse> + Send + use<'a>> {
        let snapshot = request.snapshot_id.to_owned();
        let call = self.call(&ctx, "delete_snapshot", "")?;
        self.agent.delete_snapshot(&snapshot).instrument(call.span).await?;
        Response::ok(DeleteSnapshotResponse::default())
    }

    async fn make_image<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeImageRequest>,
    ) -> ServiceResult<impl Encodable<MakeImageResponse> + Send + use<'a>> {
        let (snapshot, image) = (request.snapshot_id.to_owned(), request.image_id.to_owned());
        let call = self.call(&ctx, "make_image", "")?;
        let image = self.agent.make_image(&snapshot, &image).instrument(call.span).await?;
        Response::ok(MakeImageResponse {
            size_mb: image.size_mb,
            sha256: image.sha256.clone(),
            ..Default::default()
        })
    }

    async fn import_image<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ImportImageRequest>,
    ) -> ServiceResult<impl Encodable<ImportImageResponse> + Send + use<'a>> {
        let (team, reference) = (request.team_id.to_owned(), request.reference.to_owned());
        let has_account = !request.username.is_empty() || !request.password.is_empty();
        let credentials = has_account.then(|| Credentials {
            username: request.username.to_owned(),
            password: request.password.to_owned(),
        });
        let call = self.call(&ctx, "import_image", "")?;
        let image = self.agent.import_image(&team, &reference, credentials).instrument(call.span).await?;
        Response::ok(imported(image))
    }

    async fn get_import_progress<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, GetImportProgressRequest>,
    ) -> ServiceResult<impl Encodable<GetImportProgressResponse> + Send + use<'a>> {
        self.call(&ctx, "get_import_progress", "")?;
        let how_far = self.agent.import_progress(request.team_id, request.reference);
        let HowFar { total, fetched, unpacked } = how_far.unwrap_or_default();
        Response::ok(GetImportProgressResponse { total, fetched, unpacked, ..Default::default() })
    }

    async fn load_image(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<LoadImageRequest>,
    ) -> ServiceResult<impl Encodable<ImportImageResponse> + Send + use<>> {
        let first = requests.next().await.transpose()?.and_then(|message| message.to_owned_message().part);
        let Some(load_image_request::Part::Open(open)) = first else {
            return Err(invalid("the first message must carry `open`"));
        };
        let call = self.call(&ctx, "load_image", "")?;
        let _memory = self.agent.shared.memory.reserve(STREAM)?;
        let name = Some(open.name).filter(|name| !name.is_empty());
        let archive = Archive { team: open.team_id, size: open.size, name };
        let pieces = stream::try_unfold(requests, |mut requests| async move {
            let part = requests.next().await.transpose()?.and_then(|message| message.to_owned_message().part);
            match part {
                Some(load_image_request::Part::Chunk(bytes)) => Ok(Some((Bytes::from(bytes), requests))),
                Some(load_image_request::Part::Commit(_)) => Ok(None),
                Some(load_image_request::Part::Open(_)) | None => {
                    Err(invalid("the archive ended without `commit`: send it again"))
                }
            }
        });
        let Loaded { image, told_name } =
            self.agent.load_image(archive, pieces).instrument(call.span).await?;
        let told_name = told_name.unwrap_or_default();
        Response::ok(ImportImageResponse { told_name, ..imported(image) })
    }

    async fn delete_image<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, DeleteImageRequest>,
    ) -> ServiceResult<impl Encodable<DeleteImageResponse> + Send + use<'a>> {
        let image = request.image_id.to_owned();
        let call = self.call(&ctx, "delete_image", "")?;
        self.agent.delete_image(&image).instrument(call.span).await?;
        Response::ok(DeleteImageResponse::default())
    }

    async fn export_artifact(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ExportArtifactRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ExportArtifactResponse> + Send + use<>>> {
        let call = self.call(&ctx, "export_artifact", "")?;
        let (kind, id) = match request.to_owned_message().artifact {
            Some(export_artifact_request::Artifact::SnapshotId(id)) => (Kind::Snapshot, id),
            Some(export_artifact_request::Artifact::ImageId(id)) => (Kind::Image, id),
            None => return Err(invalid("an artifact is a snapshot or an image: give the id of one")),
        };
        let messages = self.agent.shared.artifacts.export(kind, &id).instrument(call.span).await?;
        let parts = ReceiverStream::new(messages)
            .map(|message| message.map(ExportArtifactResponse::from).map_err(ConnectError::from));
        Ok(Response::new(parts.boxed()))
    }

    async fn import_artifact(
        &self,
        ctx: RequestContext,
        requests: InboundStream<ImportArtifactRequest>,
    ) -> ServiceResult<impl Encodable<ImportArtifactResponse> + Send + use<>> {
        let call = self.call(&ctx, "import_artifact", "")?;
        let messages = requests.map(|message| match message {
            Ok(message) => Message::try_from(message.to_owned_message()),
            Err(error) => {
                tracing::info!(%error, "an artifact did not come to its end");
                let message = "the stream of the artifact broke off; nothing was kept: send it again";
                Err(AgentError::new(ErrorCode::InvalidRequest, message))
            }
        });
        let artifacts = self.agent.shared.artifacts.clone();
        let size_bytes = artifacts.import(messages.boxed()).instrument(call.span).await?;
        Response::ok(ImportArtifactResponse { size_bytes, ..Default::default() })
    }

    async fn make_user<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeUserRequest>,
    ) -> ServiceResult<impl Encodable<MakeUserResponse> + Send + use<'a>> {
        let (id, user) = (request.sandbox_id.to_owned(), request.user.to_owned());
        let call = self.call(&ctx, "make_user", &id)?;
        let guest = self.guest(&id, &call).await?;
        guest.make_user(&user).instrument(call.span).await?;
        Response::ok(MakeUserResponse::default())
    }

    async fn put_secret<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, PutSecretRequest>,
    ) -> ServiceResult<impl Encodable<PutSecretResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let call = self.call(&ctx, "put_secret", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let put = guest.put_secret(&request.id, &request.target, &request.user, &request.value);
        put.instrument(call.span).await?;
        Response::ok(PutSecretResponse::default())
    }

    async fn remove_secrets<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveSecretsRequest>,
    ) -> ServiceResult<impl Encodable<RemoveSecretsResponse> + Send + use<'a>> {
        let id = request.sandbox_id.to_owned();
        let call = self.call(&ctx, "remove_secrets", &id)?;
        let guest = self.guest(&id, &call).await?;
        guest.remove_secrets().instrument(call.span).await?;
        Response::ok(RemoveSecretsResponse::default())
    }

    async fn get<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, GetRequest>,
    ) -> ServiceResult<impl Encodable<GetResponse> + Send + use<'a>> {
        let id = request.sandbox_id;
        self.call(&ctx, "get", id)?;
        let handle = self.agent.get(id)?;
        Response::ok(GetResponse { sandbox: describe(&self.agent, id, &handle).into(), ..Default::default() })
    }

    async fn list<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        self.call(&ctx, "list", "")?;
        let image_ids = if request.images { self.agent.imported_images() } else { Vec::new() };
        let all = self.agent.list();
        let sandboxes = all.iter().map(|(id, handle)| describe(&self.agent, id, handle)).collect();
        Response::ok(ListResponse { sandboxes, image_ids, ..Default::default() })
    }

    async fn metrics<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MetricsRequest>,
    ) -> ServiceResult<impl Encodable<MetricsResponse> + Send + use<'a>> {
        let (id, seconds) = (request.sandbox_id.to_owned(), request.range_sec);
        let call = self.call(&ctx, "metrics", &id)?;
        if !(1..=RANGE_MAX).contains(&seconds) {
            return Err(invalid(format!("range_sec is {seconds}: it must be 1 to {RANGE_MAX}")));
        }
        let samples = self.agent.measured(&id, seconds).instrument(call.span).await?;
        let points = samples.iter().map(point).collect();
        Response::ok(MetricsResponse { points, ..Default::default() })
    }

    async fn exec<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ExecRequest>,
    ) -> ServiceResult<impl Encodable<ExecResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let call = self.call(&ctx, "exec", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let command = command(request.command.into_option())?;
        let limit = match request.timeout_ms {
            0 => EXEC_TIMEOUT,
            given => Duration::from_millis(u64::from(given)),
        };
        let begin = Instant::now();
        let finished = processes::run(&guest, command, limit, self.agent.config.settings.limits.exec_output)
            .instrument(call.span)
            .await?;
        if let Some(answer) = ctx.extensions().get::<Answer>() {
            answer.hold(finished.memory);
        }
        let bytes = finished.stdout.len() + finished.stderr.len();
        let response = Response::from(ExecResponse {
            stdout: finished.stdout,
            stderr: finished.stderr,
            exit_code: finished.exit_code,
            timed_out: finished.timed_out,
            truncated: finished.lost_bytes > 0,
            lost_bytes: finished.lost_bytes,
            out_of_memory: finished.out_of_memory,
            victim: finished.victim.into(),
            duration_ms: begin.elapsed().as_millis() as u64,
            ..Default::default()
        });
        Ok(response.with_header(OUTPUT_HEADER, bytes.to_string()))
    }

    async fn process_stream(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<ProcessStreamRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ProcessStreamResponse> + Send + use<>>> {
        let first = requests.next().await.transpose()?.and_then(|message| message.to_owned_message().part);
        let (guest, running) = match first {
            Some(process_stream_request::Part::Start(start)) => {
                let call = self.call(&ctx, "process_stream", &start.sandbox_id)?;
                let guest = self.guest(&start.sandbox_id, &call).await?;
                let command = command(start.command.into_option())?;
                let running =
                    processes::stream(&guest, command, limit(start.timeout_ms)).instrument(call.span).await?;
                (guest, running)
            }
            Some(process_stream_request::Part::Attach(attach)) => {
                let call = self.call(&ctx, "process_stream", &attach.sandbox_id)?;
                let guest = self.guest(&attach.sandbox_id, &call).await?;
                let process = selector(attach.process.as_option())?;
                let from = match attach.from {
                    None | Some(attach::From::Now(false) | attach::From::Screen(false)) => From::Beginning,
                    Some(attach::From::Screen(true)) => From::Screen,
                    Some(attach::From::Now(true)) => From::Now,
                    Some(attach::From::Offset(offset)) => From::Offset(offset),
                };
                let size = attach.size.as_option().map(size).transpose()?;
                let running = processes::attach(&guest, &process, from, size).instrument(call.span).await?;
                (guest, running)
            }
            _ => return Err(invalid("the first message must carry `start` or `attach`")),
        };
        Ok(Response::new(exchange(guest, running, requests).boxed()))
    }

    async fn read_screen<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ReadScreenRequest>,
    ) -> ServiceResult<impl Encodable<ReadScreenResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let call = self.call(&ctx, "read_screen", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let process = selector(request.process.as_option())?;
        Response::ok(processes::screen(&guest, &process).instrument(call.span).await?)
    }

    async fn start_process<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartProcessRequest>,
    ) -> ServiceResult<impl Encodable<StartProcessResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let call = self.call(&ctx, "start_process", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let command = command(request.command.into_option())?;
        let pid = processes::start(&guest, command, limit(request.timeout_ms)).instrument(call.span).await?;
        Response::ok(StartProcessResponse { pid, ..Default::default() })
    }

    async fn list_processes<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListProcessesRequest>,
    ) -> ServiceResult<impl Encodable<ListProcessesResponse> + Send + use<'a>> {
        let call = self.call(&ctx, "list_processes", request.sandbox_id)?;
        let guest = self.guest(request.sandbox_id, &call).await?;
        let _memory = self.agent.shared.memory.reserve(STREAM)?;
        let processes = processes::list(&guest).instrument(call.span).await?;
        Response::ok(ListProcessesResponse { processes, ..Default::default() })
    }

    async fn signal_process<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, SignalProcessRequest>,
    ) -> ServiceResult<impl Encodable<SignalProcessResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let call = self.call(&ctx, "signal_process", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let process = selector(request.process.as_option())?;
        let (pid, processes) =
            processes::signal(&guest, &process, request.signal).instrument(call.span).await?;
        Response::ok(SignalProcessResponse { pid, processes, ..Default::default() })
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let first = requests.next().await.transpose()?.and_then(|message| message.to_owned_message().part);
        let Some(connect_request::Part::Open(open)) = first else {
            return Err(invalid("the first message must carry `open`"));
        };
        let call = self.call(&ctx, "connect", &open.sandbox_id)?;
        let guest = self.guest(&open.sandbox_id, &call).await?;
        let memory = self.agent.shared.memory.reserve(PIPE)?;
        let pipe = port::connect(&guest, open.port).instrument(call.span).await?;
        Ok(Response::new(exchange_bytes(guest, pipe, requests, memory).boxed()))
    }

    async fn read_file(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ReadFileRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ReadFileResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "read_file", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let memory = self.agent.shared.memory.reserve(STREAM)?;
        let (head, content) = files::read(&guest, &request).instrument(call.span).await?;
        let first = stream::once(async move { Ok(read_file_response::Part::Head(head.into())) });
        let rest = content.map(|piece| match piece {
            Ok(bytes) => Ok(read_file_response::Part::Chunk(bytes.into())),
            Err(error) => Err(ConnectError::from(error)),
        });
        let parts = first.chain(rest).map(move |part| {
            // Reserved memory is released with the stream.
            let _held = &memory;
            part.map(|part| ReadFileResponse { part: Some(part), ..Default::default() })
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn write_file(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<WriteFileRequest>,
    ) -> ServiceResult<impl Encodable<WriteFileResponse> + Send + use<>> {
        let first = requests.next().await.transpose()?.and_then(|message| message.to_owned_message().part);
        let Some(write_file_request::Part::Open(open)) = first else {
            return Err(invalid("the first message must carry `open`"));
        };
        checked_path(&open.path)?;
        let call = self.call(&ctx, "write_file", &open.sandbox_id)?;
        let guest = self.guest(&open.sandbox_id, &call).await?;
        let _memory = self.agent.shared.memory.reserve(STREAM)?;
        let (mut pieces, content) = mpsc::channel::<Result<Bytes, std::io::Error>>(PENDING);
        let writing = files::write(&guest, &open, content);
        let feeding = async move {
            let (mut size, mut sum) = (0, Sha256::new());
            loop {
                let message = requests.next().await.transpose();
                let part = match message {
                    Ok(message) => message.and_then(|message| message.to_owned_message().part),
                    Err(error) => {
                        // The guest must not take an incomplete upload for the whole file.
                        let _ = pieces.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                        return Err(error);
                    }
                };
                match part {
                    Some(write_file_request::Part::Chunk(bytes)) => {
                        size += bytes.len() as u64;
                        sum.update(&bytes);
                        if pieces.send(Ok(bytes.into())).await.is_err() {
                            // The guest rejected the file; its response has the reason.
                            return Ok((size, sum));
                        }
                    }
                    Some(write_file_request::Part::Commit(_)) => return Ok((size, sum)),
                    Some(write_file_request::Part::Open(_)) | None => {
                        let _ = pieces.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                        return Err(invalid(
                            "the upload ended without `commit`; the file was left as it was",
                        ));
                    }
                }
            }
        };
        let (written, fed) = async { futures::join!(writing, feeding) }.instrument(call.span).await;
        // If the upload broke off, the guest's error is only a consequence.
        let (size, sum) = fed?;
        let entries = written.map_err(|error: AgentError| ConnectError::from(error))?;
        let sha256 = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Response::ok(WriteFileResponse { size, sha256, entries, ..Default::default() })
    }

    async fn list_directory<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirectoryRequest>,
    ) -> ServiceResult<impl Encodable<ListDirectoryResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "list_directory", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let _memory = self.agent.shared.memory.reserve(STREAM)?;
        let entries = directories::list(&guest, request.path, request.depth).instrument(call.span).await?;
        Response::ok(ListDirectoryResponse { entries, ..Default::default() })
    }

    async fn stat_file<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatFileRequest>,
    ) -> ServiceResult<impl Encodable<StatFileResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "stat_file", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let entry = directories::stat(&guest, request.path, &request.user).instrument(call.span).await?;
        Response::ok(StatFileResponse { entry: entry.into(), ..Default::default() })
    }

    async fn make_directory<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirectoryRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirectoryResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "make_directory", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let entry = directories::make(&guest, request.path, &request.user).instrument(call.span).await?;
        Response::ok(MakeDirectoryResponse { entry: entry.into(), ..Default::default() })
    }

    async fn move_file<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveFileRequest>,
    ) -> ServiceResult<impl Encodable<MoveFileResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.source)?;
        checked_path(&request.destination)?;
        let call = self.call(&ctx, "move_file", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let entry =
            directories::r#move(&guest, request.source, request.destination).instrument(call.span).await?;
        Response::ok(MoveFileResponse { entry: entry.into(), ..Default::default() })
    }

    async fn remove_file<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveFileRequest>,
    ) -> ServiceResult<impl Encodable<RemoveFileResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "remove_file", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        directories::remove(&guest, request.path, &request.user).instrument(call.span).await?;
        Response::ok(RemoveFileResponse::default())
    }

    async fn copy_file<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CopyFileRequest>,
    ) -> ServiceResult<impl Encodable<CopyFileResponse> + Send + use<'a>> {
        let CopyFileRequest { sandbox_id, source, destination, user, .. } = request.to_owned_message();
        checked_path(&source)?;
        checked_path(&destination)?;
        let call = self.call(&ctx, "copy_file", &sandbox_id)?;
        let guest = self.guest(&sandbox_id, &call).await?;
        let entry = directories::copy(&guest, source, destination, &user).instrument(call.span).await?;
        Response::ok(CopyFileResponse { entry: entry.into(), ..Default::default() })
    }

    async fn change_file<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ChangeFileRequest>,
    ) -> ServiceResult<impl Encodable<ChangeFileResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "change_file", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let entry = directories::change(&guest, request).instrument(call.span).await?;
        Response::ok(ChangeFileResponse { entry: entry.into(), ..Default::default() })
    }

    async fn watch_files(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchFilesRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        checked_path(&request.path)?;
        let call = self.call(&ctx, "watch_files", &request.sandbox_id)?;
        let guest = self.guest(&request.sandbox_id, &call).await?;
        let events = watch::watch(&guest, request.path, &request.user, request.recursive);
        Ok(Response::new(events.instrument(call.span).await?.boxed()))
    }
}
