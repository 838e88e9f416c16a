// SPDX-License-Identifier: Apache-2.0
//! Sandboxes, commands and files.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type},
    },
};

use crate::{KilledProcess, OutOfMemory, RegistryAccount, SandboxId, SandboxImage, integer};

/// The status of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxStatus {
    /// The request was accepted; no host works on it yet.
    Pending,
    /// A host boots the sandbox.
    Starting,
    /// The sandbox can run code.
    Running,
    /// A host writes the memory of the sandbox to its disk.
    Pausing,
    /// The sandbox is paused: it has its disk and its memory, and uses nothing else. Resume it. If its memory was lost or cannot
    /// be used, `error` says so.
    Paused,
    /// A host lets the sandbox go on.
    Resuming,
    /// A host deletes the sandbox.
    Stopping,
    /// The sandbox was deleted; its record is kept.
    Stopped,
    /// The host of the sandbox does not respond. The sandbox comes back with its host.
    Missing,
    /// The sandbox failed; `error` has the reason. If it has been running, its disk is kept: resume it with
    /// `"memory": false`, which boots it from there. Or delete it.
    Error,
}

impl SandboxStatus {
    /// Every status.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Stopped,
        Self::Missing,
        Self::Error,
    ];

    /// The status as it stands in responses and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
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
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(())
    }
}

/// What becomes of a sandbox that was idle for its timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is paused.
    #[default]
    Pause,
    /// It is deleted with its disk.
    Delete,
}

impl OnTimeout {
    /// The value as it stands in requests, responses and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Delete => "delete",
        }
    }
}

impl std::str::FromStr for OnTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Pause, Self::Delete];
        let found = all.into_iter().find(|value| value.as_str() == text);
        found.ok_or_else(|| "write pause or delete".to_owned())
    }
}

/// A sandbox.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "sb03halx8fdhw2fu3txwbd0kdw0",
    "name": "web",
    "labels": {"branch": "main"},
    "status": "running",
    "template": "minimal",
    "vcpus": 1,
    "memory_mb": 512,
    "disk_size_mb": 5120,
    "timeout_sec": 600,
    "on_timeout": "pause",
    "auto_resume": false,
    "public_ports": false,
    "created_at": "2026-01-31T09:30:00.000000Z",
    "started_at": "2026-01-31T09:30:02.500000Z",
    "last_active_at": "2026-01-31T09:31:10.000000Z",
    "expires_at": "2026-01-31T09:41:10.000000Z",
    "last_updated": "2026-01-31T09:30:02.500000Z",
    "metadata": {"agent_version": "0.1.0", "vmm": "firecracker 1.12.0"}
}))]
pub struct Sandbox {
    /// The id: `sb` and 25 digits or lower-case letters.
    #[schema(value_type = String, pattern = "^sb[0-9a-z]{25}$")]
    pub id: SandboxId,
    /// The name; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
    /// The labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The status.
    pub status: SandboxStatus,
    /// The template that the sandbox was created from, or the reference of its image.
    pub template: String,
    /// The image of a registry that it was created from; absent if it is from a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<SandboxImage>,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Size of the disk in MiB.
    pub disk_size_mb: u32,
    /// Seconds without activity after which it is paused or deleted; 0: never.
    #[serde(default)]
    pub timeout_sec: u32,
    /// What becomes of it then.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// Whether a command, a file request or a request to a port resumes it when it is paused.
    #[serde(default)]
    pub auto_resume: bool,
    /// Whether everybody may use its ports through the proxy; otherwise who has its traffic token.
    #[serde(default)]
    pub public_ports: bool,
    /// When the request to create it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it became `running`; absent before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last used: started, resumed, pinged, or a command or a file request was in work; absent before it ran.
    /// Without a timeout, commands and file requests are not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<DateTime<Utc>>,
    /// When it will be paused or deleted if it is not used before; absent if it does not run or has no timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the status last changed.
    pub last_updated: DateTime<Utc>,
    /// Information about how the sandbox was created: `agent_version`, `vmm` (name and version), and the duration of each
    /// step in milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The last process in it that was killed for want of memory; absent if none was, or none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_out_of_memory: Option<OutOfMemory>,
    /// Why the sandbox failed; of a paused one, why its memory was lost or cannot be used; of a running one, why it could not be
    /// paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::ErrorDetail>,
}

