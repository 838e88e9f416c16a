// SPDX-License-Identifier: Apache-2.0
//! Frames of a process's WebSocket: what clients send is parsed and bounded, and events are rendered in their dialect.

mod process;
mod terminal;

use std::time::Duration;

use axum::extract::ws::Message;
use tokio::time::Instant;
use wrenn_api::{ErrorCode, ExecStart, Signal, TerminalConnect, TerminalSize, TerminalStart};

pub(super) use self::{process::SUBPROTOCOL, terminal::SUBPROTOCOL as TERMINAL_SUBPROTOCOL};
use crate::{error::Fault, sandboxes::ProcessEvent, serving::Connection};

/// Maximum size of a client's first frame, which has the command, in bytes.
pub(super) const FIRST_MAX: usize = 2 << 20;
/// Maximum size of later input of a client between two frames, in bytes; also of the first frame if memory is
/// short.
pub(super) const LATER_MAX: usize = 128 << 10;
/// Maximum number of a client's frames per second without input, pings included.
const FRAMES_PER_SECOND: u32 = 64;
/// Maximum number of output bytes per frame, before encoding.
const PIECE: usize = 32 << 10;

/// How a stream is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// A process with pipes, its input and output in JSON or in binary frames with a byte for the channel.
    Process {
        /// Whether they are binary.
        binary: bool,
    },
    /// A terminal.
    Terminal(Output),
}

/// How the output of a terminal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// In binary frames, with none but the frames that all clients know.
    Binary,
    /// In JSON and base 64, as earlier clients expect.
    Base64,
    /// In binary frames, and with all frames there are.
    Typed,
}

/// What a client wants.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing: a ping or a pong.
    Nothing,
    /// To leave.
    Left,
    /// What the stream is about.
    Begin(Box<Beginning>),
    /// To write to the process.
    Input(Vec<u8>),
    /// To close its standard input.
    CloseInput,
    /// To send it a signal.
    Signal(Signal),
    /// To give its terminal another size.
    Resize(TerminalSize),
}

/// What a stream is about.
#[derive(Debug)]
pub(super) enum Beginning {
    /// A new command.
    Command(ExecStart),
    /// A new terminal.
    Terminal(TerminalStart),
    /// A terminal that there is.
    Connect(TerminalConnect),
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
            Some(Ok(Message::Text(text))) => self.dialect.parse(text.as_bytes())?,
            Some(Ok(Message::Binary(bytes))) => match self.dialect {
                Dialect::Process { binary: true } => process::binary(&bytes)?,
                Dialect::Process { binary: false } => process::parse(&bytes)?,
                Dialect::Terminal(_) => Said::Input(bytes.into()),
            },
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

impl Dialect {
    /// What the client is to send first.
    pub(super) const fn expected(self) -> &'static str {
        match self {
            Self::Process { .. } => "send {\"type\":\"start\",…} first",
            Self::Terminal(_) => "send {\"type\":\"start\",…} or {\"type\":\"connect\",…} first",
        }
    }

    fn parse(self, frame: &[u8]) -> Result<Said, Fault> {
        match self {
            Self::Process { .. } => process::parse(frame),
            Self::Terminal(_) => terminal::parse(frame),
        }
    }

    /// Renders the error that ends the stream.
    pub(super) fn error(self, error: Fault) -> Message {
        match self {
            Self::Process { .. } => process::error(error),
            Self::Terminal(_) => terminal::error(error),
        }
    }
}

/// Renders the events of a process.
pub(super) enum Rendering {
    Process(process::Rendering),
    Terminal(terminal::Rendering),
}

impl Rendering {
    pub(super) fn new(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Process { binary } => Self::Process(process::Rendering::new(binary)),
            Dialect::Terminal(output) => Self::Terminal(terminal::Rendering::new(output)),
        }
    }

    /// Renders an event as messages for the client.
    pub(super) fn render(&mut self, event: ProcessEvent) -> Vec<Message> {
        match self {
            Self::Process(rendering) => rendering.render(event),
            Self::Terminal(rendering) => rendering.render(event),
        }
    }

    /// Renders what keeps a silent connection alive.
    pub(super) fn ping(&self) -> Vec<Message> {
        let ping = Message::Ping(Vec::new().into());
        match self {
            Self::Process(_) => vec![ping],
            Self::Terminal(rendering) => [ping].into_iter().chain(rendering.ping()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};
    use wrenn_testkit::fuzz;

    use super::*;

    const FRAMES: &[&str] = &[
        r#"{"type":"start","cmd":"sh","args":["-c","echo"],"envs":{"A":"b"},"cwd":"/","user":"root","timeout_sec":3,"stdin":true}"#,
        r#"{"type":"stdin","data":"YWJj"}"#,
        r#"{"type":"close_stdin"}"#,
        r#"{"type":"signal","signal":"SIGTERM"}"#,
        r#"{"type":"start","cmd":"bash","cols":80,"rows":24,"tag":"t"}"#,
        r#"{"type":"connect","tag":"t"}"#,
        r#"{"type":"resize","cols":132,"rows":43}"#,
        r#"{"type":"input","data":"YWJj"}"#,
        r#"{"type":"kill"}"#,
        r#"{"type":"pong"}"#,
        "\u{0}abc",
        "\u{1}{\"type\":\"close_stdin\"}",
    ];

    proptest! {
        #![proptest_config(fuzz::config())]

        /// Whatever a client sends in a frame is understood, or refused as invalid.
        #[test]
        fn whatever_a_frame_has_is_understood_or_refused(frame in fuzz::damaged(FRAMES)) {
            let process = Dialect::Process { binary: true };
            let terminal = Dialect::Terminal(Output::Typed);
            for said in [process.parse(&frame), terminal.parse(&frame), process::binary(&frame.into())] {
                prop_assert!(said.as_ref().err().is_none_or(|fault| fault.code == ErrorCode::InvalidRequest), "{said:?}");
            }
        }
    }
}
