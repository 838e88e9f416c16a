// SPDX-License-Identifier: Apache-2.0
//! Entries of a sandbox's file system: list, stat, make directories, move and remove.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::integer;

/// The directory to list.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/etc", "depth": 1}))]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// Path of the directory: absolute, or relative to the home directory of the template's default user.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub path: String,
    /// How many levels to list, 0 to 64. Default: 1, the directory's own entries; 0 is the same.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::depth")]
    #[schema(minimum = 0, maximum = 64)]
    pub depth: Option<u32>,
}

/// An entry to describe or remove, or a directory to make.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "project/src"}))]
#[serde(deny_unknown_fields)]
pub struct EntryPath {
    /// Path of the entry: absolute, or relative to a home directory.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub path: String,
    /// The user from whose home directory a relative path begins, and whom what is made belongs to. Default: the template's
    /// default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub user: Option<String>,
}

/// What to move, and where.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"source": "a.txt", "destination": "dir/b.txt"}))]
#[serde(deny_unknown_fields)]
pub struct MoveFile {
    /// Path of the file or directory.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub source: String,
    /// Its new path, and not the directory for it. Missing parents are created; a file that is there is replaced.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub destination: String,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file, or a device, a socket or a pipe.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to nothing.
    Symlink,
}

/// An entry of a file system. For a symbolic link, `type` and `mode` are those of what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "name": "hello.txt", "path": "/root/hello.txt", "type": "file", "size": 6, "mode": 420, "permissions": "-rw-r--r--",
    "owner": "root", "group": "root", "modified_at": 1_764_244_800
}))]
pub struct FileEntry {
    /// Name in its directory.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits as a number: 420 is 0644.
    pub mode: u32,
    /// Permissions of the entry itself as text.
    pub permissions: String,
    /// Name of its owner, or the number if it has none.
    pub owner: String,
    /// Name of its group, or the number if it has none.
    pub group: String,
    /// When its content was last changed, in seconds since 1970.
    pub modified_at: i64,
    /// Where a symbolic link leads: an absolute path; its own if it leads to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub symlink_target: Option<String>,
}

/// Entries of a directory, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"entries": [{
    "name": "hello.txt", "path": "/root/hello.txt", "type": "file", "size": 6, "mode": 420, "permissions": "-rw-r--r--",
    "owner": "root", "group": "root", "modified_at": 1_764_244_800
}]}))]
pub struct FileEntries {
    /// The entries.
    pub entries: Vec<FileEntry>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"entry": {
    "name": "hello.txt", "path": "/root/hello.txt", "type": "file", "size": 6, "mode": 420, "permissions": "-rw-r--r--",
    "owner": "root", "group": "root", "modified_at": 1_764_244_800
}}))]
pub struct OneEntry {
    /// The entry.
    pub entry: FileEntry,
}
