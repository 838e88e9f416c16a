// SPDX-License-Identifier: Apache-2.0
//! The Connect service `process.Process`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use futures::{StreamExt as _, stream};
use rustix::termios::Winsize;
use wrenn_rpc::fault::{self, Of};
use wrenn_rpc::process::{
    __buffa::oneof::{
        connect_request, process_event::Event, process_event::data_event::Output, process_input::Input,
        process_selector, stream_input_request,
    },
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse, PTY,
    Process as ProcessService, ProcessConfig, ProcessEvent, ProcessInfo, ProcessSelector, ReadScreenRequest,
    ReadScreenResponse, SendInputRequest, SendInputResponse, SendSignalRequest, SendSignalResponse,
    StartRequest, StartResponse, StreamInputRequest, StreamInputResponse, UpdateRequest, UpdateResponse,
    process_event::{DataEvent, EndEvent, Lost, Resized, Screen, StartEvent, Victim},
    pty,
};

use super::{
    handle::Process,
    input::InputError,
    output::{Channel, Chunk, End, From, Item, LIMIT, Reader},
    registry::{Registry, StartError},
    spawn::{SpawnError, Spec},
    supervision::Limits,
    table::{Description, Selector},
};
use crate::{keepalive, log, out_of_memory::Kill, settings::Settings, users};

/// Highest number of a signal.
const SIGNALS: i32 = 64;
/// Set on Start by a caller that wants the process to end with its connection.
const KILL_ON_DISCONNECT: &str = "x-wrenn-kill-on-disconnect";

/// The service.
pub(crate) struct Service {
    pub(crate) registry: Arc<Registry>,
    pub(crate) settings: Arc<Settings>,
}

