// SPDX-License-Identifier: Apache-2.0
//! Client of one guest's envd: its HTTP and Connect services, reached through the sandbox's slot.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand::RngCore as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_rpc::{filesystem::FilesystemClient, process::ProcessClient};

use super::spec::Spec;
use crate::{
    call::REQUEST_ID,
    error::AgentError,
    memory::{Memory, Share},
};

/// Port of envd in the guest.
pub(crate) const ENVD_PORT: u16 = 49983;
/// Time limit of one readiness check of a booting guest.
const LOOK: Duration = Duration::from_millis(500);
/// Delay between readiness checks.
const PAUSE: Duration = Duration::from_millis(10);
/// Time limit for envd's first response to a call.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Maximum number of bytes read of envd's error response.
const ERROR_TEXT: usize = 64 << 10;
/// Maximum number of characters of envd's error that are passed on.
pub(super) const ERROR_SHOWN: usize = 512;
/// Maximum number of concurrent calls on one connection to a guest; further ones wait.
const CALLS: usize = 256;
/// Flow control window in bytes of a connection with a command's streamed output.
const UNREAD: u32 = 128 << 10;
/// Flow control window in bytes of the connection shared by calls that are read at once.
const UNREAD_SHARED: u32 = 1 << 20;
/// Maximum message size of envd: a piece of output of at most 64 KiB and its framing.
const MESSAGE_MAX: usize = (64 << 10) + 4096;

/// Codes that envd may give as the reason of a refusal.
const REASONS: [ErrorCode; 3] = [ErrorCode::IsADirectory, ErrorCode::NotADirectory, ErrorCode::UserNotFound];

/// Time limit for a first command.
const WARM: Duration = Duration::from_secs(15);
/// Ends a connection with its request: it would be part of the guest's memory if that is captured.
const CLOSE: header::HeaderValue = header::HeaderValue::from_static("close");

/// Time limit for envd's preparation of a pause: a guest that hangs is paused all the same.
const PREPARE: Duration = Duration::from_secs(10);
/// Time limit for a guest to write all to its disk, where that is needed.
const SYNC: Duration = Duration::from_secs(60);
/// Time within which a guest answers for its clock to be right, and number of attempts to set it right afterwards.
const CLOCK_PRECISION: Duration = Duration::from_millis(500);
const CLOCK_ATTEMPTS: u32 = 3;

/// Body of a request to envd.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Client of envd's process service.
pub(super) type Processes = ProcessClient<SharedHttp2Connection>;

/// Client of one guest's envd.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(super) authority: String,
    uri: Uri,
    token: String,
    pub(super) http: Client<HttpConnector, Body>,
    /// Client for calls whose responses are read at once: all share one connection and its window.
    pub(super) processes: Processes,
    /// Client of its file system, over the same connection.
    pub(super) files: FilesystemClient<SharedHttp2Connection>,
    gone: CancellationToken,
    /// Whether it had no memory left.
    out_of_memory: Arc<AtomicBool>,
    /// Id of the current request, for envd's log; empty if there is none.
    request_id: String,
    /// Account of the host memory that the guest's output uses.
    pub(super) share: Share,
}

/// What a guest is told besides who it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Introduction<'a> {
    /// Environment of its processes; none if it goes on from its own memory and knows it.
    envs: Option<&'a HashMap<String, String>>,
    /// Whether it has the disk and maybe the memory of others.
    new_machine: bool,
    /// Whether it goes on from the memory of a guest that was in use.
    resumed: bool,
    /// Token that it knows, if that is another one than the sandbox's.
    token: Option<&'a str>,
}

impl<'a> Introduction<'a> {
    /// Of a new sandbox.
    pub(crate) fn first(envs: &'a HashMap<String, String>) -> Self {
        Self { envs: Some(envs), new_machine: true, resumed: false, token: None }
    }

