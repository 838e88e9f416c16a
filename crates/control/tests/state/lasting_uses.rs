// SPDX-License-Identifier: Apache-2.0
//! Case of uses that last longer than the timeout of their sandboxes, and of what goes on there without a client.

use std::{any::Any, sync::Arc};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tokio_util::task::AbortOnDropHandle;
use wrenn_control::Limits;
use wrenn_testkit::{Events, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
    uses::{
        Sends::{self, Json, Nothing, Upgrade},
        begin, of_port, request,
    },
};

/// Timeout of the sandboxes, in seconds: long enough for a note that is late on a busy machine.
const TIMEOUT: u32 = 6;

/// Requests that last until their response is dropped, as in the table of uses.
const RESPONSES: [(&str, Sends, u16); 4] = [
    ("GET /processes/7/stream", Upgrade("websocket"), 101),
    ("GET /ports/8000/stream", Upgrade("tcp"), 101),
    ("GET /files/content?path=endless", Nothing, 200),
    ("GET /files/watch?path=a", Upgrade("websocket"), 101),
];
/// The same through the proxy to ports.
const OF_PORTS: [(&str, Sends, u16); 2] =
    [("GET /endless", Nothing, 200), ("GET /", Upgrade("websocket"), 101)];
/// WebSockets over which something is started, and the frame that starts it.
pub(crate) const COMMAND: (&str, &str) = ("exec/stream", r#"{"type": "start", "cmd": "sleep"}"#);
pub(crate) const TERMINAL: (&str, &str) = ("pty", r#"{"type": "start"}"#);

/// A WebSocket of a client.
pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A use of a sandbox.
struct Lasting {
    what: &'static str,
    id: String,
    /// When it was noted first.
    noted: Value,
    /// It ends when this is dropped.
    _open: Box<dyn Any>,
}

impl Lasting {
    async fn new(fixture: &Fixture, what: &'static str, id: String, open: impl Any) -> Result<Self> {
        let noted = fixture.record(&id).await?["last_active_at"].clone();
        Ok(Self { what, id, noted, _open: Box::new(open) })
    }
}

async fn create(fixture: &Fixture) -> Result<String> {
    fixture.api.create(&json!({"memory_mb": 256, "timeout_sec": TIMEOUT, "public_ports": true})).await
}

/// Opens a WebSocket with the key of the fixture, and starts something over it.
async fn start(fixture: &Fixture, id: &str, (path, first): (&str, &'static str)) -> Result<Socket> {
    let url = format!("{}/v1/sandboxes/{id}/{path}", fixture.api.url().replace("http", "ws"));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("x-api-key", fixture.api.key().parse()?);
    let (mut socket, _) = connect_async(request).await?;
    start_over(&mut socket, first).await?;
    Ok(socket)
}

/// Starts something over a WebSocket by its first frame.
pub(crate) async fn start_over(socket: &mut Socket, first: &'static str) -> Result<()> {
    socket.send(Message::text(first)).await?;
    loop {
        let frame = timeout(SOON, socket.next()).await.context("no frame")?.context("it ended")??;
        let Message::Text(text) = frame else { continue };
        let frame: Value = serde_json::from_str(&text)?;
        ensure!(frame["type"] != "error", "{frame}");
        if frame["type"].as_str().is_some_and(|kind| kind.starts_with("start")) {
            return Ok(());
        }
    }
}

/// Begins uses of all kinds that last, each of a sandbox of its own.
async fn begin_uses(fixture: &Fixture) -> Result<Vec<Lasting>> {
    let mut uses = Vec::new();
    for (what, sends, status) in RESPONSES {
        let id = create(fixture).await?;
        let request = request(&fixture.api, &format!("/v1/sandboxes/{id}"), what, sends)?;
        let response = begin(request, status).await.with_context(|| what.to_owned())?;
        uses.push(Lasting::new(fixture, what, id, response).await?);
    }
    for (what, sends, status) in OF_PORTS {
        let id = create(fixture).await?;
        let port = of_port(fixture, &id).await?;
        let response =
            begin(request(&port, "", what, sends)?, status).await.with_context(|| what.to_owned())?;
        uses.push(Lasting::new(fixture, what, id, response).await?);
    }
    for what in [COMMAND, TERMINAL] {
        let id = create(fixture).await?;
        let socket = start(fixture, &id, what).await.with_context(|| what.0.to_owned())?;
        uses.push(Lasting::new(fixture, what.0, id, socket).await?);
    }
    uses.push(wait_for_command(fixture).await?);
    Ok(uses)
}

/// Runs a command that is waited for, and does not end.
async fn wait_for_command(fixture: &Fixture) -> Result<Lasting> {
    fixture.agent().exec_gate.forget_permits(usize::MAX);
    let id = create(fixture).await?;
    let command = Json(r#"{"cmd": "sleep"}"#);
    let request = request(&fixture.api, &format!("/v1/sandboxes/{id}"), "POST /exec", command)?;
    let waiting = AbortOnDropHandle::new(tokio::spawn(request.send()));
    let runs = async || fixture.agent().calls_of(&id).contains(&"exec").then_some(());
    wait_until("the command", SOON, runs).await?;
    Lasting::new(fixture, "POST /exec", id, waiting).await
}

/// A process in the background, a terminal that its client has left, and an event stream, each of a sandbox of its own.
async fn begin_what_is_no_use(fixture: &Fixture) -> Result<([(&'static str, String); 3], Events)> {
    let background = create(fixture).await?;
    let path = format!("/v1/sandboxes/{background}/exec");
    fixture.api.post(&path, &json!({"cmd": "sleep", "background": true})).await?.expect(202)?;
    let left = create(fixture).await?;
    drop(start(fixture, &left, TERMINAL).await?);
    let told = create(fixture).await?;
    let path = format!("/v1/events/stream?sandbox={told}");
    let events = Events::open_at(&fixture.api, &path, None).await?;
    Ok(([("in the background", background), ("a terminal", left), ("events", told)], events))
}

pub(crate) async fn what_lasts_keeps_its_sandbox_awake(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let uses = begin_uses(&fixture).await?;
    let (unused, _events) = begin_what_is_no_use(&fixture).await?;
    for (what, id) in &unused {
        fixture.wait_status(id, "paused").await.context(*what)?;
    }
    // Each use began before them, so it has lasted longer than the timeout.
    for Lasting { what, id, noted, .. } in &uses {
        let record = fixture.record(id).await?;
        let is_awake = record["status"] == "running" && record["last_active_at"] != *noted;
        ensure!(is_awake, "{what} was noted at {noted} only: {record}");
    }
    // With the end of the use, the timeout begins.
    let ended: Vec<_> = uses.into_iter().map(|Lasting { what, id, .. }| (what, id)).collect();
    for (what, id) in &ended {
        fixture.wait_status(id, "paused").await.context(*what)?;
    }
    fixture.stop().await
}