impl ProcessService for Service {
    async fn list<'a>(
        &'a self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let processes =
            self.registry.running().iter().map(|(process, started)| info(process, started)).collect();
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let mut request = request.to_owned_message();
        let tag = request.tag.take();
        let idle =
            Some(request.idle_timeout_ms).filter(|idle| *idle > 0 && request.pty.as_option().is_some());
        let idle = idle.map(|idle| Duration::from_millis(idle.into()));
        let limits = Limits { deadline: ctx.deadline(), idle };
        let (spec, description) = self.plan(&ctx, request).await?;
        let started = self.registry.start(spec, description, tag, limits).await;
        let (process, reader) = started.map_err(|error| {
            if !error.is_callers() {
                log::line(log::request_id(ctx.headers()), &error);
            }
            start_error(&error)
        })?;
        let mut feed = Feed::new(&ctx, process, reader);
        feed.kill_on_drop = ctx.header(KILL_ON_DISCONNECT).is_some_and(|v| v == "1");
        feed.report_deadline = true;
        Ok(Response::new(
            feed.events()
                .map(|event| event.map(|e| StartResponse { event: e.into(), ..Default::default() }))
                .boxed(),
        ))
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.as_option(), true)?;
        let from = match request.from {
            Some(connect_request::From::Offset(offset)) => From::Offset(offset),
            Some(connect_request::From::Now(true)) => From::Now,
            Some(connect_request::From::Screen(true)) => From::Screen,
            Some(connect_request::From::Now(false) | connect_request::From::Screen(false)) | None => {
                From::Beginning
            }
        };
        let reader = process.read(from).map_err(|error| ConnectError::out_of_range(error.to_string()))?;
        let events = Feed::new(&ctx, process, reader).events();
        Ok(Response::new(
            events
                .map(|event| event.map(|e| ConnectResponse { event: e.into(), ..Default::default() }))
                .boxed(),
        ))
    }

    async fn send_input<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.as_option(), false)?;
        write_input(&process, request.input.into_option().and_then(|input| input.input)).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn stream_input(
        &self,
        _ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'_>> {
        let mut process: Option<Arc<Process>> = None;
        while let Some(message) = requests.next().await.transpose()? {
            let message = message.to_owned_message();
            match (message.event, &process) {
                (Some(stream_input_request::Event::Start(start)), None) => {
                    process = Some(self.find(start.process.as_option(), false)?);
                }
                (Some(stream_input_request::Event::Data(data)), Some(process)) => {
                    write_input(process, data.input.into_option().and_then(|input| input.input)).await?;
                }
                (Some(stream_input_request::Event::Keepalive(_)) | None, _) => {}
                (Some(_), _) => {
                    let text = "the first message must be `start`, and no other one";
                    return Err(ConnectError::invalid_argument(text));
                }
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let signal = request.signal.to_i32();
        if !(1..=SIGNALS).contains(&signal) {
            return Err(ConnectError::invalid_argument(format!(
                "signal {signal} is none: give 1 to {SIGNALS}"
            )));
        }
        // Of an ended process, descendants may live.
        let process = self.find(request.process.as_option(), true)?;
        let signalling = Arc::clone(&process);
        let reached = tokio::task::spawn_blocking(move || signalling.signal(signal)).await;
        let reached = reached.map_err(|error| ConnectError::internal(error.to_string()))?;
        if reached == 0 {
            return Err(ConnectError::not_found(format!("process {} has ended", process.pid)));
        }
        let processes = u32::try_from(reached).unwrap_or(u32::MAX);
        Response::ok(SendSignalResponse { pid: process.pid, processes, ..Default::default() })
    }

    async fn close_stdin<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        let process = self.find(request.to_owned_message().process.as_option(), false)?;
        if process.pty {
            return Err(wrong_input(&process, "has a terminal; send Ctrl-D (0x04) instead"));
        }
        process.close_input();
        Response::ok(CloseStdinResponse::default())
    }

    async fn update<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.as_option(), false)?;
        if let Some(pty) = request.pty.as_option()
            && !process.resize(window(pty))
        {
            return Err(wrong_input(&process, "has no terminal to resize"));
        }
        Response::ok(UpdateResponse::default())
    }

    async fn read_screen<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, ReadScreenRequest>,
    ) -> ServiceResult<impl Encodable<ReadScreenResponse> + Send + use<'a>> {
        let process = self.find(request.to_owned_message().process.as_option(), true)?;
        let shown = process.shown().ok_or_else(|| wrong_input(&process, "has no terminal"))?;
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Response::ok(ReadScreenResponse {
            size: size(shown.size.ws_col, shown.size.ws_row).into(),
            rows: shown.text.rows,
            scrollback: shown.text.scrollback,
            cursor_row: number(shown.text.cursor.0),
            cursor_col: number(shown.text.cursor.1),
            cursor_visible: shown.text.cursor_visible,
            alternate: shown.text.alternate,
            offset: shown.written,
            ended: shown.ended,
            ..Default::default()
        })
    }
}

impl Service {
    async fn plan(
        &self,
        ctx: &RequestContext,
        request: StartRequest,
    ) -> Result<(Spec, Description), ConnectError> {
        let settings = self.settings.snapshot();
        let user = users::of_call(ctx.headers(), settings.default_user.clone()).await?;
        let Some(config) = request.process.into_option() else {
            return Err(ConnectError::invalid_argument("process is missing"));
        };
        let workdir = settings.default_workdir.clone();
        let mut envs = settings.variables();
        envs.extend(config.envs.iter().map(|(k, v)| (k.clone(), v.clone())));
        let cwd = config.cwd.clone().filter(|c| !c.is_empty());
        let description = Description {
            cmd: config.cmd.clone(),
            args: config.args.clone(),
            envs: config.envs.into_iter().collect(),
            cwd: cwd.clone(),
        };
        let spec = Spec {
            cmd: config.cmd,
            args: config.args,
            envs,
            cwd: cwd.or(workdir).unwrap_or_default(),
            user,
            stdin: request.stdin.unwrap_or(true),
            pty: request.pty.as_option().map(window),
        };
        Ok((spec, description))
    }

    fn find(&self, selector: Option<&ProcessSelector>, ended: bool) -> Result<Arc<Process>, ConnectError> {
        let (selector, what) = match selector.and_then(|s| s.selector.as_ref()) {
            Some(process_selector::Selector::Pid(pid)) => (Selector::Pid(*pid), format!("pid {pid}")),
            Some(process_selector::Selector::Tag(tag)) => {
                (Selector::Tag(tag.clone()), format!("tag '{tag}'"))
            }
            None => return Err(ConnectError::invalid_argument("process is missing; give `pid` or `tag`")),
        };
        let found = self.registry.find(&selector, ended);
        found.ok_or_else(|| ConnectError::not_found(format!("no process with {what}; it may have ended")))
    }
}