/// The sandbox to create. Every field has a default, so `{}` is a valid request. A host may allow less than the maximum
/// of a field; by default it allows 16 virtual CPUs, 64 GiB of memory and 128 GiB of disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"template": "minimal", "vcpus": 1, "memory_mb": 512, "disk_size_mb": 5120, "envs": {"GREETING": "hello"}}))]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// Name of the template or snapshot to create the sandbox from; of a template that the team has built also `NAME:TAG`,
    /// whose default is `NAME:latest`. Default: `minimal`. A sandbox from a snapshot has its virtual CPUs, memory and disk,
    /// so these are left out or equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63})?$")]
    pub template: Option<String>,
    /// Image to create the sandbox from, instead of a template: one of a registry, `debian:bookworm`,
    /// `registry.example.com/team/app:1.2`, `…@sha256:…`, or one that the team has uploaded, `uploaded:NAME[:TAG]`. It is made for the host's processor. A host that does not have it imports
    /// it first, which may take minutes. Environment, user and directory of the image are those of the sandbox; its program is not
    /// started. Without `disk_size_mb` the disk has 5120 MiB, or 1024 MiB more than the image. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 520, pattern = "^[a-zA-Z0-9][a-zA-Z0-9._:@/-]*$")]
    pub image: Option<String>,
    /// Account of the image's registry, only with `image`. It is used for this request, and not kept. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryAccount>,
    /// Number of virtual CPUs, 1 to 64. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::vcpus")]
    #[schema(minimum = 1, maximum = 64)]
    pub vcpus: Option<u32>,
    /// Memory in MiB, 128 to 1048576 (1 TiB). Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::memory_mb")]
    #[schema(minimum = 128, maximum = 1_048_576)]
    pub memory_mb: Option<u32>,
    /// Size of the disk in MiB, 512 to 1048576 (1 TiB). Default: 5120.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::disk_size_mb")]
    #[schema(minimum = 512, maximum = 1_048_576)]
    pub disk_size_mb: Option<u32>,
    /// Environment variables of every process in the sandbox: at most 1024, less than 128 KiB each and 1 MiB in total.
    /// Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = environment)]
    pub envs: BTreeMap<String, String>,
    /// Name of the sandbox, by which it can be referred to instead of by its id: a label of DNS, and no id. No other sandbox
    /// of the team has it until this one is deleted. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = new_name)]
    pub name: Option<String>,
    /// Labels to find it by: at most 32. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = new_labels)]
    pub labels: BTreeMap<String, String>,
    /// Seconds without activity after which the sandbox is paused or deleted, at most 31536000 (a year). 0: never. Default: 0.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::sandbox_timeout_sec"
    )]
    #[schema(minimum = 0, maximum = 31_536_000)]
    pub timeout_sec: Option<u32>,
    /// What becomes of the sandbox after `timeout_sec` without activity. Default: `pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
    /// Whether a command, a file request or a request to a port of the sandbox resumes it when it is paused, and is then
    /// served. Default: false, such a request is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Whether everybody may use its ports through the proxy. Default: false, only who has its traffic token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ports: Option<bool>,
}

/// How to resume a sandbox. Every field has a default, so `{}` is a valid request, and so is no body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"timeout_sec": 600, "memory": true}))]
#[serde(deny_unknown_fields)]
pub struct ResumeSandbox {
    /// New timeout of the sandbox, as in the request that creates it. Default: it stays as it is.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::sandbox_timeout_sec"
    )]
    #[schema(minimum = 0, maximum = 31_536_000)]
    pub timeout_sec: Option<u32>,
    /// `false` boots the sandbox from its disk instead of letting it go on from its memory: the way back for one whose
    /// memory was lost, or that has failed. What was only in its memory is gone then. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// How to pause a sandbox. There is nothing to choose, so the body is `{}`, or there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({}))]
#[serde(deny_unknown_fields)]
pub struct PauseSandbox {}

