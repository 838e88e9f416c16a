// SPDX-License-Identifier: Apache-2.0
//! Processes whose input and output are streamed over a WebSocket, and those that run in the background.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use wrenn_api::{
    BackgroundProcess, ErrorCode, ExecRequest, KilledProcess, ProcessInfo, ProcessList, SandboxId, Signal,
    Signalled,
};

use crate::{
    Client, Error, Result,
    transport::{ANSWER_MAX, decode},
    websocket::{Purpose, Received, Receiver, Sender},
};

/// Maximum size of a list of processes in bytes.
const LIST_MAX: usize = 8 << 20;
/// Maximum number of bytes of input in a frame.
pub(crate) const INPUT_PIECE: usize = 64 << 10;

/// The server ends a command with its connection, so that a broken one tells what became of the command.
const PURPOSE: Purpose = Purpose {
    subprotocol: Some("wrenn.process.v1"),
    broken: "the command that ran was ended",
    silent: "the command may still run",
};
/// First byte of binary frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Event of a running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// The process runs.
    Start {
        /// Process id in the sandbox.
        pid: u32,
        /// Its tag, if it has one.
        tag: Option<String>,
        /// Number of bytes that it had written before the output that follows.
        offset: u64,
    },
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Output is missing between the previous event and the next one.
    Lost {
        /// Number of missing bytes.
        bytes: u64,
    },
    /// The process takes no more input, and why.
    InputClosed {
        /// Why.
        message: String,
    },
    /// The command has exited; this is the last event.
    Exit {
        /// Exit status; 128 + N if signal N ended the command.
        exit_code: i32,
        /// Whether the command was killed because of its timeout.
        timed_out: bool,
        /// Whether the kernel killed it or a descendant because the sandbox ran out of memory.
        out_of_memory: bool,
        /// Which one, if that is known.
        killed: Option<KilledProcess>,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame {
    Start {
        pid: u32,
        #[serde(default)]
        tag: Option<String>,
        #[serde(default)]
        offset: u64,
    },
    StdinClosed {
        #[serde(default)]
        message: String,
    },
    Stdout(Output),
    Stderr(Output),
    Lost {
        bytes: u64,
    },
    Exit {
        exit_code: i32,
        #[serde(default)]
        timed_out: bool,
        #[serde(default)]
        out_of_memory: bool,
        #[serde(default)]
        killed: Option<KilledProcess>,
    },
    Error {
        #[serde(default)]
        data: String,
        #[serde(default)]
        code: String,
    },
}

#[derive(Deserialize)]
struct Output {
    data: String,
    #[serde(default)]
    encoding: Option<String>,
}

/// Stream of a process. Dropping it kills a command that was started with it, and leaves a process that was attached to.
#[derive(Debug)]
pub struct ProcessStream {
    input: ProcessInput,
    frames: Receiver,
    done: bool,
}

/// Input of a process; clones write to the same process.
#[derive(Debug, Clone)]
pub struct ProcessInput {
    sender: Sender,
}

impl Client {
    /// Starts a command; [`ProcessStream::next`] returns its output. Without `timeout_sec` there is no time limit. It has
    /// standard input if the request says so.
    pub async fn exec_stream(&self, id: SandboxId, request: &ExecRequest) -> Result<ProcessStream> {
        let stream = self.open(&format!("/v1/sandboxes/{id}/exec/stream")).await?;
        stream.input.sender.send(Message::text(start_frame(request).to_string())).await?;
        Ok(stream)
    }

    /// Attaches to a process by its id or tag. `from`: `beginning`, `now`, or a number of bytes since its start.
    pub async fn process_stream(&self, id: SandboxId, selector: &str, from: &str) -> Result<ProcessStream> {
        self.open(&format!("/v1/sandboxes/{id}/processes/{selector}/stream?from={from}")).await
    }

    /// Starts a command in the background.
    pub async fn start_process(&self, id: SandboxId, request: &ExecRequest) -> Result<BackgroundProcess> {
        let request = ExecRequest { background: true, ..request.clone() };
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&request);
        self.json(call, ANSWER_MAX).await
    }

    /// Lists the running processes of a sandbox that were started through the API.
    pub async fn processes(&self, id: SandboxId) -> Result<Vec<ProcessInfo>> {
        let call = self.request(Method::GET, &format!("/v1/sandboxes/{id}/processes"));
        self.json(call, LIST_MAX).await.map(|list: ProcessList| list.processes)
    }

    /// Sends a signal to a process, by its id or tag, and to its descendants.
    pub async fn signal_process(&self, id: SandboxId, selector: &str, signal: Signal) -> Result<Signalled> {
        let path = format!("/v1/sandboxes/{id}/processes/{selector}?signal={}", signal.number());
        self.json(self.request(Method::DELETE, &path), ANSWER_MAX).await
    }

    async fn open(&self, path: &str) -> Result<ProcessStream> {
        let (sender, frames) = self.web_socket(path, PURPOSE).await?;
        Ok(ProcessStream { input: ProcessInput { sender }, frames, done: false })
    }
}

fn start_frame(request: &ExecRequest) -> serde_json::Value {
    let mut frame =
        json!({ "type": "start", "cmd": request.cmd, "args": request.args, "envs": request.envs });
    if let Some(seconds) = request.timeout_sec {
        frame["timeout_sec"] = json!(seconds);
    }
    if request.stdin {
        frame["stdin"] = json!(true);
    }
    for (name, value) in [("cwd", &request.cwd), ("user", &request.user), ("tag", &request.tag)] {
        if let Some(value) = value {
            frame[name] = json!(value);
        }
    }
    frame
}

