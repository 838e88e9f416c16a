//! A command in a sandbox whose output and exit status become ours.

use std::io;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use wrenn_api::{ErrorCode, ExecRequest, SandboxId};
use wrenn_client::{Client, Error, ExecEvent, ExecStream};

use crate::output::{Format, note};

/// The exit status of a shell for a command that it cannot find.
const NOT_FOUND: u8 = 127;
/// The exit status of a shell for a command that it cannot run.
const NOT_RUN: u8 = 126;
/// The exit status of a program whose output nobody reads.
const READER_GONE: u8 = 141;
/// With `--json`, this much of each output is kept.
const KEPT_MAX: usize = 16 << 20;

/// Where output goes.
struct Sink {
    format: Format,
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
    kept: [Vec<u8>; 2],
    truncated: bool,
}

/// Runs a command to its end and gives its exit status.
pub(crate) async fn run(client: &Client, id: SandboxId, request: &ExecRequest, format: Format) -> Result<u8> {
    let mut stream = client.exec_stream(id, request).await?;
    let mut sink = Sink {
        format,
        stdout: tokio::io::stdout(),
        stderr: tokio::io::stderr(),
        kept: [Vec::new(), Vec::new()],
        truncated: false,
    };
    match follow(&mut stream, &mut sink).await {
        Ok(exit_code) => {
            sink.finish(id, exit_code)?;
            // A status beyond 255 cannot be passed on, but must not become success.
            Ok(u8::try_from(exit_code).unwrap_or(u8::MAX))
        }
        Err(error) if crate::output::reader_gone(&error) => {
            let _ = stream.stop().await;
            Ok(READER_GONE)
        }
        Err(error) => match error.downcast_ref::<NotStarted>() {
            Some(refused) => {
                note(&format!("wrenn: {}: {}", request.cmd, refused.0));
                Ok(refused.status())
            }
            None => Err(error),
        },
    }
}

/// The sandbox could not run the command.
#[derive(Debug)]
struct NotStarted(Error);

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotStarted {}

impl NotStarted {
    fn status(&self) -> u8 {
        match &self.0 {
            Error::Api { code, .. } if code == ErrorCode::Forbidden.as_str() => NOT_RUN,
            _ => NOT_FOUND,
        }
    }
}

async fn follow(stream: &mut ExecStream, sink: &mut Sink) -> Result<i32> {
    let mut started = false;
    loop {
        match stream.next().await {
            Ok(Some(ExecEvent::Start { .. })) => started = true,
            Ok(Some(ExecEvent::Stdout(bytes))) => sink.take(0, bytes).await?,
            Ok(Some(ExecEvent::Stderr(bytes))) => sink.take(1, bytes).await?,
            Ok(Some(ExecEvent::Exit { exit_code })) => return Ok(exit_code),
            Ok(None) => anyhow::bail!("the command's stream ended without its exit status"),
            Err(error) if !started && is_refusal(&error) => return Err(NotStarted(error).into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the sandbox says about the command itself, as opposed to faults on the way.
fn is_refusal(error: &Error) -> bool {
    matches!(error.code(), Some("not_found" | "invalid_request" | "forbidden"))
}

impl Sink {
    async fn take(&mut self, which: usize, bytes: Bytes) -> Result<()> {
        if self.format == Format::Json {
            let room = KEPT_MAX - self.kept[which].len();
            self.truncated |= bytes.len() > room;
            self.kept[which].extend_from_slice(&bytes[..bytes.len().min(room)]);
            return Ok(());
        }
        let written = match which {
            0 => write(&mut self.stdout, &bytes).await,
            _ => write(&mut self.stderr, &bytes).await,
        };
        written.context("cannot pass the command's output on")
    }

    fn finish(self, id: SandboxId, exit_code: i32) -> Result<()> {
        if self.format == Format::Text {
            return Ok(());
        }
        let [stdout, stderr] = self.kept.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let value: Value = json!({
            "sandbox_id": id,
            "exit_code": exit_code,
            "stdout": stdout,
            "stderr": stderr,
            "truncated": self.truncated,
        });
        self.format.print(&value, String::new)
    }
}

async fn write(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes).await?;
    output.flush().await
}