/// Writes input to a process.
async fn write_input(process: &Process, input: Option<Input>) -> Result<(), ConnectError> {
    let data = match input {
        Some(Input::Stdin(data)) if !process.pty => data,
        Some(Input::Pty(data)) if process.pty => data,
        Some(Input::Stdin(_)) => return Err(wrong_input(process, "has a terminal; send `pty`")),
        Some(Input::Pty(_)) => return Err(wrong_input(process, "has no terminal; send `stdin`")),
        None => return Err(ConnectError::invalid_argument("input is missing; send `stdin` or `pty`")),
    };
    process.write(&data).await.map_err(|error| match error {
        InputError::Closed(_) | InputError::Write(..) | InputError::Ended(_) => {
            ConnectError::failed_precondition(error.to_string())
        }
    })
}

fn wrong_input(process: &Process, what: &str) -> ConnectError {
    ConnectError::failed_precondition(format!("process {} {what}", process.pid))
}

fn start_error(error: &StartError) -> ConnectError {
    let text = error.to_string();
    let callers = |error, code| fault::attach(error, code, Of::OF_CALLER);
    match error {
        StartError::Spawn(SpawnError::CommandNotFound(_)) => {
            callers(ConnectError::not_found(text), "program_not_found")
        }
        StartError::Spawn(SpawnError::Cwd(_)) => {
            callers(ConnectError::invalid_argument(text), "directory_not_found")
        }
        StartError::Spawn(SpawnError::Denied { .. } | SpawnError::Interpreter { .. }) => {
            callers(ConnectError::permission_denied(text), "program_not_executable")
        }
        StartError::Spawn(SpawnError::CwdDenied { .. }) => ConnectError::permission_denied(text),
        StartError::Spawn(SpawnError::Nul(_)) => ConnectError::invalid_argument(text),
        StartError::Spawn(SpawnError::Resources { .. })
        | StartError::TooMany(_)
        | StartError::TooManyTerminals(_) => {
            callers(ConnectError::resource_exhausted(text), "too_many_requests")
        }
        StartError::TagTaken(_) => callers(ConnectError::already_exists(text), "conflict"),
        StartError::Spawn(SpawnError::Hung { .. }) => ConnectError::unavailable(text),
        StartError::Io(_) => ConnectError::internal(text),
    }
}

