//! The HTTP server: routes, the token check, and the shape of errors.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use serde_json::json;
use tokio::net::TcpListener;
use wrenn_rpc::{filesystem::FilesystemExt as _, process::ProcessExt as _};

use crate::{
    files, filesystem, init, metrics,
    process::{registry::Registry, service::Service},
    reaper::Reaper,
    settings::Settings,
};

/// Serves until the process ends. RPC messages are limited to 4 MiB, the library's default.
pub(crate) async fn run(port: u16) -> io::Result<()> {
    let settings = Arc::new(Settings::default());
    let registry = Registry::new(Reaper::start()?);
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    // One line that tests and operators can wait for; with port 0 it tells the port.
    eprintln!("envd: listening on {}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router(&settings, &registry)).await
}

fn router(settings: &Arc<Settings>, registry: &Arc<Registry>) -> Router {
    let process = Arc::new(Service { registry: Arc::clone(registry), settings: Arc::clone(settings) });
    let filesystem = Arc::new(filesystem::Service { settings: Arc::clone(settings) });
    let rpc = filesystem.register(process.register(connectrpc::Router::new()));
    // Files check for themselves: a signature in the query may stand for the token.
    let files = Router::new()
        .route("/files", get(files::get).post(files::post))
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(settings));
    Router::new()
        .route("/init", post(init::post))
        .route("/envs", get(init::envs))
        .route("/metrics", get(metrics::get))
        .with_state(Arc::clone(settings))
        .fallback_service(rpc.into_axum_service())
        .layer(DefaultBodyLimit::max(4 << 20))
        .layer(middleware::from_fn_with_state(Arc::clone(settings), authorize))
        .merge(files)
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
}

/// Lets a call pass that carries the token.
async fn authorize(State(settings): State<Arc<Settings>>, request: Request, next: Next) -> Response {
    let given = request.headers().get("x-access-token").and_then(|v| v.to_str().ok());
    if settings.admits(given) {
        return next.run(request).await;
    }
    let text = "the X-Access-Token header is missing or wrong";
    let path = request.uri().path();
    if path.starts_with("/process.") || path.starts_with("/filesystem.") {
        // Connect clients expect the name of the code.
        let body = json!({"code": "unauthenticated", "message": text});
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    error(StatusCode::UNAUTHORIZED, text)
}

/// The error shape of the plain HTTP endpoints.
pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({"code": status.as_u16(), "message": message.into()}))).into_response()
}
