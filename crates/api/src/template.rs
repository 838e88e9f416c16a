// SPDX-License-Identifier: Apache-2.0
//! Templates: what sandboxes are created from.

use std::{collections::BTreeMap, ops::Not};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::BuildId;

/// Kind of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateKind {
    /// An image. Sandboxes boot from it, or go on from its memory, and choose their sizes.
    Base,
    /// A snapshot. Sandboxes go on where it was made, and have its sizes.
    Snapshot,
}

/// A template. Its name is the `template` of a create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "web", "kind": "base", "version": 3, "tags": {"latest": 3, "stable": 2},
    "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Template {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: TemplateKind,
    /// Whether it is one of the platform, which all teams can use.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub platform: bool,
    /// Version that `latest` leads to, or the newest one if there is no such tag. Only templates that were built from a recipe
    /// have versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Tags, each with the version that it leads to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, u32>,
    /// Number of virtual CPUs that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// When the snapshot or the version was made; absent for a template without versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<DateTime<Utc>>,
}

/// A version of a template that the team has built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "web", "version": 3, "kind": "base", "tags": ["latest"],
    "build_id": "bd03halx8fdhw2fu3txwbd0kdw0", "cache_key": "3b0c6b6f4a5c", "size_mb": 912, "envs": {"PORT": "8080"},
    "user": "www-data", "workdir": "/srv", "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct TemplateVersion {
    /// Name of the template.
    pub name: String,
    /// Its number, from 1.
    pub version: u32,
    /// Its kind: a snapshot if its recipe has a `START`, else an image.
    pub kind: TemplateKind,
    /// Tags that lead to it.
    pub tags: Vec<String>,
    /// Build that made it.
    #[schema(value_type = String, pattern = "^bd[0-9a-e][0-9a-z]{24}$")]
    pub build_id: BuildId,
    /// Hash of all that it was made of: versions with the same one are the same.
    pub cache_key: String,
    /// Size of the smallest disk that a sandbox from it can have, in MiB.
    pub size_mb: u64,
    /// Number of virtual CPUs that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Size of the disk in MiB that sandboxes from a snapshot have; those from an image choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u32>,
    /// Environment of sandboxes from it, to which a create can add.
    pub envs: BTreeMap<String, String>,
    /// Default user of commands.
    pub user: String,
    /// Directory of commands that name none.
    pub workdir: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// What was removed from the cache of builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"results": 12, "bytes": 734_003_200}))]
pub struct PrunedCache {
    /// Number of results of steps.
    pub results: u64,
    /// Bytes that these steps had added to disks, as far as that is known.
    pub bytes: u64,
}

/// Where a tag is to lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"version": 2}))]
#[serde(deny_unknown_fields)]
pub struct MoveTag {
    /// Number of a version of the template.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    pub version: u32,
}

/// Deserializes a whole number as JSON Schema defines it: `2.0` is one too. Its bounds are compared later.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
        return Ok(number as u32);
    }
    Err(de::Error::custom(format_args!("version is {number}: it must be a whole number, 1 to 2147483647")))
}

#[cfg(test)]
mod tests {
    use super::MoveTag;

    #[test]
    fn a_version_is_a_whole_number() {
        let read = |text: &str| serde_json::from_str(text).map(|MoveTag { version }| version);
        assert_eq!(read(r#"{"version": 2}"#).ok(), Some(2));
        assert_eq!(read(r#"{"version": 2.0}"#).ok(), Some(2));
        assert_eq!(read(r#"{"version": 4294967295}"#).ok(), Some(u32::MAX));
        for version in ["-1", "2.5", "4294967296", "1e300", "\"2\"", "null", "true", "[2]"] {
            assert!(read(&format!(r#"{{"version": {version}}}"#)).is_err(), "{version}");
        }
        assert!(read("{}").is_err() && read(r#"{"version": 1, "force": true}"#).is_err());
    }
}