fn window(pty: &PTY) -> Winsize {
    let cell = |n: u32, default| u16::try_from(n).ok().filter(|n| *n > 0).unwrap_or(default);
    let size = pty.size.as_option();
    Winsize {
        ws_row: cell(size.map_or(0, |s| s.rows), 24),
        ws_col: cell(size.map_or(0, |s| s.cols), 80),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn size(cols: u16, rows: u16) -> pty::Size {
    pty::Size { cols: cols.into(), rows: rows.into(), ..Default::default() }
}

fn info(process: &Process, d: &Description) -> ProcessInfo {
    let config = ProcessConfig {
        cmd: d.cmd.clone(),
        args: d.args.clone(),
        envs: d.envs.iter().cloned().collect(),
        cwd: d.cwd.clone(),
        ..Default::default()
    };
    let started = process.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    ProcessInfo {
        config: config.into(),
        pid: process.pid,
        tag: process.tag.clone(),
        pty: process.pty,
        user: process.user.clone(),
        started_at_unix_ms: started.as_millis() as i64,
        out_of_memory: process.ran_out_of_memory(),
        ..Default::default()
    }
}

/// Number of times that the guest went on after a pause.
static RESUMES: AtomicU64 = AtomicU64::new(0);

/// Lets the commands go on whose connections are about to be reset after a pause: their callers did not end them.
pub(crate) fn leave_commands() {
    RESUMES.fetch_add(1, Ordering::Relaxed);
}

/// One client's stream of events.
struct Feed {
    process: Arc<Process>,
    reader: Reader,
    stage: Stage,
    keepalive: Duration,
    kill_on_drop: bool,
    report_deadline: bool,
    /// [`RESUMES`] when it began.
    resumes: u64,
}

enum Stage {
    Start,
    Output,
    Deadline,
    Done,
}

impl Feed {
    fn new(ctx: &RequestContext, process: Arc<Process>, reader: Reader) -> Self {
        let keepalive = keepalive::of_call(ctx);
        let resumes = RESUMES.load(Ordering::Relaxed);
        let (kill_on_drop, report_deadline) = (false, false);
        Self { process, reader, stage: Stage::Start, keepalive, kill_on_drop, report_deadline, resumes }
    }

    fn events(self) -> impl futures::Stream<Item = Result<ProcessEvent, ConnectError>> + Send {
        stream::unfold(self, |mut feed| async move {
            let item = feed.next().await?;
            Some((item, feed))
        })
    }

    async fn next(&mut self) -> Option<Result<ProcessEvent, ConnectError>> {
        let event = match self.stage {
            Stage::Start => {
                self.stage = Stage::Output;
                Event::Start(Box::new(StartEvent {
                    pid: self.process.pid,
                    offset: self.reader.begin(),
                    tag: self.process.tag.clone(),
                    pty: self.process.pty,
                    size: self.reader.size().map(|(cols, rows)| size(cols, rows)).into(),
                    ..Default::default()
                }))
            }
            Stage::Output => match tokio::time::timeout(self.keepalive, self.reader.next()).await {
                Err(_) => Event::Keepalive(Box::default()),
                Ok(Item::Chunk(chunk)) => data(&chunk),
                Ok(Item::Screen(piece)) => {
                    Event::Screen(Box::new(Screen { data: piece.to_vec(), ..Default::default() }))
                }
                Ok(Item::Resized(now)) => {
                    let size = size(now.ws_col, now.ws_row).into();
                    Event::Resized(Box::new(Resized { size, ..Default::default() }))
                }
                Ok(Item::Lost(bytes)) => Event::Lost(Box::new(Lost { bytes, ..Default::default() })),
                Ok(Item::End(end, lost)) => {
                    self.stage =
                        if end.timed_out && self.report_deadline { Stage::Deadline } else { Stage::Done };
                    end_event(&end, lost)
                }
            },
            Stage::Deadline => {
                self.stage = Stage::Done;
                let text = "the deadline of the call expired; the process and its descendants were killed";
                return Some(Err(ConnectError::deadline_exceeded(text)));
            }
            Stage::Done => return None,
        };
        Some(Ok(ProcessEvent { event: Some(event), ..Default::default() }))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let left = self.resumes != RESUMES.load(Ordering::Relaxed);
        if self.kill_on_drop && !left && !self.process.ended() {
            self.process.kill();
        }
    }
}

fn data(chunk: &Chunk) -> Event {
    let bytes = chunk.data.to_vec();
    let output = match chunk.channel {
        Channel::Stdout => Output::Stdout(bytes),
        Channel::Stderr => Output::Stderr(bytes),
        Channel::Pty => Output::Pty(bytes),
    };
    Event::Data(Box::new(DataEvent { output: Some(output), ..Default::default() }))
}

fn victim(kill: &Kill) -> Victim {
    Victim { pid: kill.pid, command: kill.command.clone(), ..Default::default() }
}

/// Describes the end for a client: `error` says what went wrong, as other implementations of this service do.
fn end_event(end: &End, lost: u64) -> Event {
    let error = if lost > 0 {
        Some(format!("{lost} bytes of output were dropped: at most {} KiB are kept per process", LIMIT >> 10))
    } else if end.out_of_memory && !end.exited {
        Some(format!("{}: the sandbox ran out of memory", end.status))
    } else {
        (end.exit_code != 0).then(|| end.status.clone())
    };
    Event::End(Box::new(EndEvent {
        exit_code: end.exit_code,
        exited: end.exited,
        status: end.status.clone(),
        error,
        signal: end.signal,
        lost_bytes: lost,
        out_of_memory: end.out_of_memory,
        victim: end.victim.as_ref().map(victim).into(),
        ..Default::default()
    }))
}
