// SPDX-License-Identifier: Apache-2.0
//! Frames of the stream of a terminal: JSON, and binary frames for input and output.

use axum::extract::ws::Message;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use wrenn_api::{
    ExecLost, Signal, TerminalClientFrame as FromClient, TerminalError, TerminalExit, TerminalOutput,
    TerminalServerFrame as ToClient, TerminalSize, TerminalStarted,
};

use super::{super::super::web_socket::text, Beginning, Output, PIECE, Said};
use crate::{error::Fault, sandboxes::ProcessEvent};

/// Subprotocol with all frames.
pub(in super::super) const SUBPROTOCOL: &str = "wrenn.terminal.v1";

/// Parses a client's frame of JSON.
pub(super) fn parse(frame: &[u8]) -> Result<Said, Fault> {
    let known = serde_json::from_slice(frame);
    let frame = known.map_err(|error| Fault::invalid(format!("the frame is not known: {error}")))?;
    Ok(match frame {
        FromClient::Start(start) => Said::Begin(Box::new(Beginning::Terminal(start))),
        FromClient::Connect(connect) => Said::Begin(Box::new(Beginning::Connect(connect))),
        FromClient::Input(input) => {
            let decoded = STANDARD.decode(&input.data);
            Said::Input(decoded.map_err(|error| Fault::invalid(format!("input is not base 64: {error}")))?)
        }
        FromClient::Resize(size) => Said::Resize(size),
        FromClient::Signal(signal) => Said::Signal(signal.signal),
        FromClient::Kill => Said::Signal(Signal::KILL),
        FromClient::Pong => Said::Nothing,
    })
}

/// Renders the error that ends the stream.
pub(super) fn error(error: Fault) -> Message {
    text(&ToClient::Error(TerminalError { data: error.message, code: Some(error.code), fatal: true }))
}

/// Renders the events of a terminal.
pub(in super::super) struct Rendering {
    output: Output,
}

impl Rendering {
    pub(super) const fn new(output: Output) -> Self {
        Self { output }
    }

    /// Renders an event as messages for the client.
    pub(super) fn render(&self, event: ProcessEvent) -> Vec<Message> {
        let typed = self.output == Output::Typed;
        match event {
            ProcessEvent::Started { pid, tag, offset, terminal } => {
                let TerminalSize { cols, rows } = terminal.unwrap_or(TerminalSize { cols: 0, rows: 0 });
                let tag = tag.unwrap_or_else(|| pid.to_string());
                vec![text(&ToClient::Started(TerminalStarted { tag, pid, cols, rows, offset }))]
            }
            ProcessEvent::Stdout(bytes) | ProcessEvent::Screen(bytes) => self.output(&bytes),
            // Terminals have none.
            ProcessEvent::Stderr(bytes) => self.output(&bytes),
            ProcessEvent::Resized(size) if typed => vec![text(&ToClient::Resized(size))],
            // The input of a terminal is closed by its end, which is told next.
            ProcessEvent::Resized(_) | ProcessEvent::InputClosed(_) => Vec::new(),
            ProcessEvent::Lost(bytes) if typed => vec![text(&ToClient::Lost(ExecLost { bytes }))],
            ProcessEvent::Lost(bytes) => {
                let data = format!("{bytes} bytes of output are missing here");
                vec![text(&ToClient::Error(TerminalError { data, code: None, fatal: false }))]
            }
            ProcessEvent::Ended(exit) => {
                vec![text(&ToClient::Exit(TerminalExit {
                    exit_code: exit.exit_code,
                    timed_out: exit.timed_out,
                    signal: exit.signal,
                    out_of_memory: exit.out_of_memory,
                    // The published frames have no such field.
                    killed: exit.killed.filter(|_| typed),
                }))]
            }
        }
    }

    /// Renders what keeps a silent connection alive, besides pings of the protocol.
    pub(super) fn ping(&self) -> Option<Message> {
        (self.output != Output::Typed).then(|| text(&ToClient::Ping))
    }

    fn output(&self, bytes: &Bytes) -> Vec<Message> {
        let message = |piece: &[u8]| match self.output {
            Output::Base64 => text(&ToClient::Output(TerminalOutput { data: STANDARD.encode(piece) })),
            Output::Binary | Output::Typed => Message::Binary(piece.to_vec().into()),
        };
        bytes.chunks(PIECE).map(message).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use wrenn_api::KilledProcess;

    use super::*;
    use crate::sandboxes::Exit;

    #[test]
    fn input_and_output_in_base64_keep_every_byte() {
        let bytes: Vec<u8> = (0..=255).cycle().take(PIECE + 7).collect();
        let frames = Rendering::new(Output::Base64).render(ProcessEvent::Stdout(bytes.clone().into()));
        assert_eq!(frames.len(), 2, "pieces of one length");
        let mut got = Vec::new();
        for frame in frames {
            let Message::Text(text) = frame else { panic!("{frame:?}") };
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(frame["type"], "output");
            got.extend(STANDARD.decode(frame["data"].as_str().unwrap()).unwrap());
        }
        assert_eq!(got, bytes);
        let input = serde_json::json!({"type": "input", "data": STANDARD.encode(&bytes)}).to_string();
        assert!(matches!(parse(input.as_bytes()), Ok(Said::Input(input)) if input == bytes));
        assert!(parse(br#"{"type":"input","data":"*"}"#).is_err());
    }

    #[test]
    fn what_was_killed_is_told_with_the_subprotocol_alone() {
        for (output, tells) in [(Output::Base64, false), (Output::Binary, false), (Output::Typed, true)] {
            let killed = Some(KilledProcess { pid: 412, command: "python3".to_owned() });
            let exit = Exit { exit_code: 137, out_of_memory: true, killed, ..Exit::default() };
            let frames = Rendering::new(output).render(ProcessEvent::Ended(exit));
            let Some(Message::Text(frame)) = frames.last() else { panic!("{frames:?}") };
            assert!(frame.contains(r#""out_of_memory":true"#), "{frame}");
            assert_eq!(frame.contains(r#""killed":{"#), tells, "{frame}");
        }
    }

    /// Clients of typed frames get the pings of WebSockets only.
    #[test]
    fn a_silent_terminal_is_kept_alive_by_a_frame() {
        let ping = Rendering::new(Output::Binary).ping();
        assert!(matches!(&ping, Some(Message::Text(text)) if text.contains("ping")), "{ping:?}");
        assert!(Rendering::new(Output::Typed).ping().is_none());
    }
}
