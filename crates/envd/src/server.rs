// SPDX-License-Identifier: Apache-2.0
//! HTTP server: routes, token check and error format.

use std::{any::Any, io, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures::FutureExt as _;
use serde_json::json;
use tokio::net::TcpListener;
use wrenn_rpc::{filesystem::FilesystemExt as _, process::ProcessExt as _};

use crate::{
    accounts,
    connections::{Connections, Peer},
    cors, files, filesystem, init, log, metrics,
    out_of_memory::Kills,
    ports::{self, Ports},
    process::{
        registry::{Bounds, Registry},
        service::Service,
        warm,
    },
    reaper::Reaper,
    respond::{Told, error},
    secrets,
    settings::Settings,
    unread,
    watch::{Limits, Watchers},
};

/// Maximum size of an RPC message in bytes: the library's default.
const MESSAGE: u64 = 4 << 20;

/// Serves until the process exits.
pub(crate) async fn run(port: u16, bounds: Bounds, watching: Limits) -> io::Result<()> {
    let settings = Arc::new(Settings::default());
    let kills = Kills::new();
    let registry = Registry::new(Reaper::start()?, Arc::clone(&kills), bounds);
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    // Tests and operators can wait for this line; with port 0 it has the actual port.
    let address = listener.local_addr()?;
    eprintln!("envd: listening on {address}");
    kills.watch();
    let ports = Arc::new(Ports::new(address.port()));
    let router = followed(router(&settings, &registry, &kills, &Watchers::new(watching), ports));
    let router = router.layer(middleware::from_fn(cors::allow));
    axum::serve(Connections::new(listener), router.into_make_service_with_connect_info::<Peer>()).await
}

fn router(
    settings: &Arc<Settings>,
    registry: &Arc<Registry>,
    kills: &Arc<Kills>,
    watchers: &Arc<Watchers>,
    ports: Arc<Ports>,
) -> Router {
    let process = Arc::new(Service { registry: Arc::clone(registry), settings: Arc::clone(settings) });
    let (settings_too, watchers) = (Arc::clone(settings), Arc::clone(watchers));
    let filesystem = Arc::new(filesystem::Service { settings: settings_too, watchers });
    let rpc = filesystem.register(process.register(connectrpc::Router::new()));
    // File requests check the token themselves: a signature in the query can replace it.
    let files = Router::new()
        .route("/files", get(files::get).post(files::post))
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(settings));
    Router::new()
        .route("/init", post(init::post).with_state((Arc::clone(settings), Arc::clone(kills))))
        .route("/snapshot/prepare", post(init::prepare))
        .route("/envs", get(init::envs))
        .route("/users", post(accounts::post))
        .route("/secrets", post(secrets::post).delete(secrets::delete))
        .route("/files/compose", post(files::compose))
        .route("/files/archive", get(files::get_archive).put(files::put_archive))
        .route("/metrics", get(metrics::get).with_state(Arc::clone(kills)))
        .with_state(Arc::clone(settings))
        .route("/connect", post(ports::connect).with_state(ports))
        .route("/snapshot/warm", post(warm::post).with_state(Arc::clone(registry)))
        .fallback_service(rpc.into_axum_service())
        .layer(DefaultBodyLimit::max(MESSAGE as usize))
        .layer(middleware::from_fn(bound))
        .layer(middleware::from_fn_with_state(Arc::clone(settings), authorize))
        .merge(files)
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
}

/// Logs server errors with the request id. A panic is answered with status 500 and affects no other request.
fn followed(router: Router) -> Router {
    router.layer(middleware::from_fn(async |request: Request, next: Next| {
        let id = log::request_id(request.headers()).map(str::to_owned);
        let about = format!("{} {}", request.method(), request.uri().path());
        let ran = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = ran.unwrap_or_else(|panic| {
            let text = format!("envd failed on this request: {}", words(&*panic));
            error(StatusCode::INTERNAL_SERVER_ERROR, text)
        });
        if response.status().is_server_error() {
            let told = response.extensions().get::<Told>().map_or("", |told| told.0.as_str());
            log::line(id.as_deref(), format_args!("{about}: status {} {told}", response.status().as_u16()));
        }
        response
    }))
}

/// Returns the message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message")
}

/// Rejects calls without the token.
async fn authorize(State(settings): State<Arc<Settings>>, request: Request, next: Next) -> Response {
    let given = request.headers().get("x-access-token").and_then(|v| v.to_str().ok());
    if settings.admits(given) {
        return next.run(request).await;
    }
    let text = "the X-Access-Token header is missing or wrong";
    if is_rpc(&request) {
        // Connect clients expect the name of the error code.
        let body = json!({"code": "unauthenticated", "message": text});
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    error(StatusCode::UNAUTHORIZED, text)
}

/// Rejects calls with a message that is too large as wrong. The library's own code for them is the one that clients take for
/// too many requests, which they would repeat.
async fn bound(request: Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if is_rpc(&request) && length.is_some_and(|length: u64| length > MESSAGE) {
        let text = format!("a message has at most {MESSAGE} bytes: send larger input in pieces");
        let body = json!({"code": "invalid_argument", "message": text});
        // Clients that send all before they read would see a broken connection instead of the answer.
        unread::discard(request.into_body().into_data_stream()).await;
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    next.run(request).await
}

fn is_rpc(request: &Request) -> bool {
    let path = request.uri().path();
    path.starts_with("/process.") || path.starts_with("/filesystem.")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_request_that_panics_is_answered_and_the_next_one_too() {
        let router = Router::new()
            .route("/panics", get(async || -> StatusCode { panic!("of a test") }))
            .route("/works", get(async || StatusCode::NO_CONTENT));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(Connections::new(listener), followed(router)).into_future());
        // Both over one connection, which must survive the panic.
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /panics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream.write_all(b"GET /works HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert!(answers.starts_with("HTTP/1.1 500") && answers.contains("of a test"), "{answers}");
        assert!(answers.contains("HTTP/1.1 204"), "{answers}");
    }
}
