// SPDX-License-Identifier: Apache-2.0
//! Streams through the API against the same without it: the echo of a key in a terminal, and the output of a command.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Response;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use wrenn_api::{ExecRequest, SandboxId, TerminalStart};
use wrenn_client::{Client, ProcessEvent, Terminal, TerminalEvent};
use wrenn_testkit::Stack;

use crate::{
    exec::{envd, framed},
    row::{Row, median},
};

/// Number of keys.
const KEYS: usize = 400;
/// Number of transfers of output, and their size in bytes.
const TRANSFERS: usize = 5;
const OUTPUT: usize = 64 << 20;
/// A program that writes what it reads, key by key.
const ECHO: [&str; 2] = ["-c", "stty raw -echo; echo ready; exec cat"];

/// Measures both, each alternating with its floor.
pub(crate) async fn against_envd(stack: &Stack) -> Result<Vec<Row>> {
    let id = stack.api.create(&json!({})).await?;
    let client = Client::new(&stack.url(), Some(stack.api.key()))?;
    let echo = echo(stack, &client, &id).await?;
    let output = output(stack, &client, &id).await?;
    stack.api.remove(&id).await?;
    Ok(vec![echo, output])
}

/// A terminal, reached directly.
struct Direct {
    client: reqwest::Client,
    url: String,
    token: String,
    events: Response,
}

impl Direct {
    async fn start(address: &str, token: String) -> Result<Self> {
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        let url = format!("http://{address}/process.Process");
        let start = json!({"process": {"cmd": "bash", "args": ECHO}, "pty": {"size": {"cols": 80, "rows": 24}}, "tag": "direct"});
        let call = client.post(format!("{url}/Start")).header("content-type", "application/connect+json");
        let call = call.header("connect-protocol-version", "1").header("x-access-token", &token);
        let events = call.body(framed(&start)).send().await?.error_for_status()?;
        let mut direct = Self { client, url, token, events };
        // `ready` in base 64.
        direct.until("cmVhZHk").await?;
        Ok(direct)
    }

    async fn until(&mut self, text: &str) -> Result<()> {
        loop {
            let piece = self.events.chunk().await?.context("the terminal has ended")?;
            if String::from_utf8_lossy(&piece).contains(text) {
                return Ok(());
            }
        }
    }

    async fn key(&mut self) -> Result<Duration> {
        let input = json!({"process": {"tag": "direct"}, "input": {"pty": "eA=="}});
        let begin = Instant::now();
        let call = self.client.post(format!("{}/SendInput", self.url)).header("x-access-token", &self.token);
        let (sent, seen) = tokio::join!(call.json(&input).send(), self.until("eA=="));
        sent?.error_for_status()?;
        seen?;
        Ok(begin.elapsed())
    }
}

/// Reads output of a terminal until it has this text.
async fn until(terminal: &mut Terminal, text: &[u8]) -> Result<()> {
    loop {
        match terminal.next().await?.context("the terminal has ended")? {
            TerminalEvent::Output(bytes) if bytes.windows(text.len()).any(|part| part == text) => {
                return Ok(());
            }
            TerminalEvent::Exit { exit_code, .. } => bail!("the terminal has ended: {exit_code}"),
            _ => {}
        }
    }
}

/// Time from a key to its echo.
async fn echo(stack: &Stack, client: &Client, id: &str) -> Result<Row> {
    let (address, token) = envd(stack, id)?;
    let mut direct = Direct::start(&address, token).await?;
    let start: TerminalStart = serde_json::from_value(json!({"cmd": "bash", "args": ECHO}))?;
    let mut terminal = client.start_terminal(id.parse()?, &start).await?;
    let input = terminal.input();
    until(&mut terminal, b"ready").await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..KEYS + 20 {
        let other = direct.key().await?;
        let begin = Instant::now();
        input.write(b"x").await?;
        until(&mut terminal, b"x").await?;
        // The first rounds open connections and warm caches.
        if round >= 20 {
            floor.push(other);
            ours.push(begin.elapsed());
        }
    }
    let added = median(&ours) - median(&floor);
    Ok(Row {
        what: "echo of a key in a terminal over the API − directly against envd (ms)",
        unit: "ms",
        ours: median(&ours),
        floor: Some(median(&floor)),
        figure: added,
        goal: 1.0,
        runs: KEYS,
    })
}

/// Time for the output of a command, against a bare TCP connection to a program in the same guest.
async fn output(stack: &Stack, client: &Client, id: &str) -> Result<Row> {
    let sandbox: SandboxId = id.parse()?;
    let server = format!(
        "import socket\nlisten = socket.create_server(('', 9000))\npiece = bytes(1 << 16)\nwhile True:\n  peer = listen.accept()[0]\n  \
         for _ in range({OUTPUT} >> 16): peer.sendall(piece)\n  peer.close()"
    );
    let body = json!({"cmd": "python3", "args": ["-c", server], "background": true});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202)?;
    let address = envd(stack, id)?.0.replace(":49983", ":9000");
    let request = ExecRequest {
        cmd: "head".to_owned(),
        args: vec!["-c".to_owned(), OUTPUT.to_string(), "/dev/zero".to_owned()],
        ..ExecRequest::default()
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..TRANSFERS {
        let mut peer = connect(&address).await?;
        let begin = Instant::now();
        let mut piece = vec![0; 1 << 20];
        let mut read = 0;
        loop {
            match peer.read(&mut piece).await? {
                0 => break,
                size => read += size,
            }
        }
        ensure!(read == OUTPUT, "{read} bytes over TCP");
        floor.push(begin.elapsed());
        let begin = Instant::now();
        let mut stream = client.exec_stream(sandbox, &request).await?;
        let mut read = 0;
        while let Some(event) = stream.next().await? {
            match event {
                ProcessEvent::Stdout(bytes) => read += bytes.len(),
                ProcessEvent::Lost { bytes } => bail!("{bytes} bytes are lost"),
                _ => {}
            }
        }
        ensure!(read == OUTPUT, "{read} bytes over the API");
        ours.push(begin.elapsed());
    }
    Ok(Row::ratio("64 MiB of output over the API ÷ over a bare TCP connection", &ours, &floor, 1.67))
}

/// Connects to the program in the guest, which may have to start first.
pub(crate) async fn connect(address: &str) -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address).await {
            Ok(peer) => return Ok(peer),
            Err(error) if begin.elapsed() > Duration::from_secs(30) => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
