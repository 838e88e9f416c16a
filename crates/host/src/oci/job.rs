// SPDX-License-Identifier: Apache-2.0
//! What the agent and the process that unpacks an image tell each other, as JSON.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use wrenn_oci::Digest;

/// What the process is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Layers, the lowest first, in the order of the open files with their blobs.
    pub(super) layers: Vec<LayerOf>,
    /// Maximum number of bytes of all layers when they are uncompressed.
    pub(super) bytes: u64,
    /// Maximum number of entries of all layers.
    pub(super) entries: u64,
    /// User of the image's program, as its configuration says.
    pub(super) user: String,
    /// Absolute path of the directory in which the program starts.
    pub(super) workdir: String,
    /// UUID of the file system.
    pub(super) uuid: String,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerOf {
    /// Digest of its blob.
    pub(super) digest: Digest,
    /// Digest of its uncompressed content.
    pub(super) diff_id: Digest,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The file system is made.
    Made(Made),
    /// There is none.
    Failed(Failure),
}

/// A file system that was made of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// Name of the user, or its number if it has none, and after a colon the group if the image names one.
    pub(super) user: String,
    /// Number of entries and attributes of the layers that were left out.
    pub(super) skipped: u64,
    /// The first of them, and why.
    pub(super) first_skipped: Vec<String>,
}

/// Why no file system was made of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// What is to blame.
    pub(super) kind: Kind,
    /// The cause, and the remedy.
    pub(super) message: String,
}

/// What is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The image: its layers are not readable, or have what cannot be unpacked.
    Damaged,
    /// The image: it is larger than it may be.
    TooLarge,
    /// The host's disk is full.
    Full,
    /// The host.
    Host,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}
