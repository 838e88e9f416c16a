// SPDX-License-Identifier: Apache-2.0
//! Streams through the API against the same without it: the echo of a key in a terminal, and the output of a command.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Response;
use serde_json::json;
use wrenn_api::{ExecRequest, SandboxId, TerminalStart};
use wrenn_client::{Client, ProcessEvent, Terminal, TerminalEvent};
use wrenn_testkit::{
    Stack,
    envd::{address_and_token, framed},
};

use crate::{guest_server, row::Row};

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
    let (address, token) = address_and_token(stack, id)?;
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
    let what = "echo of a key in a terminal over the API − directly against envd (ms)";
    Ok(Row::difference(what, &ours, &floor, 1.0))
}

/// Time for the output of a command, against a bare TCP connection to a program in the same guest.
async fn output(stack: &Stack, client: &Client, id: &str) -> Result<Row> {
    let sandbox: SandboxId = id.parse()?;
    let server = format!(
        "import socket\nlisten = socket.create_server(('', 9000))\npiece = bytes(1 << 16)\nwhile True:\n  peer = listen.accept()[0]\n  \
         for _ in range({OUTPUT} >> 16): peer.sendall(piece)\n  peer.close()"
    );
    let address = guest_server::start(stack, id, &server, &[], 9000).await?;
    let request = ExecRequest {
        cmd: "head".to_owned(),
        args: vec!["-c".to_owned(), OUTPUT.to_string(), "/dev/zero".to_owned()],
        ..ExecRequest::default()
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..TRANSFERS {
        let mut peer = guest_server::connect(&address).await?;
        let begin = Instant::now();
        let read = guest_server::read_all(&mut peer).await?;
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
