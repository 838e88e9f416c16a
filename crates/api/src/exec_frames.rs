// SPDX-License-Identifier: Apache-2.0
//! Frames of a command's WebSocket.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Ref, RefOr, Schema,
        schema::{Discriminator, ObjectBuilder, OneOfBuilder, Type},
    },
};

use crate::{ErrorCode, integer, sandbox};

/// A frame from the client to the server on the WebSocket of `execStream`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecClientFrame {
    /// Starts the command.
    Start(ExecStart),
    /// Kills the command with its descendants.
    Stop,
}

/// A frame from the server to the client on the WebSocket of `execStream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecServerFrame {
    /// The command has started.
    Start(ExecStarted),
    /// A piece of standard output.
    Stdout(ExecOutput),
    /// A piece of standard error.
    Stderr(ExecOutput),
    /// Output is missing here.
    Lost(ExecLost),
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
    /// The user to run as. Default: the default user of the template.
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
}

/// The command has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "start", "pid": 321}))]
pub struct ExecStarted {
    /// Process id of the command in the sandbox.
    pub pid: u32,
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
#[schema(example = json!({"type": "exit", "exit_code": 0, "timed_out": false, "lost_bytes": 0}))]
pub struct ExecExit {
    /// The exit status; 128 + N if signal N ended the command.
    pub exit_code: i32,
    /// Whether the command was killed because it ran longer than `timeout_sec`.
    pub timed_out: bool,
    /// How many bytes of output are missing: the sum of all frames `lost`.
    #[serde(default)]
    pub lost_bytes: u64,
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

/// The schema of one frame: its fields, and `type` with one of `tags`.
fn tagged(fields: RefOr<Schema>, tags: &[&str]) -> RefOr<Schema> {
    let RefOr::T(Schema::Object(mut object)) = fields else { return fields };
    let tag = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(tags.iter().copied()));
    object.properties.shift_insert(0, "type".to_owned(), RefOr::T(tag.build().into()));
    object.required.insert(0, "type".to_owned());
    RefOr::T(object.into())
}

/// One of the frames `names`, each with its value of `type`.
fn one_of(description: &str, names: &[(&str, &str)]) -> RefOr<Schema> {
    let path = |name: &str| Ref::from_schema_name(name).ref_location;
    let mapping: Vec<_> = names.iter().map(|(tag, name)| (*tag, path(name))).collect();
    let mut schemas: Vec<_> = names.iter().map(|(_, name)| *name).collect();
    schemas.dedup();
    let one =
        schemas.into_iter().fold(OneOfBuilder::new(), |one, name| one.item(Ref::from_schema_name(name)));
    let discriminator = Discriminator::with_mapping("type", mapping);
    RefOr::T(one.description(Some(description)).discriminator(Some(discriminator)).build().into())
}

impl PartialSchema for ExecClientFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the client to the server on the WebSocket of `execStream`: JSON text of at most 2 MiB.";
        one_of(description, &[("start", "ExecStartFrame"), ("stop", "ExecStopFrame")])
    }
}

impl ToSchema for ExecClientFrame {
    fn name() -> Cow<'static, str> {
        "ExecClientFrame".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        let stop = ObjectBuilder::new().description(Some("Kills the command with its descendants.")).build();
        schemas.extend([
            ("ExecStartFrame".to_owned(), tagged(ExecStart::schema(), &["start"])),
            ("ExecStopFrame".to_owned(), tagged(RefOr::T(stop.into()), &["stop"])),
        ]);
    }
}

impl PartialSchema for ExecServerFrame {
    fn schema() -> RefOr<Schema> {
        let description = "A frame from the server to the client on the WebSocket of `execStream`: JSON text. The last frame is \
                           `exit` or `error`.";
        let frames = [
            ("start", "ExecStartedFrame"),
            ("stdout", "ExecOutputFrame"),
            ("stderr", "ExecOutputFrame"),
            ("lost", "ExecLostFrame"),
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
            ("ExecExitFrame".to_owned(), tagged(ExecExit::schema(), &["exit"])),
            ("ExecErrorFrame".to_owned(), tagged(ExecError::schema(), &["error"])),
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
