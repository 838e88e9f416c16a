// SPDX-License-Identifier: Apache-2.0
//! A registry in this process. A test tells for each request whether it is answered in another way than well.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use tokio::{net::TcpListener, task::JoinHandle};

use super::images::Images;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    /// How often the path was asked for before.
    pub(crate) before: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// Offset that a range begins with.
    pub(crate) fn offset(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        range.map_or(0, |from| from.parse().expect("a number"))
    }
}

/// Content by path.
pub(crate) type Contents = HashMap<String, Vec<u8>>;
/// Answers a request, unless it is to be answered well.
type Manner = dyn Fn(&Asked, &Contents) -> Option<Response> + Send + Sync;

struct Shared {
    contents: Contents,
    manner: Box<Manner>,
    asked: Mutex<Vec<Asked>>,
}

/// A running server.
pub(crate) struct Server {
    /// Host and port.
    pub(crate) host: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(
        contents: Contents,
        manner: impl Fn(&Asked, &Contents) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { contents, manner: Box::new(manner), asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self { host, shared, task }
    }

    /// Lists the requests whose path has a text.
    pub(crate) fn asked(&self, text: &str) -> Vec<Asked> {
        let asked = self.shared.asked.lock().expect("no panic");
        asked.iter().filter(|asked| asked.path.contains(text)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Contents of a registry with images as `team/app:latest`.
pub(crate) fn contents(images: &Images) -> Contents {
    let mut all = Contents::new();
    for (digest, bytes) in &images.blobs {
        for kind in ["blobs", "manifests"] {
            all.insert(format!("/v2/team/app/{kind}/{digest}"), bytes.clone());
        }
    }
    all.insert("/v2/team/app/manifests/latest".to_owned(), images.index());
    all
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
    let asked = {
        let mut all = shared.asked.lock().expect("no panic");
        let before = all.iter().filter(|asked| asked.path == path).count();
        all.push(Asked { path, query, headers, before });
        all[all.len() - 1].clone()
    };
    if let Some(response) = (shared.manner)(&asked, &shared.contents) {
        return response;
    }
    match shared.contents.get(&asked.path) {
        Some(bytes) => part(bytes, asked.offset()),
        None => plain(404, "{}"),
    }
}

/// An answer with a status.
pub(crate) fn plain(status: u16, body: &str) -> Response {
    with_headers(status, &[], Body::from(body.to_owned()))
}

pub(crate) fn with_headers(status: u16, headers: &[(&str, &str)], body: Body) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).expect("a response")
}

/// A part of content, to its end.
pub(crate) fn part(bytes: &[u8], from: usize) -> Response {
    let body = Body::from(bytes[from..].to_vec());
    if from == 0 {
        return with_headers(200, &[], body);
    }
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    with_headers(206, &[("content-range", &range)], body)
}

/// A part of content that breaks after some bytes, or stands still.
pub(crate) fn broken(bytes: &[u8], from: usize, after: usize, still: bool) -> Response {
    let first = Bytes::copy_from_slice(&bytes[from..from + after]);
    let pieces = stream::once(future::ready(Ok(first))).chain(stream::once(async move {
        if still {
            future::pending::<()>().await;
        }
        // What was sent is written before the connection is closed.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut"))
    }));
    let status = if from == 0 { 200 } else { 206 };
    let length = (bytes.len() - from).to_string();
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    let headers = [("content-length", length.as_str()), ("content-range", range.as_str())];
    with_headers(status, &headers, Body::from_stream(pieces))
}
