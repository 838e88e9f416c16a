// SPDX-License-Identifier: Apache-2.0
//! Builds of templates from recipes.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use crate::{BuildId, RegistryAccount, SandboxId, integer};

/// The template to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "web", "recipe": "FROM minimal\nRUN apt-get install -y nginx\n"}))]
#[serde(deny_unknown_fields)]
pub struct CreateBuild {
    /// Name of the template, and after a colon the tag that its new version gets. Default of the tag: `latest`.
    #[schema(pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63})?$")]
    pub name: String,
    /// The recipe.
    #[schema(max_length = 262_144)]
    pub recipe: String,
    /// Number of virtual CPUs of the build, and of sandboxes from a template with memory. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::vcpus")]
    #[schema(minimum = 1, maximum = 64)]
    pub vcpus: Option<u32>,
    /// Memory in MiB of the build, and of sandboxes from a template with memory. Default: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::memory_mb")]
    #[schema(minimum = 128, maximum = 1_048_576)]
    pub memory_mb: Option<u32>,
    /// Size of the disk in MiB. Default: 5120.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::disk_size_mb")]
    #[schema(minimum = 512, maximum = 1_048_576)]
    pub disk_size_mb: Option<u32>,
    /// Number of the first step that is done again even if its result is in the cache, from 1. Default: none is.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::no_cache_from")]
    #[schema(minimum = 1, maximum = 1000)]
    pub no_cache_from: Option<u32>,
    /// Account of the registry, if the recipe starts from an image of one. It is kept until the build has ended, and shown to
    /// nobody. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryAccount>,
    /// Values of the secrets of its steps.
    #[serde(default, skip_serializing_if = "BuildSecrets::is_empty")]
    #[schema(schema_with = secrets)]
    pub secrets: BuildSecrets,
}

/// Values of secrets by their ids.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildSecrets(pub BTreeMap<String, String>);

impl BuildSecrets {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// By hand: what is printed must not have the values.
impl fmt::Debug for BuildSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Secrets of a build. `schema_with` drops the field's doc comment, so the description is here.
fn secrets() -> impl Into<RefOr<Schema>> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let ids = text().pattern(Some("^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}$")).build();
    let value = text().pattern(Some("^[^\\x00]*$")).min_length(Some(4)).max_length(Some(65_536)).build();
    ObjectBuilder::new()
        .description(Some(
            "Values of the secrets that the steps of the recipe name with `RUN --secret`, by their ids: 4 bytes to 64 KiB each, and \
             512 KiB in total. They are kept until the build has ended, and shown to nobody; in the log `***` stands for them. \
             Default: none.",
        ))
        .property_names(Some(ids))
        .additional_properties(Some(RefOr::T(Schema::from(value))))
        .max_properties(Some(32))
        .build()
}

/// What is known of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "bd03halx8fdhw2fu3txwbd0kdw0", "name": "web", "tag": "latest", "status": "succeeded", "attempt": 1,
    "version": 3, "steps": [], "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Build {
    /// Its id.
    #[schema(value_type = String, pattern = "^bd[0-9a-e][0-9a-z]{24}$")]
    pub id: BuildId,
    /// Name of the template.
    pub name: String,
    /// Tag that the version gets.
    pub tag: String,
    /// Its status.
    pub status: BuildStatus,
    /// How often a worker has begun it: it goes on elsewhere if its worker dies.
    pub attempt: u32,
    /// Steps of the recipe.
    pub steps: Vec<BuildStep>,
    /// Version of the template that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildError>,
    /// Sandbox in which it runs; after a failure it stays for some minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^sb[0-9a-e][0-9a-z]{24}$")]
    pub sandbox_id: Option<SandboxId>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When a worker first began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
}

/// Status of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// It waits for a worker.
    Pending,
    /// A worker builds.
    Running,
    /// The template has a new version.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"number": 2, "line": 2, "instruction": "RUN apt-get install -y nginx", "status": "succeeded",
    "cache_key": "3b0c6b6f4a5c", "miss": "nothing was built with this step before", "bytes_added": 61_865_984,
    "duration_ms": 8213, "exit_code": 0}))]
pub struct BuildStep {
    /// Its number, from 1.
    pub number: u32,
    /// Line of the recipe that it begins in, from 1; 0 if the recipe does not have it.
    pub line: u32,
    /// What it says, at most 400 characters.
    pub instruction: String,
    /// Its status.
    pub status: BuildStepStatus,
    /// Key of its result in the cache: a hash of all that the result depends on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
    /// Why its result was not taken from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<String>,
    /// Bytes that its result added to the disk, also if it came from the cache; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_added: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Exit status of its command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Status of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStepStatus {
    /// It was not begun.
    Pending,
    /// It is being done.
    Running,
    /// Its result came from the cache.
    Cached,
    /// It was done.
    Succeeded,
    /// It failed, and the build with it.
    Failed,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"code": "build_failed", "message": "step 2 (line 2) ended with 100", "step": 2}))]
pub struct BuildError {
    /// Stable code.
    pub code: String,
    /// Cause and remedy.
    pub message: String,
    /// Number of the step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
}

/// An entry of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"offset": 17, "step": 2, "stream": "stdout", "text": "Setting up nginx\n",
    "at": "2026-01-31T09:30:00.000000Z"}))]
pub struct BuildLogEntry {
    /// Its place in the log; later entries have larger ones.
    pub offset: i64,
    /// Number of the step; 0 for what concerns the whole build.
    pub step: u32,
    /// Where it comes from.
    pub stream: BuildStream,
    /// The text: a piece of output, which need not be whole lines, or a message.
    pub text: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// Where an entry of a build's log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStream {
    /// Standard output of a step's command.
    Stdout,
    /// Standard error of a step's command.
    Stderr,
    /// The builder itself.
    System,
}

impl BuildStatus {
    /// The status as it stands in requests and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether it does not change any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for BuildStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
