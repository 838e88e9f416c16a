// SPDX-License-Identifier: Apache-2.0
//! Frames of a process's WebSocket: what clients send is parsed and bounded, and events are rendered in their dialect.

use std::time::Duration;

use axum::extract::ws::Message;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio::time::Instant;
use wrenn_api::{
    ErrorCode, ExecClientFrame as FromClient, ExecExit, ExecInput, ExecLost, ExecOutput,
    ExecServerFrame as ToClient, ExecStarted, ExecStdinClosed,
};

use super::super::{
    exec_body::costly,
    utf8::{Piece, Pieces},
};
use crate::{error::Fault, sandboxes::ProcessEvent, serving::Connection};

/// Subprotocol with binary input and output.
pub(super) const SUBPROTOCOL: &str = "wrenn.process.v1";
/// Maximum size of a client's first frame, which has the command, in bytes.
pub(super) const FIRST_MAX: usize = 2 << 20;
/// Maximum size of later input of a client between two frames, in bytes; also of the first frame if memory is
/// short.
pub(super) const LATER_MAX: usize = 128 << 10;
/// Maximum number of a client's frames per second without input, pings included.
const FRAMES_PER_SECOND: u32 = 64;
/// Maximum number of output bytes per frame, before encoding.
const PIECE: usize = 32 << 10;
/// Size in bytes below which text is never sent as base 64.
const SMALL: usize = 1 << 10;

/// First byte of binary frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// How input and output are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// In JSON.
    Text,
    /// In binary frames with a byte for the channel.
    Binary,
}

/// What a client wants.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing: a ping or a pong.
    Nothing,
    /// To leave.
    Left,
    /// A frame other than input.
    Frame(Box<FromClient>),
    /// To write to standard input.
    Input(Vec<u8>),
}

/// Frames of a client, of which those without input have a rate limit. Input waits for the process instead.
pub(super) struct Frames<'a> {
    connection: &'a Connection,
    dialect: Dialect,
    second: Instant,
    count: u32,
}

impl<'a> Frames<'a> {
    pub(super) fn new(connection: &'a Connection, dialect: Dialect) -> Self {
        Self { connection, dialect, second: Instant::now(), count: 0 }
    }

    /// Parses and counts a message; `None` is the end of the connection.
    pub(super) fn parse(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<Said, Fault> {
        self.connection.heard();
        let said = match message {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Said::Nothing,
            Some(Ok(Message::Close(_)) | Err(_)) | None => Said::Left,
            Some(Ok(Message::Text(text))) => parse(text.as_bytes())?,
            Some(Ok(Message::Binary(bytes))) if self.dialect == Dialect::Binary => binary(&bytes)?,
            Some(Ok(Message::Binary(bytes))) => parse(&bytes)?,
        };
        if !matches!(said, Said::Input(_)) {
            self.count()?;
        }
        Ok(said)
    }

    fn count(&mut self) -> Result<(), Fault> {
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.count) = (Instant::now(), 0);
        }
        self.count += 1;
        if self.count > FRAMES_PER_SECOND {
            let message =
                format!("the client sends more than {FRAMES_PER_SECOND} frames a second without input");
            return Err(Fault::new(ErrorCode::TooManyRequests, message));
        }
        Ok(())
    }
}

fn parse(frame: &[u8]) -> Result<Said, Fault> {
    match serde_json::from_slice(frame) {
        Ok(FromClient::Stdin(input)) => decoded(input).map(Said::Input),
        Ok(frame) => Ok(Said::Frame(Box::new(frame))),
        Err(error) => Err(Fault::invalid(format!("the frame is not known: {error}"))),
    }
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

fn binary(frame: &Bytes) -> Result<Said, Fault> {
    match frame.first() {
        Some(&STDIN) => Ok(Said::Input(frame[1..].to_vec())),
        _ => Err(Fault::invalid("a binary frame of a client begins with a byte 0, for standard input")),
    }
}

/// Renders the events of a process.
pub(super) struct Rendering {
    dialect: Dialect,
    /// Incomplete characters at the end of both outputs.
    stdout: Pieces,
    stderr: Pieces,
}

impl Rendering {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, stdout: Pieces::default(), stderr: Pieces::default() }
    }

    /// Renders an event as messages for the client.
    pub(super) fn render(&mut self, event: ProcessEvent) -> Vec<Message> {
        match event {
            ProcessEvent::Started { pid, tag, offset } => {
                vec![text(&ToClient::Start(ExecStarted { pid, tag, offset }))]
            }
            ProcessEvent::Stdout(bytes) => self.output(STDOUT, &bytes),
            ProcessEvent::Stderr(bytes) => self.output(STDERR, &bytes),
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
                };
                self.rest().into_iter().chain([text(&ToClient::Exit(exit))]).collect()
            }
        }
    }

    fn output(&mut self, channel: u8, bytes: &Bytes) -> Vec<Message> {
        let pieces = bytes.chunks(PIECE);
        if self.dialect == Dialect::Binary {
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

/// Renders a frame of JSON.
pub(super) fn text(frame: &ToClient) -> Message {
    // Frames have no maps with keys that are no text, which is all that could fail.
    Message::Text(serde_json::to_string(frame).unwrap_or_default().into())
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
