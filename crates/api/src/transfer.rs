// SPDX-License-Identifier: Apache-2.0
//! Content of files: what was written, what is copied, changed, watched and signed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ErrorCode, integer};

/// What was written, said when it is complete and can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"size": 6, "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"}))]
pub struct WrittenFile {
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

/// What was unpacked, said when it is complete and can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "entries": 3, "size": 3072, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
}))]
pub struct WrittenArchive {
    /// Number of entries of the archive.
    pub entries: u64,
    /// Size of the archive in bytes.
    pub size: u64,
    /// SHA-256 of the archive, in hexadecimal digits.
    pub sha256: String,
}

/// What to copy, and where.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"source": "a.txt", "destination": "dir/b.txt"}))]
#[serde(deny_unknown_fields)]
pub struct CopyFile {
    /// Path of the file or directory.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub source: String,
    /// Path of the copy, and not the directory for it. Missing parents are created; what is there is not replaced.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub destination: String,
    /// The user whom the copy belongs to, and from whose home directory relative paths begin. Default: the template's default
    /// user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub user: Option<String>,
}

/// What to change of an entry: at least one of `mode`, `owner` and `group`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "run.sh", "mode": "0755"}))]
#[serde(deny_unknown_fields)]
pub struct ChangeFile {
    /// Path of the entry: absolute, or relative to a home directory. A symbolic link is followed.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$")]
    pub path: String,
    /// Permission bits, in octal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// The owner, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub owner: Option<String>,
    /// The group, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub group: Option<String>,
    /// Whether to include all that is below a directory. Symbolic links there keep their mode, and are not followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
    /// The user from whose home directory a relative path begins. Default: the template's default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub user: Option<String>,
}

/// What a signed URL allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileOperation {
    /// To read the file, with `GET`.
    Read,
    /// To write the file, with `PUT`.
    Write,
}

/// The URL to sign.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "report.pdf", "operation": "read", "expires_in_sec": 600}))]
#[serde(deny_unknown_fields)]
pub struct SignFile {
    /// Path of the file: absolute, or relative to a home directory.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$")]
    pub path: String,
    /// What the URL allows.
    pub operation: FileOperation,
    /// Number of seconds for which it does, 1 to 604800 (a week). Default: 3600.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::expires_in_sec")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub expires_in_sec: Option<u32>,
    /// The user whom a new file belongs to, and from whose home directory a relative path begins. Default: the template's
    /// default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256, pattern = "^[^\\x00]+$")]
    pub user: Option<String>,
}

/// A URL that whoever has it can use without an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "method": "GET",
    "url": "/v1/sandboxes/sb03halx8fdhw2fu3txwbd0kdw0/files/content?path=report.pdf&expires=1764245400&key=1&signature=0a1b",
    "expires_at": "2025-11-27T12:10:00Z"
}))]
pub struct SignedFile {
    /// Method of the request to make.
    pub method: String,
    /// Path and query, for the address at which this API is reached.
    pub url: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// A frame of `watchFiles`: JSON text. `name` is a path relative to the directory, which is `.` itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "create", "name": "src/main.rs"}))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FileWatchFrame {
    /// The directory is watched from now on. This is the first frame.
    Start,
    /// An entry was made, or moved here.
    Create {
        /// Which one.
        name: String,
    },
    /// The content of a file was changed.
    Write {
        /// Which one.
        name: String,
    },
    /// An entry was removed.
    Remove {
        /// Which one.
        name: String,
    },
    /// An entry was moved away from this name.
    Rename {
        /// Its former name.
        name: String,
    },
    /// Mode, owner or times of an entry were changed.
    Chmod {
        /// Which one.
        name: String,
    },
    /// There were more changes than were read, and some are not told: list the directory anew. Those after this are complete
    /// again.
    Overflow,
    /// The directory is not watched any more. This is the last frame.
    Error {
        /// Why, and what to do.
        data: String,
        /// What kind of error.
        code: ErrorCode,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_have_a_type_and_what_it_needs() {
        let text = |frame| serde_json::to_value(frame).expect("JSON");
        assert_eq!(text(FileWatchFrame::Start), json!({"type": "start"}));
        assert_eq!(text(FileWatchFrame::Create { name: "a".into() }), json!({"type": "create", "name": "a"}));
        let error = FileWatchFrame::Error { data: "x".into(), code: ErrorCode::InvalidState };
        assert_eq!(text(error), json!({"type": "error", "data": "x", "code": "invalid_state"}));
    }
}