/// How to note that a sandbox is in use. There is nothing to choose, so the body is `{}`, or there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({}))]
#[serde(deny_unknown_fields)]
pub struct PingSandbox {}

/// What to change of a sandbox; what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"timeout_sec": 600, "labels": {"branch": "main", "reviewed": null}}))]
#[serde(deny_unknown_fields)]
pub struct UpdateSandbox {
    /// New name of the sandbox, as in the request that creates it; empty to take its name away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = changed_name)]
    pub name: Option<String>,
    /// Labels to add or to change; `null` removes one. The others stay. It has at most 32 then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = changed_labels)]
    pub labels: BTreeMap<String, Option<String>>,
    /// New timeout of the sandbox, as in the request that creates it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::sandbox_timeout_sec"
    )]
    #[schema(minimum = 0, maximum = 31_536_000)]
    pub timeout_sec: Option<u32>,
    /// New `on_timeout` of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
    /// Whether a command, a file request or a request to a port resumes the sandbox when it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Whether everybody may use its ports through the proxy; a change takes a few seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_ports: Option<bool>,
}

fn name(description: &str, pattern: &str) -> RefOr<Schema> {
    let name = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]));
    RefOr::T(name.description(Some(description)).pattern(Some(pattern)).max_length(Some(63)).build().into())
}

/// Name of a new sandbox. `schema_with` drops the field's doc comment, so the description is here.
fn new_name() -> RefOr<Schema> {
    let description = "Name of the sandbox, by which it can be referred to instead of by its id: a label of DNS, and no id. \
                       No other sandbox of the team has it until this one is deleted. Default: none.";
    name(description, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
}

/// New name of a sandbox, or none.
fn changed_name() -> RefOr<Schema> {
    let description =
        "New name of the sandbox, as in the request that creates it; empty to take its name away.";
    name(description, "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")
}

fn labels(description: &str, values: SchemaType) -> RefOr<Schema> {
    let name = ObjectBuilder::new().schema_type(Type::String).max_length(Some(63));
    let name = name.pattern(Some("^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")).build();
    let value = ObjectBuilder::new().schema_type(values).max_length(Some(256));
    let value = value.pattern(Some("^[^\\x00-\\x1f\\x7f-\\x9f]*$")).build();
    let labels = ObjectBuilder::new().description(Some(description)).property_names(Some(name));
    let labels = labels.additional_properties(Some(RefOr::T(Schema::from(value))));
    RefOr::T(labels.max_properties(Some(32)).build().into())
}

/// A label that sandboxes of a list have: `NAME=VALUE`, or `NAME` for any value.
#[derive(Debug)]
pub struct LabelFilter;

impl PartialSchema for LabelFilter {
    fn schema() -> RefOr<Schema> {
        let label = "^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?(=[^\\x00-\\x1f\\x7f-\\x9f]{0,256})?$";
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(label)).into()
    }
}

impl ToSchema for LabelFilter {}

/// Labels of a new sandbox.
fn new_labels() -> RefOr<Schema> {
    labels("Labels to find it by: at most 32. Default: none.", Type::String.into())
}

/// Labels to change.
fn changed_labels() -> RefOr<Schema> {
    let description =
        "Labels to add or to change; `null` removes one. The others stay. It has at most 32 then.";
    labels(description, SchemaType::from_iter([Type::String, Type::Null]))
}

/// Text without NUL, which the kernel does not accept in arguments and environments.
fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[^\\x00]*$"))
}

/// Environment variables. `schema_with` drops the field's doc comment, so the description is here.
pub(crate) fn environment() -> impl Into<RefOr<Schema>> {
    let names = text().pattern(Some("^[^\\x00=]+$")).max_length(Some(255)).build();
    ObjectBuilder::new()
        .description(Some(
            "Environment variables: at most 1024, less than 128 KiB each and 1 MiB in total. Those of a command are added \
             to those of its sandbox. Default: none.",
        ))
        .property_names(Some(names))
        .additional_properties(Some(RefOr::T(Schema::from(text().build()))))
        .max_properties(Some(1024))
        .build()
}

