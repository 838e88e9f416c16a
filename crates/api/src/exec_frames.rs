// SPDX-License-Identifier: Apache-2.0
//! Frames of the WebSocket of a command or process.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    ErrorCode, KilledProcess, Signal,
    frame_schema::{bare, one_of, tagged},
    integer, sandbox,
};

/// A frame from the client to the server on the WebSocket of `execStream` or `processStream`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecClientFrame {
    /// Starts the command; of `execStream` only.
    Start(ExecStart),
    /// A piece of standard input.
    Stdin(ExecInput),
    /// Closes standard input after what was sent.
    CloseStdin,
    /// Sends a signal to the process and its descendants.
    Signal(ExecSignal),
    /// Ends the stream. A command of `execStream` is killed with its descendants, a process of `processStream` goes on.
    Stop,
}

/// A frame from the server to the client on the WebSocket of `execStream` or `processStream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecServerFrame {
    /// The command has started.
    Start(ExecStarted),
    /// A piece of standard output.
    Stdout(ExecOutput),
    /// A piece of standard error.
    Stderr(ExecOutput),
    /// Output is missing here.
    Lost(ExecLost),
    /// The process takes no more input.
    StdinClosed(ExecStdinClosed),
    /// The command has ended.
    Exit(ExecExit),
    /// The command failed.
    Error(ExecError),
}

/// Starts the command. It is the first frame of a client and must arrive within 10 seconds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "start", "cmd": "python3", "args": ["-u", "-c", "print(6*7)"]}))]
pub struct ExecStart {
    /// The program, found in `PATH` or given as a path; no shell is involved.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub cmd: String,
    /// Arguments of the program: at most 4096, less than 128 KiB each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = sandbox::arguments)]
    pub args: Vec<String>,
    /// Environment variables in addition to the sandbox's, with the same limits.
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
    /// Seconds after which the command and its descendants are killed. Default: no limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::stream_timeout_sec"
    )]
    pub timeout_sec: Option<u32>,
    /// Whether standard input stays open for frames `stdin`; else it is empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Name of the process in lists and for `processes/{selector}`: not only digits, and unique among the running processes of
    /// the sandbox. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*$")]
    pub tag: Option<String>,
}

/// A piece of standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "stdin", "data": "yes\n"}))]
pub struct ExecInput {
    /// The input: text, or base 64 if `encoding` is `base64`. A frame has at most 128 KiB.
    pub data: String,
    /// `base64` for bytes that are not valid UTF-8; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^base64$", nullable = false)]
    pub encoding: Option<String>,
}

/// A signal for the process and its descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "signal", "signal": "SIGINT"}))]
pub struct ExecSignal {
    /// The signal.
    pub signal: Signal,
}

/// The process takes no more input: it has closed it, or it was started without. More of it is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "stdin_closed", "message": "process 321 stopped reading its input"}))]
pub struct ExecStdinClosed {
    /// Why.
    pub message: String,
}

/// The command has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "start", "pid": 321, "offset": 0}))]
pub struct ExecStarted {
    /// Process id of the command in the sandbox.
    pub pid: u32,
    /// Its tag, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tag: Option<String>,
    /// How many bytes it had written before the output that follows. The sum of this, of the sizes of all output and of all
    /// `lost` since is where a stream that broke off can be continued.
    #[serde(default)]
    pub offset: u64,
}

/// A piece of output; `type` says which: `stdout` or `stderr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "stdout", "data": "42\n"}))]
pub struct ExecOutput {
    /// The output: text, or base 64 if `encoding` is `base64`.
    pub data: String,
    /// `base64` if the bytes are not valid UTF-8; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^base64$", nullable = false)]
    pub encoding: Option<String>,
}

/// Output is missing here: the frames before and after this one do not join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "lost", "bytes": 65536}))]
pub struct ExecLost {
    /// How many bytes are missing.
    pub bytes: u64,
}

/// The command has ended. It is the last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "exit", "exit_code": 0, "timed_out": false, "lost_bytes": 0, "out_of_memory": false}))]
pub struct ExecExit {
    /// The exit status; 128 + N if signal N ended the command.
    pub exit_code: i32,
    /// Whether the command was killed because it ran longer than `timeout_sec`.
    pub timed_out: bool,
    /// How many bytes of output are missing: the sum of all frames `lost`.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Number of the signal that ended the command; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub signal: Option<u32>,
    /// Whether the kernel killed the command or a descendant because the sandbox ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Which one, with the subprotocol `wrenn.process.v1`; absent if none was, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub killed: Option<KilledProcess>,
}

