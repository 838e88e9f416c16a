// SPDX-License-Identifier: Apache-2.0
//! Frames of the WebSocket of a terminal.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    ErrorCode, ExecLost, ExecSignal, KilledProcess, TerminalSize,
    frame_schema::{bare, one_of, tagged},
    integer, sandbox,
};

/// A frame from the client to the server on the WebSocket of `openTerminal`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TerminalClientFrame {
    /// Starts a program in a new terminal.
    Start(TerminalStart),
    /// Connects to a terminal.
    Connect(TerminalConnect),
    /// Input, in base 64.
    Input(TerminalInput),
    /// Changes the size.
    Resize(TerminalSize),
    /// Sends a signal to the program and its descendants.
    Signal(ExecSignal),
    /// Kills the program and its descendants.
    Kill,
    /// Has no effect: it is the answer to `ping`.
    Pong,
}

/// A frame from the server to the client on the WebSocket of `openTerminal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TerminalServerFrame {
    /// The client is connected to the terminal.
    Started(TerminalStarted),
    /// Output, in base 64.
    Output(TerminalOutput),
    /// Output is missing here.
    Lost(ExecLost),
    /// The terminal has this size now.
    Resized(TerminalSize),
    /// The program has ended.
    Exit(TerminalExit),
    /// The terminal failed, or something is missing.
    Error(TerminalError),
    /// The connection is alive.
    Ping,
}

/// Starts a program in a new terminal. This or `connect` is the first frame of a client, and must arrive within 10 seconds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "start", "cmd": "/bin/bash", "cols": 120, "rows": 40}))]
pub struct TerminalStart {
    /// The program, found in `PATH` or given as a path. Default: `/bin/bash`.
    #[serde(default = "shell")]
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub cmd: String,
    /// Arguments of the program: at most 4096, less than 128 KiB each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = sandbox::arguments)]
    pub args: Vec<String>,
    /// Environment variables in addition to the sandbox's, with the same limits. `TERM` is `xterm-256color` otherwise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = sandbox::environment)]
    pub envs: BTreeMap<String, String>,
    /// Working directory. Default: the home directory of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096, pattern = "^[^\\x00]*$")]
    pub cwd: Option<String>,
    /// The user to run as: `app`, `1000`, or with a group, which is then its only one, `app:www-data`. Default: the default user of
    /// the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256, pattern = "^[^\\x00]*$")]
    pub user: Option<String>,
    /// Name of the terminal, by which clients connect to it again: not only digits, and unique among the running processes of
    /// the sandbox. Default: `pty-` and 8 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*$")]
    pub tag: Option<String>,
    /// Number of columns.
    #[serde(default = "cols")]
    #[schema(minimum = 1, maximum = 1000, default = 80)]
    pub cols: u32,
    /// Number of rows.
    #[serde(default = "rows")]
    #[schema(minimum = 1, maximum = 500, default = 24)]
    pub rows: u32,
    /// Seconds after which the program and its descendants are killed. Default: no limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::stream_timeout_sec"
    )]
    pub timeout_sec: Option<u32>,
    /// Seconds after which the terminal hangs up if no client is connected to it, and nothing is written to it or by it.
    /// Default: a day.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::idle_timeout_sec"
    )]
    pub idle_timeout_sec: Option<u32>,
}

/// Connects to a terminal: the client gets what it shows, and then its further output.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "connect", "tag": "pty-0a1b2c3d"}))]
pub struct TerminalConnect {
    /// The terminal: digits are the process id of its program, and all else is its tag.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._-]{1,128}$")]
    pub tag: String,
    /// Number of columns that it gets, together with `rows`. Default: it keeps its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000, nullable = false)]
    pub cols: Option<u32>,
    /// Number of rows that it gets, together with `cols`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 500, nullable = false)]
    pub rows: Option<u32>,
}

/// Input of a terminal. Binary frames are input, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "input", "data": "bHMK"}))]
pub struct TerminalInput {
    /// The input in base 64. A frame has at most 128 KiB.
    pub data: String,
}

/// The client is connected to the terminal. It is the first frame of the server, also after `connect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "started", "tag": "pty-0a1b2c3d", "pid": 321, "cols": 120, "rows": 40, "offset": 0}))]
pub struct TerminalStarted {
    /// Name of the terminal.
    pub tag: String,
    /// Process id of its program in the sandbox.
    pub pid: u32,
    /// Its number of columns.
    pub cols: u32,
    /// Its number of rows.
    pub rows: u32,
    /// How many bytes it had written before the output that follows. What a client needs to show the screen comes before that
    /// output and does not count.
    pub offset: u64,
}