    /// Of a new sandbox that goes on from another one's memory.
    pub(crate) fn of_clone(envs: &'a HashMap<String, String>, token: Option<&'a str>) -> Self {
        Self { envs: Some(envs), new_machine: true, resumed: true, token }
    }

    /// After a boot from the sandbox's own disk.
    pub(crate) fn after_boot(envs: &'a HashMap<String, String>) -> Self {
        Self { envs: Some(envs), new_machine: false, resumed: false, token: None }
    }

    /// After a resume from the sandbox's own memory.
    pub(crate) fn after_resume() -> Self {
        Self { envs: None, new_machine: false, resumed: true, token: None }
    }
}

impl Guest {
    /// Creates a client of the guest at `address`; sends nothing yet.
    pub(crate) fn new(address: Ipv4Addr, token: &str, memory: &Arc<Memory>) -> Result<Self, AgentError> {
        Self::at(format!("{address}:{ENVD_PORT}"), token, Share::of(memory.clone()))
    }

    pub(super) fn at(authority: String, token: &str, share: Share) -> Result<Self, AgentError> {
        let uri: Uri = format!("http://{authority}")
            .parse()
            .map_err(|error| AgentError::fault("addressing the sandbox", &error))?;
        // Without a limit for connecting: each call has one, and a guest that has just been resumed may take long to get to its
        // network.
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build(connector);
        let shared = connection(uri.clone(), UNREAD_SHARED, CALLS);
        Ok(Self {
            authority,
            processes: ProcessClient::new(shared.clone(), config(uri.clone())),
            files: FilesystemClient::new(shared, config(uri.clone())),
            uri,
            token: token.to_owned(),
            http,
            gone: CancellationToken::new(),
            out_of_memory: Arc::default(),
            request_id: String::new(),
            share,
        })
    }

    /// Sets the request id for the calls of one request.
    pub(crate) fn for_request(self, request_id: String) -> Self {
        Self { request_id, ..self }
    }

    /// Cancels pending calls after the guest has exited or was paused, because the network does not report that.
    pub(super) fn end(&self) {
        self.gone.cancel();
    }

    /// Notes that the guest has exited for want of memory, which the calls tell that [`Self::end`] cancels.
    pub(super) fn had_no_memory(&self) {
        self.out_of_memory.store(true, Ordering::Relaxed);
    }

    /// Creates a client with its own connection, for a command whose output may be read slowly or not at all, and for its
    /// input.
    pub(super) fn dedicated_processes(&self) -> Processes {
        ProcessClient::new(connection(self.uri.clone(), UNREAD, 2), config(self.uri.clone()))
    }

    /// Creates a client of its file system with its own connection, for a stream that may be read slowly or not at all.
    pub(super) fn dedicated_files(&self) -> FilesystemClient<SharedHttp2Connection> {
        FilesystemClient::new(connection(self.uri.clone(), UNREAD, 2), config(self.uri.clone()))
    }

    /// Cancelled when the guest has exited.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Waits until the guest has exited.
    pub(crate) async fn ended(&self) -> AgentError {
        self.gone.cancelled().await;
        self.why_gone()
    }

    /// Returns the error of a call in whose work the guest has exited.
    pub(super) fn why_gone(&self) -> AgentError {
        // No more than that: the last lines of its console are not for the visitors of its ports.
        let message = if self.out_of_memory.load(Ordering::Relaxed) {
            "the sandbox ended for want of memory while this was in work"
        } else {
            "the sandbox ended or was paused while this was in work"
        };
        AgentError::new(ErrorCode::InvalidState, message)
    }

    /// Waits for an answer; fails if the guest exits meanwhile.
    pub(super) async fn meanwhile<T>(&self, answer: impl Future<Output = T>) -> Result<T, AgentError> {
        tokio::select! {
            answered = answer => Ok(answered),
            error = self.ended() => Err(error),
        }
    }

    /// Sends a request; fails if the guest exits meanwhile.
    pub(super) async fn answer(&self, request: Request<Body>) -> Result<Response<Incoming>, AgentError> {
        self.meanwhile(self.http.request(request)).await?.map_err(|error| unreachable(&error))
    }

