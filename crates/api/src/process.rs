// SPDX-License-Identifier: Apache-2.0
//! Processes of a sandbox that run in the background: start, list and signals.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

use crate::SandboxId;

/// A command that was started in the background.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0", "cmd": "python3", "pid": 321, "tag": "proc-0a1b2c3d"
}))]
pub struct BackgroundProcess {
    /// The sandbox that it runs in.
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    /// The program.
    pub cmd: String,
    /// Its process id in the sandbox.
    pub pid: u32,
    /// Its tag: that of the request, or `proc-` and 8 hexadecimal digits.
    pub tag: String,
}

/// The running processes of a sandbox that were started through the API.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"processes": [{
    "pid": 321, "tag": "proc-0a1b2c3d", "cmd": "python3", "args": ["-m", "http.server"], "user": "root",
    "started_at": "2026-11-27T12:00:00Z", "terminal": false, "out_of_memory": false
}]}))]
pub struct ProcessList {
    /// In the order of their starts.
    pub processes: Vec<ProcessInfo>,
}

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "pid": 321, "tag": "proc-0a1b2c3d", "cmd": "python3", "args": ["-m", "http.server"], "user": "root",
    "started_at": "2026-11-27T12:00:00Z", "terminal": false, "out_of_memory": false
}))]
pub struct ProcessInfo {
    /// Its process id in the sandbox.
    pub pid: u32,
    /// Its tag, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tag: Option<String>,
    /// The program.
    pub cmd: String,
    /// Arguments of the program; long ones are cut off.
    #[serde(default)]
    pub args: Vec<String>,
    /// Working directory that it was started with, if the request named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cwd: Option<String>,
    /// Name of its user.
    #[serde(default)]
    pub user: String,
    /// When it was started, by the clock of the sandbox.
    pub started_at: DateTime<Utc>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Whether the kernel killed a descendant because the sandbox ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
}

/// A process that the kernel of the sandbox killed because the sandbox ran out of memory, as the sandbox says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"pid": 412, "command": "python3"}))]
pub struct KilledProcess {
    /// Its process id in the sandbox.
    pub pid: u32,
    /// Name of its program, as the kernel has it: at most 15 characters.
    pub command: String,
}

/// What a signal reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"pid": 321, "signal": 15, "processes": 3}))]
pub struct Signalled {
    /// Process id of the selected process.
    pub pid: u32,
    /// Number of the signal.
    pub signal: u32,
    /// How many processes got it: the selected one and its descendants.
    pub processes: u32,
}

/// A signal of Linux, by number (1 to 64) or by name (`SIGINT` or `INT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u32);

/// Names of the signals 1 to 31, without `SIG`.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl Signal {
    /// Terminates a process that does not handle it.
    pub const TERM: Self = Self(15);
    /// Interrupts, as Ctrl-C does.
    pub const INT: Self = Self(2);
    /// Kills.
    pub const KILL: Self = Self(9);

    /// Returns its number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Error of a text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: give a number from 1 to 64, or a name such as SIGTERM")]
pub struct SignalError(String);

impl std::str::FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let none = || SignalError(text.chars().take(32).collect());
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().filter(|number| (1..=64).contains(number)).map(Self).ok_or_else(none);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == name).ok_or_else(none)?;
        Ok(Self(number as u32 + 1))
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Number(u64),
            Name(String),
        }
        let text = match Given::deserialize(deserializer) {
            Ok(Given::Number(number)) => number.to_string(),
            Ok(Given::Name(name)) => name,
            Err(_) => {
                return Err(de::Error::custom(
                    "a signal is a number from 1 to 64, or a name such as SIGTERM",
                ));
            }
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for Signal {
    fn schema() -> RefOr<Schema> {
        let types = utoipa::openapi::schema::SchemaType::from_iter([Type::Integer, Type::String]);
        let description = "A signal of Linux: its number, 1 to 64, or its name, such as `SIGTERM` or `TERM`.";
        RefOr::T(ObjectBuilder::new().schema_type(types).description(Some(description)).build().into())
    }
}

impl ToSchema for Signal {
    fn name() -> std::borrow::Cow<'static, str> {
        "Signal".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        let number = |text: &str| text.parse::<Signal>().map(Signal::number);
        for (text, expected) in
            [("SIGTERM", 15), ("term", 15), ("INT", 2), ("9", 9), ("64", 64), ("SIGSYS", 31)]
        {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "SIGNONE", "1.5", "99999999999999999999"] {
            assert!(number(text).is_err(), "{text}");
        }
        let json = |text: &str| serde_json::from_str::<Signal>(text).map(Signal::number).map_err(drop);
        assert_eq!((json("2"), json("\"SIGHUP\"")), (Ok(2), Ok(1)));
        for text in ["0", "2.5", "null", "[]", "\"no\""] {
            assert!(json(text).is_err(), "{text}");
        }
    }
}