/// Output of a terminal, with `?output=base64`; otherwise binary frames are output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "output", "data": "JCA="}))]
pub struct TerminalOutput {
    /// The output in base 64.
    pub data: String,
}

/// The program of the terminal has ended. It is the last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "exit", "exit_code": 0, "timed_out": false, "out_of_memory": false}))]
pub struct TerminalExit {
    /// The exit status; 128 + N if signal N ended the program.
    pub exit_code: i32,
    /// Whether it was killed because it ran longer than `timeout_sec`.
    #[serde(default)]
    pub timed_out: bool,
    /// Number of the signal that ended it; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub signal: Option<u32>,
    /// Whether the kernel killed it or a descendant because the sandbox ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Which one, with the subprotocol `wrenn.terminal.v1`; absent if none was, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub killed: Option<KilledProcess>,
}

/// The terminal failed, or, if it is not `fatal`, output is missing. A fatal one is the last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "type": "error", "data": "no process with tag 'pty-0a1b2c3d'; it may have ended", "code": "not_found", "fatal": true
}))]
pub struct TerminalError {
    /// What failed, why, and what to do.
    pub data: String,
    /// What kind of error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<ErrorCode>,
    /// Whether it ends the stream. The program of the terminal goes on.
    #[serde(default)]
    pub fatal: bool,
}

fn shell() -> String {
    "/bin/bash".to_owned()
}

const fn cols() -> u32 {
    80
}

const fn rows() -> u32 {
    24
}

impl PartialSchema for TerminalClientFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the client to the server on the WebSocket of `openTerminal`: JSON text, the first one of at \
                           most 2 MiB and others of at most 128 KiB. Binary frames are input of the terminal.";
        let frames = [
            ("start", "TerminalStartFrame"),
            ("connect", "TerminalConnectFrame"),
            ("input", "TerminalInputFrame"),
            ("resize", "TerminalResizeFrame"),
            ("signal", "ExecSignalFrame"),
            ("kill", "TerminalKillFrame"),
            ("pong", "TerminalPongFrame"),
        ];
        one_of(description, &frames)
    }
}

impl ToSchema for TerminalClientFrame {
    fn name() -> Cow<'static, str> {
        "TerminalClientFrame".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend([
            ("TerminalStartFrame".to_owned(), tagged(TerminalStart::schema(), &["start"])),
            ("TerminalConnectFrame".to_owned(), tagged(TerminalConnect::schema(), &["connect"])),
            ("TerminalInputFrame".to_owned(), tagged(TerminalInput::schema(), &["input"])),
            ("TerminalResizeFrame".to_owned(), tagged(TerminalSize::schema(), &["resize"])),
            (
                "TerminalKillFrame".to_owned(),
                bare("Kills the program of the terminal, and its descendants.", "kill"),
            ),
            ("TerminalPongFrame".to_owned(), bare("The answer to `ping`, which is not necessary.", "pong")),
        ]);
    }
}

impl PartialSchema for TerminalServerFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the server to the client on the WebSocket of `openTerminal`: JSON text. Output comes in \
                           binary frames, or in frames `output` with `?output=base64`. The last frame is `exit`, or `error` \
                           with `fatal`. Frames `lost` and `resized` are only sent with the subprotocol `wrenn.terminal.v1`, \
                           frames `ping` only without.";
        let frames = [
            ("started", "TerminalStartedFrame"),
            ("output", "TerminalOutputFrame"),
            ("lost", "TerminalLostFrame"),
            ("resized", "TerminalResizedFrame"),
            ("exit", "TerminalExitFrame"),
            ("error", "TerminalErrorFrame"),
            ("ping", "TerminalPingFrame"),
        ];
        one_of(description, &frames)
    }
}

impl ToSchema for TerminalServerFrame {
    fn name() -> Cow<'static, str> {
        "TerminalServerFrame".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend([
            ("TerminalStartedFrame".to_owned(), tagged(TerminalStarted::schema(), &["started"])),
            ("TerminalOutputFrame".to_owned(), tagged(TerminalOutput::schema(), &["output"])),
            ("TerminalLostFrame".to_owned(), tagged(ExecLost::schema(), &["lost"])),
            ("TerminalResizedFrame".to_owned(), tagged(TerminalSize::schema(), &["resized"])),
            ("TerminalExitFrame".to_owned(), tagged(TerminalExit::schema(), &["exit"])),
            ("TerminalErrorFrame".to_owned(), tagged(TerminalError::schema(), &["error"])),
            ("TerminalPingFrame".to_owned(), bare("The connection is alive.", "ping")),
        ]);
    }
}
