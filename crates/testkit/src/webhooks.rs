// SPDX-License-Identifier: Apache-2.0
//! A receiver of webhooks on this machine, which takes and keeps everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::LOCATION},
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::wait_until;

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// A webhook that a receiver got.
#[derive(Debug, Clone)]
pub struct ReceivedWebhook {
    headers: HeaderMap,
    /// Its body.
    pub text: String,
}

impl ReceivedWebhook {
    /// Returns the body as JSON, or null if it is not JSON.
    pub fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Returns the value of a header, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

type Kept = Arc<Mutex<Vec<ReceivedWebhook>>>;

/// A receiver of webhooks, which ends when this is dropped.
#[derive(Debug)]
pub struct WebhookReceiver {
    address: SocketAddr,
    kept: Kept,
    _serving: AbortOnDropHandle<()>,
}

impl WebhookReceiver {
    /// Starts a receiver on this address; with the port 0 it takes a free one.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (address, kept) = (listener.local_addr()?, Kept::default());
        let router = Router::new().fallback(take).with_state(kept.clone());
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, kept, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of a webhook that it takes.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Returns what it got, in the order in which that came.
    pub fn got(&self) -> Vec<ReceivedWebhook> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it got so many, and returns them.
    pub async fn wait(&self, count: usize) -> Result<Vec<ReceivedWebhook>> {
        let enough = async || Some(self.got()).filter(|got| got.len() >= count);
        wait_until(&format!("{count} messages"), SOON, enough).await
    }
}

/// Takes a webhook; one to `/away` is redirected.
async fn take(
    State(kept): State<Kept>,
    uri: Uri,
    headers: HeaderMap,
    text: String,
) -> (StatusCode, HeaderMap) {
    kept.lock().unwrap_or_else(PoisonError::into_inner).push(ReceivedWebhook { headers, text });
    let mut answer = HeaderMap::new();
    if uri.path() != "/away" {
        return (StatusCode::OK, answer);
    }
    if let Ok(other) = "/other".parse() {
        answer.insert(LOCATION, other);
    }
    (StatusCode::TEMPORARY_REDIRECT, answer)
}

/// Returns the types of the events of each resource, in the order in which they came first.
pub fn told_in_order(got: &[ReceivedWebhook]) -> BTreeMap<String, Vec<String>> {
    let (mut seen, mut all) = (BTreeSet::new(), BTreeMap::<_, Vec<_>>::new());
    for body in got.iter().map(ReceivedWebhook::body) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if seen.insert(text(&body["id"])) {
            all.entry(text(&body["resource"]["id"])).or_default().push(text(&body["event"]));
        }
    }
    all
}