    /// Options of a Connect call: the token, and the user if given.
    pub(super) fn options(&self, user: &str) -> CallOptions {
        let mut options = CallOptions::default().with_header("x-access-token", self.token.as_str());
        if !self.request_id.is_empty() {
            options = options.with_header(REQUEST_ID, self.request_id.as_str());
        }
        if user.is_empty() {
            return options;
        }
        options.with_header("authorization", basic(user))
    }

    pub(super) fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Request<Body>, AgentError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header("x-access-token", &self.token);
        let request = match self.request_id.as_str() {
            "" => request,
            id => request.header(REQUEST_ID, id),
        };
        request.body(body).map_err(|error| AgentError::new(ErrorCode::InvalidRequest, error.to_string()))
    }

    /// Waits until envd responds; the caller sets the time limit.
    pub(crate) async fn ready(&self) {
        loop {
            if let Ok(mut request) = self.request(Method::GET, "/health", empty()) {
                request.headers_mut().insert(header::CONNECTION, CLOSE);
                let looked = tokio::time::timeout(LOOK, self.http.request(request)).await;
                if matches!(looked, Ok(Ok(response)) if response.status().is_success()) {
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells envd who it is: environment, token, default user and working directory, time and host name. Gives it randomness
    /// of its own, because others may go on from the same memory. The caller sets the time limit: a resume that gives up loses
    /// the guest's memory, so an overloaded host is waited for.
    pub(crate) async fn init(
        &self,
        id: &str,
        spec: &Spec,
        introduction: &Introduction<'_>,
    ) -> Result<(), AgentError> {
        let mut body = settings(id, spec, introduction);
        let mut entropy = [0_u8; 64];
        rand::rng().fill_bytes(&mut entropy);
        body["entropy"] = STANDARD.encode(entropy).into();
        let token = introduction.token.unwrap_or(&self.token).to_owned();
        let mut took = Self { token, ..self.clone() }.post_init(body).await?;
        // Its clock is late by the time that the request took to arrive, such as until the guest had a network.
        for _ in 0..CLOCK_ATTEMPTS {
            if took <= CLOCK_PRECISION {
                break;
            }
            took = self.post_init(json!({})).await?;
        }
        Ok(())
    }

    /// Sends settings and the time; returns how long the guest took to answer.
    async fn post_init(&self, mut settings: serde_json::Value) -> Result<Duration, AgentError> {
        let begin = Instant::now();
        settings["timestamp"] = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true).into();
        let body = Full::from(settings.to_string()).map_err(|never| match never {}).boxed_unsync();
        let mut request = self.request(Method::POST, "/init", body)?;
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let response = self.http.request(request).await.map_err(|error| unreachable(&error))?;
        // The guest runs, and what it refuses follows from its disk: it would on another host, too.
        checked(response).await.map_err(AgentError::of_template)?;
        Ok(begin.elapsed())
    }

    /// Has the guest write to its disk what it has not written yet. Fails if it does not, or takes longer than a minute.
    pub(crate) async fn sync(&self) -> Result<(), AgentError> {
        let request = self.request(Method::POST, "/snapshot/prepare", empty())?;
        let answered = tokio::time::timeout(SYNC, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }

    /// Puts a secret into the memory of the guest: a file that this user can read, and a link to it if `target` is not empty.
    pub(crate) async fn put_secret(
        &self,
        id: &str,
        target: &str,
        user: &str,
        value: &[u8],
    ) -> Result<(), AgentError> {
        let secret = json!({"id": id, "target": target, "user": user, "value": STANDARD.encode(value)});
        let body = Full::from(secret.to_string()).map_err(|never| match never {}).boxed_unsync();
        let mut request = self.request(Method::POST, "/secrets", body)?;
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let answered = tokio::time::timeout(ANSWER, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }

    /// Overwrites and removes all secrets that were put into the guest.
    pub(crate) async fn remove_secrets(&self) -> Result<(), AgentError> {
        let request = self.request(Method::DELETE, "/secrets", empty())?;
        let answered = tokio::time::timeout(ANSWER, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }

    /// Creates a user in the guest, unless there is one of this name.
    pub(crate) async fn make_user(&self, name: &str) -> Result<(), AgentError> {
        let body = Full::from(json!({"name": name}).to_string());
        let body = body.map_err(|never| match never {}).boxed_unsync();
        let mut request = self.request(Method::POST, "/users", body)?;
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let answered = tokio::time::timeout(ANSWER, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }

    /// Has a guest run a first command, whose memory others go on from, before it knows a token.
    pub(crate) async fn warm(&self, user: &str) -> Result<(), AgentError> {
        let mut request = self.request(Method::POST, "/snapshot/warm", empty())?;
        request.headers_mut().insert(header::CONNECTION, CLOSE);
        let user = header::HeaderValue::try_from(basic(user));
        let user = user.map_err(|error| AgentError::fault("naming the user", &error))?;
        request.headers_mut().insert(header::AUTHORIZATION, user);
        let answered = tokio::time::timeout(WARM, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }

    /// Tells envd that the guest is about to be stopped.
    pub(crate) async fn prepare_pause(&self) -> Result<(), AgentError> {
        let request = self.request(Method::POST, "/snapshot/prepare", empty())?;
        let answered = tokio::time::timeout(PREPARE, self.answer(request)).await;
        checked(answered.map_err(|_| overdue())??).await.map(drop)
    }
}

/// What a guest is told of its sandbox. What it would keep from another one's memory is told also if it is empty.
fn settings(id: &str, spec: &Spec, introduction: &Introduction<'_>) -> serde_json::Value {
    let mut settings = json!({
        "accessToken": spec.access_token,
        "defaultUser": spec.default_user,
        "defaultWorkdir": spec.default_workdir,
        "hostname": id,
        "sandboxId": id,
        "templateId": spec.template,
        "newMachine": introduction.new_machine,
        "resumed": introduction.resumed,
    });
    if let Some(envs) = introduction.envs {
        settings["envVars"] = json!(envs);
    }
    settings
}

/// Header with which envd is told the user of a call.
fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

/// Shortens a guest's text: omits the middle of a long text.
pub(super) fn cut(text: &str) -> String {
    let count = text.chars().count();
    if count <= ERROR_SHOWN {
        return text.to_owned();
    }
    let part = |from: usize| text.chars().skip(from).take(ERROR_SHOWN / 2).collect::<String>();
    format!("{} … {}", part(0), part(count - ERROR_SHOWN / 2))
}

/// Shortens a guest's text to one line: omits the middle of a long text and escapes control characters.
pub(super) fn shorten(text: &str) -> String {
    cut(text).chars().fold(String::new(), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// Returns a successful response, or converts envd's error.
pub(super) async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, AgentError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = tokio::time::timeout(
        ANSWER,
        http_body_util::Limited::new(response.into_body(), ERROR_TEXT).collect(),
    )
    .await
    .map_err(|_| overdue())?;
    let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
    let message = body["message"].as_str().map(shorten);
    let message = message.unwrap_or_else(|| format!("the sandbox answered with status {status}"));
    let reason = body["reason"].as_str().and_then(|reason| reason.parse().ok());
    let code = match status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED
            if reason.is_some_and(|reason| REASONS.contains(&reason)) =>
        {
            reason.unwrap_or(ErrorCode::InvalidRequest)
        }
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => ErrorCode::InvalidRequest,
        StatusCode::FORBIDDEN => ErrorCode::Forbidden,
        StatusCode::CONFLICT => ErrorCode::Conflict,
        StatusCode::NOT_FOUND => ErrorCode::NotFound,
        StatusCode::INSUFFICIENT_STORAGE => ErrorCode::InsufficientStorage,
        _ => ErrorCode::AgentError,
    };
    Err(AgentError::new(code, message))
}

/// Maximum size of a frame that envd sends, in bytes: more than a piece of output, so that each takes a single write.
const FRAME: u32 = 64 << 10;

/// Opens a connection on its first use.
fn connection(uri: Uri, unread: u32, calls: usize) -> SharedHttp2Connection {
    Http2Connection::builder()
        .initial_stream_window_size(unread)
        .initial_connection_window_size(unread)
        .h2_settings(|settings| {
            settings.max_frame_size(FRAME);
        })
        .lazy_plaintext(uri)
        .shared(calls)
}

fn config(uri: Uri) -> ClientConfig {
    ClientConfig::new(uri).proto().with_default_max_message_size(MESSAGE_MAX)
}

/// The error of a guest that does not answer.
pub(super) fn unreachable(cause: &dyn std::fmt::Display) -> AgentError {
    tracing::warn!(%cause, "envd does not answer");
    let message = "the sandbox does not answer: its guest is overloaded or hangs; try again, or delete it";
    AgentError::new(ErrorCode::HostUnavailable, message)
}

/// The error of a guest that answers too late.
pub(super) fn overdue() -> AgentError {
    AgentError::new(ErrorCode::Timeout, "the sandbox did not answer in time; try again, or delete it")
}

pub(super) fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

/// Escapes a value of a query.
pub(super) fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use wrenn_rpc::fault::Of;

    use super::*;

    /// Answers a request with a refusal, and waits until it is closed.
    async fn refuse(listener: TcpListener) {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut read = [0; 4096];
        assert!(stream.read(&mut read).await.is_ok_and(|bytes| bytes > 0));
        let answer = b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(answer).await.expect("it is read");
        while stream.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {}
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn what_a_guest_refuses_at_its_start_is_of_its_template() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let guest = Guest::at(address, "", Share::of(Memory::new(1 << 20))).expect("a client");
        let (spec, envs) = (Spec::default(), HashMap::new());
        let introduction = Introduction::first(&envs);
        let told = tokio::select! {
            told = guest.init("sb1", &spec, &introduction) => told,
            () = refuse(listener) => unreachable!("it waits for ever"),
        };
        let refused = told.map_err(|error| error.of);
        assert_eq!(refused, Err(Of::OF_TEMPLATE), "three such images would eject the host");
    }

    #[tokio::test]
    async fn calls_in_work_tell_a_want_of_memory_and_no_more() {
        for of_memory in [false, true] {
            let address = "127.0.0.1:1".to_owned();
            let guest = Guest::at(address, "", Share::of(Memory::new(1 << 20))).expect("a client");
            let call = guest.clone();
            if of_memory {
                guest.had_no_memory();
            }
            guest.end();
            let error = call.meanwhile(std::future::pending::<()>()).await.expect_err("it is cancelled");
            let expected = if of_memory { "for want of memory while this was" } else { "or was paused" };
            assert!(error.message.contains(expected), "{error}");
            assert_eq!(error.code, ErrorCode::InvalidState);
        }
    }

    #[test]
    fn every_introduction_tells_user_and_working_directory() {
        let envs = HashMap::from([("A".to_owned(), "b".to_owned())]);
        for (introduction, with_envs) in [
            (Introduction::first(&envs), true),
            (Introduction::of_clone(&envs, None), true),
            (Introduction::after_boot(&envs), true),
            (Introduction::after_resume(), false),
        ] {
            for workdir in ["/app", ""] {
                let spec = Spec {
                    default_user: "ann".to_owned(),
                    default_workdir: workdir.to_owned(),
                    ..Spec::default()
                };
                let told = settings("sb1", &spec, &introduction);
                assert_eq!((&told["defaultUser"], &told["defaultWorkdir"]), (&json!("ann"), &json!(workdir)));
                assert_eq!(told["envVars"]["A"].as_str(), with_envs.then_some("b"));
            }
        }
    }
}
