// SPDX-License-Identifier: Apache-2.0
//! The manifest of an artifact in the store: the beginning and the end of what its host has sent, and its chunks, each of which is
//! an object. It is written last, so that an artifact with a manifest is complete.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use buffa::Message as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wrenn_rpc::host::v1::{ArtifactChunk, ArtifactEnd, ArtifactHead};

use super::layout::Place;
use crate::template_store::{Store, StoreError, damaged};

/// Version of this format.
const FORMAT: u32 = 1;
/// Maximum size of a manifest, and of a chunk: 4 MiB and what is said of it.
const MANIFEST_MAX: u64 = 256 << 20;
const CHUNK_MAX: u64 = (4 << 20) + 4096;
/// Maximum number of chunks: those of 4 TiB.
const CHUNKS_MAX: usize = 1 << 20;

/// What an artifact in the store consists of.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) head: ArtifactHead,
    pub(super) end: ArtifactEnd,
    pub(super) chunks: Vec<Entry>,
}

/// A chunk in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Number of the file.
    file: i32,
    /// Number of the piece of the file.
    index: u64,
    /// SHA-256 of the piece, in hexadecimal digits.
    sha256: String,
    /// Size of the object.
    bytes: u64,
}

/// The form in which it is stored.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    /// Messages of `host.proto`, in base 64.
    head: String,
    end: String,
    chunks: Vec<Entry>,
}

impl Entry {
    /// Describes a chunk, and returns what its object has.
    pub(super) fn of(chunk: &ArtifactChunk) -> (Self, Bytes) {
        let object = Bytes::from(chunk.encode_to_vec());
        let sha256 = chunk.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let (file, bytes) = (chunk.file.to_i32(), object.len() as u64);
        (Self { file, index: chunk.index, sha256, bytes }, object)
    }

    /// Size of its object in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where its object is.
    pub(super) fn path(&self, place: &Place) -> object_store::path::Path {
        place.chunk(self.file, self.index, &self.sha256)
    }

    /// Reads the chunk. Whether its content is right is found out by the agent that gets it.
    pub(super) async fn read(&self, store: &Store, place: &Place) -> Result<ArtifactChunk, StoreError> {
        let path = self.path(place);
        let object = store.get(&path, CHUNK_MAX).await?;
        let chunk = ArtifactChunk::decode_from_slice(&object);
        chunk.map_err(|error| damaged(&path, format!("it cannot be decoded: {error}")))
    }

    fn is_possible(&self) -> bool {
        let is_digest = self.sha256.len() == 64 && self.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest && (0..=64).contains(&self.file) && self.bytes <= CHUNK_MAX
    }
}

impl Manifest {
    /// Reads the manifest of an artifact.
    pub(super) async fn read(store: &Store, place: &Place) -> Result<Self, StoreError> {
        let path = place.manifest();
        let object = store.get(&path, MANIFEST_MAX).await?;
        Self::decode(&object).map_err(|reason| damaged(&path, reason))
    }

    /// Writes the manifest, with which the artifact is complete.
    pub(super) async fn write(&self, store: &Store, place: &Place) -> Result<(), StoreError> {
        store.put(&place.manifest(), self.encode()).await
    }

    /// Sum of the sizes of all chunks in bytes.
    pub(super) fn size(&self) -> u64 {
        self.chunks.iter().map(Entry::bytes).sum()
    }

    fn encode(&self) -> Bytes {
        let written = Written {
            format: FORMAT,
            head: STANDARD.encode(self.head.encode_to_vec()),
            end: STANDARD.encode(self.end.encode_to_vec()),
            chunks: self.chunks.clone(),
        };
        serde_json::to_vec(&written).unwrap_or_default().into()
    }

    fn decode(object: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(object).map_err(|error| error.to_string())?;
        if written.format != FORMAT {
            return Err(format!("its format is {}, and this server reads {FORMAT}", written.format));
        }
        if written.chunks.len() > CHUNKS_MAX || !written.chunks.iter().all(Entry::is_possible) {
            return Err("its chunks are not possible".to_owned());
        }
        let message = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let head = ArtifactHead::decode_from_slice(&message(&written.head)?);
        let end = ArtifactEnd::decode_from_slice(&message(&written.end)?);
        Ok(Self {
            head: head.map_err(|error| error.to_string())?,
            end: end.map_err(|error| error.to_string())?,
            chunks: written.chunks,
        })
    }
}

#[cfg(test)]
mod tests {
    use wrenn_rpc::host::v1::{ArtifactFile, ArtifactKind};

    use super::*;

    fn manifest() -> Manifest {
        let chunk = ArtifactChunk {
            file: ArtifactFile::ARTIFACT_FILE_DISK.into(),
            index: 3,
            sha256: vec![0xab; 32],
            length: 5,
            data: b"12345".to_vec(),
            ..Default::default()
        };
        let head = ArtifactHead {
            kind: ArtifactKind::ARTIFACT_KIND_IMAGE.into(),
            id: "a".to_owned(),
            format: 1,
            ..Default::default()
        };
        let end = ArtifactEnd { record: b"record".to_vec(), sha256: vec![1; 32], ..Default::default() };
        Manifest { head, end, chunks: vec![Entry::of(&chunk).0] }
    }

    #[test]
    fn what_is_written_is_read() {
        let (before, after) = (manifest(), Manifest::decode(&manifest().encode()).expect("a manifest"));
        assert_eq!((&after.head, &after.end), (&before.head, &before.end));
        assert_eq!(after.chunks, before.chunks);
        assert_eq!((after.chunks[0].sha256.as_str(), after.chunks[0].index), ("ab".repeat(32).as_str(), 3));
        assert!(after.size() > 5);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let good = String::from_utf8(manifest().encode().to_vec()).expect("text");
        assert!(Manifest::decode(good.as_bytes()).is_ok());
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("abab", "../x"),
            ("\"file\":1", "\"file\":-1"),
            ("\"bytes\":", "\"bytes\":9999999"),
            ("\"head\":\"", "\"head\":\"*"),
            ("}]}", "}]"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert!(bad != good && Manifest::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
