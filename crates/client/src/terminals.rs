// SPDX-License-Identifier: Apache-2.0
//! Terminals in sandboxes over a WebSocket: start, connect again, input, output and size.

use bytes::Bytes;
use reqwest::Method;
use tokio_tungstenite::tungstenite::Message;
use wrenn_api::{
    ErrorCode, ExecSignal, KilledProcess, SandboxId, Signal, TerminalClientFrame as ToServer,
    TerminalConnect, TerminalScreen, TerminalServerFrame as FromServer, TerminalSize, TerminalStart,
    TerminalStarted,
};

use crate::{
    Client, Error, Result,
    processes::INPUT_PIECE,
    transport::decode,
    websocket::{Purpose, Received, Receiver, Sender},
};

/// A terminal outlives its connections.
const PURPOSE: Purpose = Purpose {
    subprotocol: Some("wrenn.terminal.v1"),
    broken: "the terminal goes on",
    silent: "the terminal goes on",
};
/// Maximum size of a screen in bytes.
const SCREEN_MAX: usize = 8 << 20;

/// Event of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TerminalEvent {
    /// The client is connected to it; the first event.
    Started(TerminalStarted),
    /// Output; first what makes an empty terminal show the same.
    Output(Bytes),
    /// This number of bytes of output is missing here.
    Lost(u64),
    /// It has another size.
    Resized(TerminalSize),
    /// Its program has ended; the last event.
    Exit {
        /// Exit status; 128 + N if signal N ended the program.
        exit_code: i32,
        /// Whether it was killed because of its timeout.
        timed_out: bool,
        /// Whether the kernel killed it or a descendant because the sandbox ran out of memory.
        out_of_memory: bool,
        /// Which one, if that is known.
        killed: Option<KilledProcess>,
    },
}

/// Connection to a terminal. Its program goes on when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    input: TerminalInput,
    frames: Receiver,
    done: bool,
}

/// Input of a terminal; clones write to the same one.
#[derive(Debug, Clone)]
pub struct TerminalInput {
    sender: Sender,
}

impl Client {
    /// Starts a program in a new terminal.
    pub async fn start_terminal(&self, id: SandboxId, start: &TerminalStart) -> Result<Terminal> {
        self.open_terminal(id, &ToServer::Start(start.clone())).await
    }

    /// Connects to a terminal: its screen comes first, and then its further output.
    pub async fn connect_terminal(&self, id: SandboxId, connect: &TerminalConnect) -> Result<Terminal> {
        self.open_terminal(id, &ToServer::Connect(connect.clone())).await
    }

    /// Reads what a terminal shows, by its tag or the process id of its program.
    pub async fn terminal_screen(&self, id: SandboxId, terminal: &str) -> Result<TerminalScreen> {
        let call = self.request(Method::GET, &format!("/v1/sandboxes/{id}/pty/{terminal}/screen"));
        self.json(call, SCREEN_MAX).await
    }

    async fn open_terminal(&self, id: SandboxId, first: &ToServer) -> Result<Terminal> {
        let (sender, frames) = self.web_socket(&format!("/v1/sandboxes/{id}/pty"), PURPOSE).await?;
        let input = TerminalInput { sender };
        input.send(first).await?;
        Ok(Terminal { input, frames, done: false })
    }
}

impl TerminalInput {
    /// Writes input. Waits while the program does not read it.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(INPUT_PIECE) {
            self.sender.send_slowly(Message::binary(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Changes the size of the terminal.
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.send(&ToServer::Resize(size)).await
    }

    /// Sends a signal to the program and its descendants.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        self.send(&ToServer::Signal(ExecSignal { signal })).await
    }

    async fn send(&self, frame: &ToServer) -> Result<()> {
        let text = serde_json::to_string(frame).map_err(|error| Error::Protocol(error.to_string()))?;
        self.sender.send(Message::text(text)).await
    }
}

impl Terminal {
    /// Returns its input, which can be written while its output is read.
    pub fn input(&self) -> TerminalInput {
        self.input.clone()
    }

    /// Returns the next event; `None` after the exit.
    pub async fn next(&mut self) -> Result<Option<TerminalEvent>> {
        while !self.done {
            let frame = match self.frames.next().await? {
                Received::Binary(bytes) => return Ok(Some(TerminalEvent::Output(bytes))),
                Received::Text(text) => decode(&text)?,
            };
            let event = event(frame);
            self.done = matches!(event, Err(_) | Ok(Some(TerminalEvent::Exit { .. })));
            if let Some(event) = event? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

fn event(frame: FromServer) -> Result<Option<TerminalEvent>> {
    Ok(Some(match frame {
        FromServer::Started(started) => TerminalEvent::Started(started),
        FromServer::Lost(lost) => TerminalEvent::Lost(lost.bytes),
        FromServer::Resized(size) => TerminalEvent::Resized(size),
        FromServer::Exit(exit) => TerminalEvent::Exit {
            exit_code: exit.exit_code,
            timed_out: exit.timed_out,
            out_of_memory: exit.out_of_memory,
            killed: exit.killed,
        },
        FromServer::Error(error) if error.fatal => {
            let status = error.code.map_or(500, ErrorCode::status);
            let code = error.code.map(|code| code.to_string()).unwrap_or_default();
            return Err(Error::Api { status, code, message: error.data, request_id: None, sandbox_id: None });
        }
        // Of servers that do not speak the subprotocol.
        FromServer::Output(_) | FromServer::Error(_) | FromServer::Ping => return Ok(None),
    }))
}
