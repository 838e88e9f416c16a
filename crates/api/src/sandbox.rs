//! Sandboxes, commands and files.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ArrayBuilder, ObjectBuilder, Type},
    },
};

use crate::{SandboxId, whole};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxStatus {
    /// Accepted; no host works on it yet.
    Pending,
    /// A host is booting it.
    Starting,
    /// Code can run in it.
    Running,
    /// A host is removing it.
    Stopping,
    /// Gone; kept for the record.
    Stopped,
    /// Its host cannot be reached.
    Missing,
    /// It failed; `error` says why. Delete it.
    Error,
}

impl SandboxStatus {
    /// The status as it stands in responses and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Missing => "missing",
            Self::Error => "error",
        }
    }
}

impl std::str::FromStr for SandboxStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::Pending,
            Self::Starting,
            Self::Running,
            Self::Stopping,
            Self::Stopped,
            Self::Missing,
            Self::Error,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or(())
    }
}

/// One sandbox.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// `sb` and 25 base-36 digits.
    #[schema(value_type = String, pattern = "^sb[0-9a-z]{25}$")]
    pub id: SandboxId,
    /// Where it is in its life.
    pub status: SandboxStatus,
    /// The template that it started from.
    pub template: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Size of the root file system in MiB.
    pub disk_size_mb: u32,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it became ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When its status last changed.
    pub last_updated: DateTime<Utc>,
    /// Versions of kernel, VMM, agent and envd; what each step of its creation took.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Why it failed, with status `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::ErrorDetail>,
}

/// A request for a sandbox. Every field has a default; `{}` is a valid request.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// The template to start from. Default: `minimal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$")]
    pub template: Option<String>,
    /// Virtual CPUs. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::optional")]
    #[schema(minimum = 1, maximum = 64)]
    pub vcpus: Option<u32>,
    /// Memory in MiB. Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::optional")]
    #[schema(minimum = 128, maximum = 1_048_576)]
    pub memory_mb: Option<u32>,
    /// Size of the root file system in MiB. Default: 5120.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::optional")]
    #[schema(minimum = 512, maximum = 1_048_576)]
    pub disk_size_mb: Option<u32>,
    /// Environment of every process in the sandbox: at most 1024 variables, 128 KiB each and 1 MiB in all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = environment)]
    pub envs: BTreeMap<String, String>,
}

/// Text without NUL, which no kernel takes.
fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[^\\x00]*$"))
}

fn environment() -> impl Into<RefOr<Schema>> {
    let names = text().pattern(Some("^[^\\x00=]+$")).max_length(Some(255)).build();
    ObjectBuilder::new()
        .property_names(Some(names))
        .additional_properties(Some(RefOr::T(Schema::from(text().build()))))
        .max_properties(Some(1024))
        .build()
}

fn arguments() -> impl Into<RefOr<Schema>> {
    ArrayBuilder::new().items(text().build()).max_items(Some(4096)).build()
}

/// A command to run to its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, found in `PATH`; no shell is involved.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub cmd: String,
    /// Its arguments: at most 4096, 128 KiB each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = arguments)]
    pub args: Vec<String>,
    /// Environment variables on top of the sandbox's, within the same bounds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = environment)]
    pub envs: BTreeMap<String, String>,
    /// Working directory. Default: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096, pattern = "^[^\\x00]*$")]
    pub cwd: Option<String>,
    /// The user to run as. Default: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256, pattern = "^[^\\x00]*$")]
    pub user: Option<String>,
    /// Seconds after which the command's process group is killed. Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::optional")]
    #[schema(minimum = 1, maximum = 86_400)]
    pub timeout_sec: Option<u32>,
}

/// How `stdout` and `stderr` are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Encoding {
    /// As text.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Both as base 64, because one of them is not UTF-8.
    #[serde(rename = "base64")]
    Base64,
}

/// What a command did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// The sandbox it ran in.
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    /// The program.
    pub cmd: String,
    /// Standard output, in `encoding`.
    pub stdout: String,
    /// Standard error, in `encoding`.
    pub stderr: String,
    /// The exit status; 128 + N when signal N ended it.
    pub exit_code: i32,
    /// Whether it was killed because its time was over; the output is what came until then.
    pub timed_out: bool,
    /// Whether output beyond the limit was dropped.
    pub truncated: bool,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// How the output is written.
    pub encoding: Encoding,
}

/// A file to read.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Absolute, or relative to the default user's home; at most 4096 characters.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$")]
    pub path: String,
}

/// The state of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `degraded`.
    pub status: String,
    /// The version of the control plane.
    pub version: String,
    /// Hosts that are online; without any no sandbox can be created.
    pub hosts_online: u32,
}
