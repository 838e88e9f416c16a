// SPDX-License-Identifier: Apache-2.0
//! Templates: what sandboxes are created from.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kind of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateKind {
    /// An image of the platform, which all teams can use. Sandboxes boot from it, or go on from its memory.
    Base,
    /// A snapshot of the team.
    Snapshot,
}

/// A template. Its name is the `template` of a create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "minimal", "kind": "base"}))]
pub struct Template {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: TemplateKind,
    /// Number of virtual CPUs that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// When a snapshot was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<DateTime<Utc>>,
}