impl ProcessInput {
    /// Writes to standard input. Waits while the process does not read it.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(INPUT_PIECE) {
            let message = if self.sender.chosen {
                Message::binary([&[STDIN], piece].concat())
            } else {
                let data = STANDARD.encode(piece);
                Message::text(json!({ "type": "stdin", "data": data, "encoding": "base64" }).to_string())
            };
            self.sender.send_slowly(message).await?;
        }
        Ok(())
    }

    /// Closes standard input after what was written.
    pub async fn close(&self) -> Result<()> {
        self.sender.send(Message::text(json!({ "type": "close_stdin" }).to_string())).await
    }

    /// Sends a signal to the process and its descendants.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        self.sender.send(Message::text(json!({ "type": "signal", "signal": signal }).to_string())).await
    }
}

impl ProcessStream {
    /// Returns the input of the process, which can be written while the output is read.
    pub fn input(&self) -> ProcessInput {
        self.input.clone()
    }

    /// Returns the next event; `None` after the exit.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        if self.done {
            return Ok(None);
        }
        match self.frames.next().await? {
            Received::Text(text) => self.event(&text).map(Some),
            Received::Binary(bytes) => output(&bytes).map(Some),
        }
    }

    /// Ends the stream, and a command that was started with it; [`ProcessStream::next`] still returns its exit.
    pub async fn stop(&mut self) -> Result<()> {
        self.input.sender.send(Message::text(json!({ "type": "stop" }).to_string())).await
    }

    fn event(&mut self, text: &[u8]) -> Result<ProcessEvent> {
        let event = event(decode(text)?);
        self.done = matches!(event, Err(_) | Ok(ProcessEvent::Exit { .. }));
        event
    }
}

/// Parses a binary frame.
fn output(frame: &Bytes) -> Result<ProcessEvent> {
    match frame.first() {
        Some(&STDOUT) => Ok(ProcessEvent::Stdout(frame.slice(1..))),
        Some(&STDERR) => Ok(ProcessEvent::Stderr(frame.slice(1..))),
        _ => Err(Error::Protocol("a binary frame of no known channel".to_owned())),
    }
}

fn event(frame: Frame) -> Result<ProcessEvent> {
    Ok(match frame {
        Frame::Start { pid, tag, offset } => ProcessEvent::Start { pid, tag, offset },
        Frame::StdinClosed { message } => ProcessEvent::InputClosed { message },
        Frame::Stdout(output) => ProcessEvent::Stdout(bytes(output)?),
        Frame::Stderr(output) => ProcessEvent::Stderr(bytes(output)?),
        Frame::Lost { bytes } => ProcessEvent::Lost { bytes },
        Frame::Exit { exit_code, timed_out, out_of_memory, killed } => {
            ProcessEvent::Exit { exit_code, timed_out, out_of_memory, killed }
        }
        Frame::Error { data, code } => {
            let status = code.parse::<ErrorCode>().map_or(500, ErrorCode::status);
            return Err(Error::Api { status, code, message: data, request_id: None, sandbox_id: None });
        }
    })
}

fn bytes(output: Output) -> Result<Bytes> {
    match output.encoding.as_deref() {
        None | Some("utf-8") => Ok(output.data.into()),
        Some("base64") => STANDARD
            .decode(&output.data)
            .map(Bytes::from)
            .map_err(|error| Error::Protocol(format!("output is not base 64: {error}"))),
        Some(other) => Err(Error::Protocol(format!("output in unknown encoding {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ProcessEvent> {
        event(decode(text.as_bytes())?)
    }

    #[test]
    fn frames_are_understood() -> Result<()> {
        assert_eq!(
            read(r#"{"type":"start","pid":7}"#)?,
            ProcessEvent::Start { pid: 7, tag: None, offset: 0 }
        );
        assert_eq!(read(r#"{"type":"stdout","data":"a"}"#)?, ProcessEvent::Stdout(Bytes::from_static(b"a")));
        let bytes = Bytes::from_static(&[0xff, 0]);
        let frame = r#"{"type":"stderr","data":"/wA=","encoding":"base64"}"#;
        assert_eq!(read(frame)?, ProcessEvent::Stderr(bytes));
        assert_eq!(read(r#"{"type":"lost","bytes":9}"#)?, ProcessEvent::Lost { bytes: 9 });
        let exit = ProcessEvent::Exit { exit_code: 3, timed_out: false, out_of_memory: false, killed: None };
        assert_eq!(read(r#"{"type":"exit","exit_code":3}"#)?, exit);
        let killed = Some(KilledProcess { pid: 412, command: "python3".to_owned() });
        let exit = ProcessEvent::Exit { exit_code: 137, timed_out: false, out_of_memory: true, killed };
        let frame = r#"{"type":"exit","exit_code":137,"out_of_memory":true,"killed":{"pid":412,"command":"python3"}}"#;
        assert_eq!(read(frame)?, exit);
        Ok(())
    }

    #[test]
    fn an_error_frame_is_an_error_of_the_api() {
        let error = read(r#"{"type":"error","data":"no such program","code":"not_found"}"#);
        assert!(matches!(error, Err(Error::Api { status: 404, .. })), "{error:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "[]", r#"{"type":"other"}"#, r#"{"type":"stdout","data":"!","encoding":"base64"}"#] {
            assert!(matches!(read(text), Err(Error::Protocol(_))), "{text}");
        }
    }
}