/// Arguments of a command; with a description for the same reason.
pub(crate) fn arguments() -> impl Into<RefOr<Schema>> {
    let description = "Arguments of the program: at most 4096, less than 128 KiB each. Default: none.";
    ArrayBuilder::new().description(Some(description)).items(text().build()).max_items(Some(4096)).build()
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cmd": "python3", "args": ["-c", "print(6*7)"], "timeout_sec": 60}))]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, found in `PATH` or given as a path; no shell is involved.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub cmd: String,
    /// Arguments of the program: at most 4096, less than 128 KiB each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = arguments)]
    pub args: Vec<String>,
    /// Environment variables in addition to the sandbox's, with the same limits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = environment)]
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
    /// Seconds after which the command and its descendants are killed, 1 to 86400 (a day). Default: 30; in the background: none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::command_timeout_sec"
    )]
    #[schema(minimum = 1, maximum = 86_400)]
    pub timeout_sec: Option<u32>,
    /// Whether to start the command and answer at once with 202. It runs on without a reader; the last MiB of its output is
    /// kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Name of the process in lists and for `processes/{selector}`: not only digits, and unique among the running processes of
    /// the sandbox. Default in the background: `proc-` and 8 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*$")]
    pub tag: Option<String>,
    /// In the background: whether standard input stays open, for input over `processes/{selector}/stream`; else it is empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
}

/// How `stdout` and `stderr` are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Encoding {
    /// Both are text.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Both are encoded as base 64, because at least one of them is not valid UTF-8, or because it is large and JSON would
    /// escape most of it.
    #[serde(rename = "base64")]
    Base64,
}

/// The result of a command.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0",
    "cmd": "python3",
    "stdout": "42\n",
    "stderr": "",
    "exit_code": 0,
    "timed_out": false,
    "truncated": false,
    "lost_bytes": 0,
    "out_of_memory": false,
    "duration_ms": 62,
    "encoding": "utf-8"
}))]
pub struct ExecResponse {
    /// The sandbox that the command ran in.
    #[schema(value_type = String)]
    pub sandbox_id: SandboxId,
    /// The program, as in the request.
    pub cmd: String,
    /// Standard output, encoded as `encoding` says; at most 16 MiB unless configured otherwise.
    pub stdout: String,
    /// Standard error, encoded as `encoding` says; at most 16 MiB unless configured otherwise.
    pub stderr: String,
    /// The exit status; 128 + N if signal N ended the command.
    pub exit_code: i32,
    /// Whether the command was killed because it ran longer than `timeout_sec`; the output is what it wrote until then.
    pub timed_out: bool,
    /// Whether output is missing because it was larger than the limit.
    pub truncated: bool,
    /// How many bytes of both outputs together are missing.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Whether the kernel killed the command or a descendant because the sandbox ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Which one; absent if none was, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub killed: Option<KilledProcess>,
    /// How long the command ran, in milliseconds.
    pub duration_ms: u64,
    /// How the output is encoded.
    pub encoding: Encoding,
}

/// The file to read.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/etc/debian_version"}))]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Path of the file: absolute, or relative to the home directory of the template's default user. 1 to 4096 characters.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$")]
    pub path: String,
}

/// A VMM driver in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriverHealth {
    /// Name of the driver: `firecracker` or `qemu`.
    #[schema(example = "firecracker")]
    pub driver: String,
    /// Whether it keeps untrusted code from the host; emulation does not.
    pub security_boundary: bool,
    /// Number of online hosts that use it.
    pub hosts: u32,
}

/// The health of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok", "version": "0.1.0", "hosts_online": 1,
    "drivers": [{"driver": "firecracker", "security_boundary": true, "hosts": 1}], "max_upload_bytes": 104_857_600}))]
pub struct Health {
    /// `ok`, or `degraded` if PostgreSQL or Redis cannot be reached.
    pub status: String,
    /// Version of the control plane.
    pub version: String,
    /// Number of hosts that are online; without one no sandbox can be created.
    pub hosts_online: u32,
    /// VMM drivers of these hosts. `wrenn status` on a host tells why its agent uses this one.
    #[serde(default)]
    pub drivers: Vec<DriverHealth>,
    /// Maximum size of an uploaded file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_upload_bytes: Option<u64>,
}