/// The command could not be started, or its end is not known. It is the last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "error", "data": "python4: command not found", "code": "program_not_found"}))]
pub struct ExecError {
    /// What failed, why, and what to do.
    pub data: String,
    /// What kind of error.
    pub code: ErrorCode,
}

impl PartialSchema for ExecClientFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the client to the server on the WebSocket of `execStream` or `processStream`: JSON text, \
                           the first one of at most 2 MiB and others of at most 128 KiB. With the subprotocol \
                           `wrenn.process.v1`, input may be binary: a byte 0 and then the input.";
        let frames = [
            ("start", "ExecStartFrame"),
            ("stdin", "ExecInputFrame"),
            ("close_stdin", "ExecCloseStdinFrame"),
            ("signal", "ExecSignalFrame"),
            ("stop", "ExecStopFrame"),
        ];
        one_of(description, &frames)
    }
}

impl ToSchema for ExecClientFrame {
    fn name() -> Cow<'static, str> {
        "ExecClientFrame".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        let stop = "Ends the stream. A command of `execStream` is killed with its descendants, a process of `processStream` goes on.";
        schemas.extend([
            ("ExecStartFrame".to_owned(), tagged(ExecStart::schema(), &["start"])),
            ("ExecInputFrame".to_owned(), tagged(ExecInput::schema(), &["stdin"])),
            (
                "ExecCloseStdinFrame".to_owned(),
                bare("Closes standard input after what was sent.", "close_stdin"),
            ),
            ("ExecSignalFrame".to_owned(), tagged(ExecSignal::schema(), &["signal"])),
            ("ExecStopFrame".to_owned(), bare(stop, "stop")),
            (Signal::name().into_owned(), Signal::schema()),
        ]);
    }
}

impl PartialSchema for ExecServerFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the server to the client on the WebSocket of `execStream` or `processStream`: JSON text. \
                           The last frame is `exit` or `error`. With the subprotocol `wrenn.process.v1`, output is binary: a \
                           byte 1 (standard output) or 2 (standard error), and then the output.";
        let frames = [
            ("start", "ExecStartedFrame"),
            ("stdout", "ExecOutputFrame"),
            ("stderr", "ExecOutputFrame"),
            ("lost", "ExecLostFrame"),
            ("stdin_closed", "ExecStdinClosedFrame"),
            ("exit", "ExecExitFrame"),
            ("error", "ExecErrorFrame"),
        ];
        one_of(description, &frames)
    }
}

impl ToSchema for ExecServerFrame {
    fn name() -> Cow<'static, str> {
        "ExecServerFrame".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend([
            ("ExecStartedFrame".to_owned(), tagged(ExecStarted::schema(), &["start"])),
            ("ExecOutputFrame".to_owned(), tagged(ExecOutput::schema(), &["stdout", "stderr"])),
            ("ExecLostFrame".to_owned(), tagged(ExecLost::schema(), &["lost"])),
            ("ExecStdinClosedFrame".to_owned(), tagged(ExecStdinClosed::schema(), &["stdin_closed"])),
            ("ExecExitFrame".to_owned(), tagged(ExecExit::schema(), &["exit"])),
            ("ExecErrorFrame".to_owned(), tagged(ExecError::schema(), &["error"])),
            (KilledProcess::name().into_owned(), KilledProcess::schema()),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(frame: &ExecServerFrame) -> Value {
        serde_json::to_value(frame).expect("JSON")
    }

    #[test]
    fn frames_are_objects_with_a_type() {
        let output = ExecOutput { data: "a".into(), encoding: None };
        assert_eq!(text(&ExecServerFrame::Stdout(output)), json!({"type": "stdout", "data": "a"}));
        assert_eq!(text(&ExecServerFrame::Lost(ExecLost { bytes: 3 })), json!({"type": "lost", "bytes": 3}));
        let start: ExecClientFrame =
            serde_json::from_value(json!({"type": "start", "cmd": "true"})).expect("a start");
        assert!(matches!(start, ExecClientFrame::Start(ExecStart { cmd, .. }) if cmd == "true"));
        let stop = serde_json::from_value(json!({"type": "stop"}));
        assert!(matches!(stop, Ok(ExecClientFrame::Stop)));
    }

    #[test]
    fn the_schema_of_a_frame_begins_with_its_type() {
        let mut schemas = Vec::new();
        ExecServerFrame::schemas(&mut schemas);
        let schemas = serde_json::to_value(schemas.into_iter().collect::<BTreeMap<_, _>>()).expect("JSON");
        let output = &schemas["ExecOutputFrame"];
        assert_eq!(output["required"], json!(["type", "data"]));
        assert_eq!(output["properties"]["type"]["enum"], json!(["stdout", "stderr"]));
    }
}
