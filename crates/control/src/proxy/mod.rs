// SPDX-License-Identifier: Apache-2.0
//! Proxy to the ports of sandboxes: HTTP on a listener with limits of its own. A request names its port by its host, by
//! headers or by its path; private ports need the traffic token of their sandbox.

mod access;
mod address;
mod answer;
mod connect_stream;
mod headers;
mod idle;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod upstream;

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Instant};

use axum::{body::Body, extract::Request, response::Response};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::io::copy_bidirectional_with_sizes;
use uuid::Uuid;
use wrenn_api::{ErrorCode, SandboxId};

use self::{
    access::{By, Given},
    address::{Address, Form, Unknown},
    headers::Origin,
    idle::{Clock, Timed, Watched},
    upstream::Upstream,
};
use crate::{
    admission::{Place, Places},
    config::ProxySettings,
    db::sandboxes::PortAccess,
    error::Fault,
    networks::Networks,
    request_trace,
    sandboxes::{ENVD_PORT, Reached},
    services::Services,
    serving::Connection,
};

pub(crate) use access::PARAMETER as TOKEN_PARAMETER;

/// Paths of envd that only the host of a sandbox uses.
const INTERNAL: [&str; 9] =
    ["init", "snapshot", "connect", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"];
/// Size of the buffer of each direction of an upgraded connection, in bytes.
const BUFFER: usize = 16 << 10;

/// The proxy of a server; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<Parts>);

struct Parts {
    services: Services,
    upstream: Upstream,
    settings: ProxySettings,
    trusted: Networks,
    /// Places of requests, by team and by sandbox.
    of_teams: Places,
    of_sandboxes: Places,
}

/// Places of a request in work.
type Held = (Place, Place);

impl Proxy {
    /// Creates the proxy. Fails if a setting is not valid.
    pub(crate) fn new(services: &Services, settings: &ProxySettings) -> anyhow::Result<Self> {
        let trusted = settings.trusted()?;
        let (all, per_sandbox) = (settings.requests, settings.requests_per_sandbox);
        // Idle connections and those that are being closed leave room for those of new requests.
        let connections = Places::with_share("connections to ports", 2 * all, 2 * per_sandbox);
        Ok(Self(Arc::new(Parts {
            services: services.clone(),
            upstream: Upstream::new(services.sandboxes(), connections),
            settings: settings.clone(),
            trusted,
            of_teams: Places::new("requests to ports", all),
            of_sandboxes: Places::with_share("requests to ports", all, per_sandbox),
        })))
    }

    async fn answer(self, request: Request) -> Response {
        let begin = Instant::now();
        let id = HeaderValue::from_str(&Uuid::now_v7().simple().to_string());
        let id = id.unwrap_or(HeaderValue::from_static("none"));
        let span = request_trace::span(&id, request.extensions().get::<Arc<Connection>>().map(AsRef::as_ref));
        let response = Box::pin(request_trace::follow(id, span.clone(), self.0.handle(request))).await;
        let (status, took) = (response.status().as_u16(), begin.elapsed());
        let by =
            if response.headers().get(answer::HOP) == Some(&answer::SANDBOX) { "sandbox" } else { "proxy" };
        let labels = [("by", by.to_owned()), ("class", format!("{}xx", status / 100))];
        metrics::histogram!("wrenn_proxy_request_seconds", &labels).record(took.as_secs_f64());
        let code = response.extensions().get::<Fault>().map(|fault| tracing::field::display(fault.code));
        span.in_scope(|| tracing::debug!(status, by, code, ms = took.as_millis() as u64, "proxied"));
        response
    }
}

impl tower::Service<Request> for Proxy {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}

/// What is decided of a request before it goes to its sandbox.
enum Admission {
    /// It goes there.
    Granted,
    /// It is answered so.
    Answered(Response),
}

impl Parts {
    async fn handle(self: &Arc<Self>, mut request: Request) -> Response {
        let asked = request.headers().clone();
        let (address, form) = match Address::of(request.uri(), request.headers()) {
            Ok(found) => found,
            Err(unknown) => return answer::fault(&no_port(unknown), None, &asked),
        };
        request_trace::sandbox(address.id);
        let result = self.pass(&mut request, address, form).await;
        result.unwrap_or_else(|fault| answer::fault(&fault, Some(address), &asked))
    }

    async fn pass(
        self: &Arc<Self>,
        request: &mut Request,
        address: Address,
        form: Form,
    ) -> Result<Response, Fault> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let peer =
            connection.as_ref().map_or(IpAddr::from([0, 0, 0, 0]), |connection| connection.peer().ip());
        let prefix = (form == Form::Path).then(|| address.to_string());
        let origin = Origin {
            peer,
            trusted: self.trusted.contain(peer),
            tls: self.settings.encrypts(),
            prefix: prefix.as_deref(),
        };
        if request.method() == Method::CONNECT {
            let message = "the proxy makes no tunnels: send requests";
            return Err(Fault::new(ErrorCode::MethodNotAllowed, message));
        }
        if form == Form::Path {
            let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            let Some(rest) = address::without_first_part(request.uri()) else {
                return Ok(answer::redirect(&format!("/{address}/{query}"), None));
            };
            *request.uri_mut() = rest.parse().map_err(|_| Fault::invalid("the path is not valid"))?;
        }
        let access = self.upstream.access(address.id).await?;
        let secure = headers::is_secure(request.headers(), &origin);
        if let Admission::Answered(response) = admit(request, address, form, &access, secure)? {
            return Ok(response);
        }
        let held = self.places(access.team_id, address.id)?;
        self.exchange(request, address, access.team_id, &origin, held, connection).await
    }

    fn places(&self, team: Uuid, id: SandboxId) -> Result<Held, Fault> {
        let full = |_| {
            let message =
                format!("too many requests to ports of sandbox {id} are in work; try again in a moment");
            Fault::new(ErrorCode::TooManyRequests, message)
        };
        Ok((
            self.of_teams.take(Some(team)).map_err(full)?,
            self.of_sandboxes.take(Some(id.uuid())).map_err(full)?,
        ))
    }

    /// Sends a request to its port, and returns the response of the server there.
    async fn exchange(
        self: &Arc<Self>,
        request: &mut Request,
        address: Address,
        team: Uuid,
        origin: &Origin<'_>,
        held: Held,
        connection: Option<Arc<Connection>>,
    ) -> Result<Response, Fault> {
        let clock = Clock::new(self.settings.idle);
        let asks = headers::upgrade(request.headers()).is_some();
        let client = asks.then(|| hyper::upgrade::on(&mut *request));
        let uri = request.uri().clone();
        headers::for_sandbox(&uri, request.headers_mut(), origin);
        let (head, body) = std::mem::take(request).into_parts();
        let moving = clock.clone();
        let body = Body::new(body.map_frame(move |frame| {
            moving.moved();
            frame
        }));
        // The sandbox is active up to the end of the response, and resumed before a connection is opened, which has a time limit
        // of its own.
        let reached = self.upstream.reach(team, address.id).await?;
        let sending = self.upstream.send(address, Request::from_parts(head, body));
        let mut response = tokio::select! {
            response = sending => response?,
            () = clock.expired() => {
                let message = "the server on the port of the sandbox did not answer in time";
                return Err(Fault::new(ErrorCode::Timeout, message));
            }
        };
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let server = switches.then(|| hyper::upgrade::on(&mut response));
        let (mut head, body) = response.into_parts();
        // An older version is that of the other connection.
        head.version = Version::HTTP_11;
        let protocol = if switches { headers::upgrade(&head.headers) } else { None };
        headers::end_to_end(&mut head.headers, protocol);
        if let Some(prefix) = origin.prefix {
            relocate(&mut head.headers, prefix);
        }
        head.headers.insert(answer::HOP, answer::SANDBOX);
        match (server, client) {
            (Some(server), Some(client)) => {
                self.splice(client, server, clock, (reached, held), connection);
                return Ok(Response::from_parts(head, Body::empty()));
            }
            (Some(_), None) => {
                let message =
                    "the server on the port of the sandbox switched to a protocol that nobody asked for";
                return Err(Fault::new(ErrorCode::PortFailed, message));
            }
            (None, _) => {}
        }
        let body = Timed::body(Body::new(body), clock, (reached, held));
        let body = if address.port == ENVD_PORT { connect_stream::ended(&head.headers, body) } else { body };
        Ok(Response::from_parts(head, body))
    }

    /// Passes the bytes of an upgraded connection on in both directions, until both have ended.
    fn splice(
        self: &Arc<Self>,
        client: hyper::upgrade::OnUpgrade,
        server: hyper::upgrade::OnUpgrade,
        clock: Clock,
        held: (Arc<Reached>, Held),
        connection: Option<Arc<Connection>>,
    ) {
        let work = connection.map(|connection| connection.work());
        let shutdown = self.services.shutdown().clone();
        request_trace::spawn(async move {
            let _held = (held, work);
            let (client, server) = match tokio::try_join!(client, server) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade failed"),
            };
            let mut client = Watched { stream: TokioIo::new(client), clock: clock.clone() };
            let mut server = Watched { stream: TokioIo::new(server), clock: clock.clone() };
            tokio::select! {
                // How it ended is told by both ends.
                _ = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => {}
                () = clock.expired() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

/// Decides whether a request may go to its port, and takes the tokens out of it.
fn admit(
    request: &mut Request,
    address: Address,
    form: Form,
    access: &PortAccess,
    secure: bool,
) -> Result<Admission, Fault> {
    let mut uri = request.uri().clone();
    let given = Given::take(&mut uri, request.headers_mut());
    *request.uri_mut() = uri;
    if address.port == ENVD_PORT {
        // It checks its own token.
        let hidden = is_internal(request.uri());
        return Ok(if hidden { Admission::Answered(answer::hidden()) } else { Admission::Granted });
    }
    if access.public_ports {
        return Ok(Admission::Granted);
    }
    let by = given.proves(&access.traffic_token);
    match by {
        Some(By::Header) => Ok(Admission::Granted),
        Some(By::Query) if form == Form::Host && access::wants_page(request.method(), request.headers()) => {
            let to = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            let cookie = access::cookie(&access.traffic_token, secure);
            Ok(Admission::Answered(answer::redirect(to, cookie)))
        }
        Some(By::Query) => Ok(Admission::Granted),
        // In the other forms, all sandboxes are one origin.
        Some(By::Cookie)
            if form == Form::Host && !access::is_foreign(request.method(), request.headers()) =>
        {
            Ok(Admission::Granted)
        }
        _ if is_preflight(request) => Ok(Admission::Answered(answer::preflight(request.headers()))),
        _ => {
            let message = format!(
                "port {} of the sandbox is private: send its traffic token in the header X-Wrenn-Traffic-Token, or once in \
                 the parameter {TOKEN_PARAMETER} of the URL",
                address.port
            );
            Err(Fault::new(ErrorCode::Forbidden, message))
        }
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Whether a path of envd is for the sandbox's host only, however it is written.
fn is_internal(uri: &Uri) -> bool {
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    let mut parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let first = parts.next();
    first.is_some_and(|first| INTERNAL.contains(&first) || first == "..") || parts.any(|part| part == "..")
}

/// Puts the part of the path that names the port before locations on this server.
fn relocate(headers: &mut HeaderMap, prefix: &str) {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(path) = location.filter(|path| path.starts_with('/') && !path.starts_with("//")) else { return };
    if let Ok(location) = HeaderValue::from_str(&format!("/{prefix}{path}")) {
        headers.insert(header::LOCATION, location);
    }
}

fn no_port(unknown: Unknown) -> Fault {
    let form = "name a port as PORT-SANDBOX.DOMAIN in the host, by the headers X-Wrenn-Sandbox-Id and \
                X-Wrenn-Sandbox-Port, or as /PORT-SANDBOX/ in the path";
    match unknown {
        Unknown::Nothing => Fault::invalid(format!("the request names no port of a sandbox: {form}")),
        Unknown::Invalid => Fault::invalid(format!("what the request names is no port of a sandbox: {form}")),
    }
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn paths_of_the_host_are_hidden_however_they_are_written() {
        let internal = |path: &'static str| is_internal(&Uri::from_static(path));
        for path in
            ["/init", "//init", "/%69nit", "/./init?x", "/snapshot/warm", "/x/../init", "/connect?port=1"]
        {
            assert!(internal(path), "{path}");
        }
        for path in ["/", "/files?path=/init", "/health", "/process.Process/Start", "/inits"] {
            assert!(!internal(path), "{path}");
        }
    }

    #[test]
    fn locations_stay_below_the_part_of_the_path() {
        let relocated = |to: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_static(to));
            relocate(&mut headers, "80-x");
            headers[header::LOCATION].to_str().expect("text").to_owned()
        };
        assert_eq!(relocated("/a?b"), "/80-x/a?b");
        assert_eq!(relocated("a"), "a");
        assert_eq!(relocated("//other/a"), "//other/a");
        assert_eq!(relocated("https://other/a"), "https://other/a");
    }
}
