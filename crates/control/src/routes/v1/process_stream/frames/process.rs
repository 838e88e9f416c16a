// SPDX-License-Identifier: Apache-2.0
//! Frames of the stream of a process with pipes: JSON, with the subprotocol `wrenn.process.v1` binary for input and output.

use axum::extract::ws::Message;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use wrenn_api::{
    ExecClientFrame as FromClient, ExecError, ExecExit, ExecInput, ExecLost, ExecOutput,
    ExecServerFrame as ToClient, ExecStarted, ExecStdinClosed,
};

use super::{
    super::super::{
        exec_body::costly,
        utf8::{Piece, Pieces},
        web_socket::text,
    },
    Beginning, PIECE, Said,
};
use crate::{error::Fault, sandboxes::ProcessEvent};

/// Subprotocol with binary input and output.
pub(in super::super) const SUBPROTOCOL: &str = "wrenn.process.v1";
/// Size in bytes below which text is never sent as base 64.
const SMALL: usize = 1 << 10;

/// First byte of binary frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Parses a client's frame of JSON.
pub(super) fn parse(frame: &[u8]) -> Result<Said, Fault> {
    let known = serde_json::from_slice(frame);
    let frame = known.map_err(|error| Fault::invalid(format!("the frame is not known: {error}")))?;
    Ok(match frame {
        FromClient::Start(start) => Said::Begin(Box::new(Beginning::Command(start))),
        FromClient::Stdin(input) => Said::Input(decoded(input)?),
        FromClient::CloseStdin => Said::CloseInput,
        FromClient::Signal(signal) => Said::Signal(signal.signal),
        FromClient::Stop => Said::Left,
    })
}

fn decoded(input: ExecInput) -> Result<Vec<u8>, Fault> {
    match input.encoding.as_deref() {
        None => Ok(input.data.into_bytes()),
        Some("base64") => STANDARD
            .decode(&input.data)
            .map_err(|error| Fault::invalid(format!("stdin is not base 64: {error}"))),
        Some(_) => Err(Fault::invalid("encoding: give `base64`, or nothing for text")),
    }
}

/// Parses a client's binary frame.
pub(super) fn binary(frame: &Bytes) -> Result<Said, Fault> {
    match frame.first() {
        Some(&STDIN) => Ok(Said::Input(frame[1..].to_vec())),
        _ => Err(Fault::invalid("a binary frame of a client begins with a byte 0, for standard input")),
    }
}

/// Renders the events of a process.
pub(in super::super) struct Rendering {
    binary: bool,
    /// Incomplete characters at the end of both outputs.
    stdout: Pieces,
    stderr: Pieces,
}

impl Rendering {
    pub(super) fn new(binary: bool) -> Self {
        Self { binary, stdout: Pieces::default(), stderr: Pieces::default() }
    }

    /// Renders an event as messages for the client.
    pub(super) fn render(&mut self, event: ProcessEvent) -> Vec<Message> {
        match event {
            ProcessEvent::Started { pid, tag, offset, .. } => {
                vec![text(&ToClient::Start(ExecStarted { pid, tag, offset }))]
            }
            ProcessEvent::Stdout(bytes) => self.output(STDOUT, &bytes),
            ProcessEvent::Stderr(bytes) => self.output(STDERR, &bytes),
            // Of terminals: their output is passed on as it is.
            ProcessEvent::Screen(_) | ProcessEvent::Resized(_) => Vec::new(),
            ProcessEvent::InputClosed(message) => {
                vec![text(&ToClient::StdinClosed(ExecStdinClosed { message }))]
            }
            ProcessEvent::Lost(bytes) => {
                // The next output is not contiguous: an incomplete character must not be joined with it.
                self.rest().into_iter().chain([text(&ToClient::Lost(ExecLost { bytes }))]).collect()
            }
            ProcessEvent::Ended(exit) => {
                let exit = ExecExit {
                    exit_code: exit.exit_code,
                    timed_out: exit.timed_out,
                    lost_bytes: exit.lost_bytes,
                    signal: exit.signal,
                    out_of_memory: exit.out_of_memory,
                    // The published frames have no such field.
                    killed: exit.killed.filter(|_| self.binary),
                };
                self.rest().into_iter().chain([text(&ToClient::Exit(exit))]).collect()
            }
        }
    }

    fn output(&mut self, channel: u8, bytes: &Bytes) -> Vec<Message> {
        let pieces = bytes.chunks(PIECE);
        if self.binary {
            return pieces.map(|piece| Message::Binary([&[channel], piece].concat().into())).collect();
        }
        let begun = if channel == STDOUT { &mut self.stdout } else { &mut self.stderr };
        pieces.filter_map(|piece| begun.push(piece)).map(|piece| text(&frame(channel, piece))).collect()
    }

    /// Renders the rest of both outputs.
    fn rest(&mut self) -> Vec<Message> {
        let rest = [(STDOUT, self.stdout.finish()), (STDERR, self.stderr.finish())];
        rest.into_iter().filter_map(|(channel, piece)| Some(text(&frame(channel, piece?)))).collect()
    }
}

fn frame(channel: u8, piece: Piece) -> ToClient {
    if channel == STDOUT { ToClient::Stdout(piece.into()) } else { ToClient::Stderr(piece.into()) }
}

/// Renders the error that ends the stream.
pub(super) fn error(error: Fault) -> Message {
    text(&ToClient::Error(ExecError { data: error.message, code: error.code }))
}

impl From<Piece> for ExecOutput {
    fn from(piece: Piece) -> Self {
        let base64 =
            |bytes: Vec<u8>| Self { data: STANDARD.encode(bytes), encoding: Some("base64".to_owned()) };
        match piece {
            Piece::Text(data) if !costly(data.as_bytes(), SMALL) => Self { data, encoding: None },
            Piece::Text(data) => base64(data.into_bytes()),
            Piece::Bytes(bytes) => base64(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_api::KilledProcess;

    use super::*;
    use crate::sandboxes::Exit;

    #[test]
    fn what_was_killed_is_told_with_the_subprotocol_alone() {
        for binary in [false, true] {
            let killed = Some(KilledProcess { pid: 412, command: "python3".to_owned() });
            let exit = Exit { exit_code: 137, out_of_memory: true, killed, ..Exit::default() };
            let frames = Rendering::new(binary).render(ProcessEvent::Ended(exit));
            let Some(Message::Text(frame)) = frames.last() else { panic!("{frames:?}") };
            assert!(frame.contains(r#""out_of_memory":true"#), "{frame}");
            assert_eq!(frame.contains(r#""killed":{"pid":412,"command":"python3"}"#), binary, "{frame}");
        }
    }
}
