// SPDX-License-Identifier: Apache-2.0
//! Sources of images: what they give, how an image is resolved to one manifest, and how blobs are verified while they are
//! read.

mod docker_save;
pub(crate) mod local;
mod names;
pub(crate) mod registry;
mod stored;
mod tar_index;

use std::{fmt::Display, io};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};

use crate::{
    config::{CONFIG_MAX, ImageConfig},
    digest::{Digest, Running},
    manifest::{Descriptor, Document, Manifest},
    platform::Platform,
};

/// Maximum number of indexes within each other.
const INDEXES_MAX: usize = 4;

/// Content of a blob in pieces, which are verified when the stream has ended without an error, and not before.
pub type Blob = BoxStream<'static, Result<Bytes, SourceError>>;

/// Source of one image, possibly for several platforms.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Returns what names the image in messages.
    fn name(&self) -> &str;

    /// Reads a manifest or an index: that of a descriptor, else the one that the source was opened for.
    async fn document(&self, of: Option<&Descriptor>) -> Result<Found, SourceError>;

    /// Opens a blob. Its digest and its size are verified while it is read.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, SourceError>;

    /// Finds the manifest for a machine, and reads the configuration. What is returned names everything by digest, so that a
    /// tag that moves meanwhile changes nothing.
    async fn resolve(&self, machine: &Platform) -> Result<Image, SourceError> {
        let mut found = self.document(None).await?;
        for _ in 0..INDEXES_MAX {
            let index = match found.document {
                Document::Manifest(manifest) => return complete(self, found.digest, manifest, machine).await,
                Document::Index(index) => index,
            };
            let Some(entry) = index.choose(machine) else {
                return Err(SourceError::Platform {
                    image: self.name().to_owned(),
                    machine: machine.clone(),
                    has: index.platforms(),
                });
            };
            found = self.document(Some(entry)).await?;
        }
        Err(SourceError::malformed(self.name(), "its index", "more than four indexes are within each other"))
    }
}

/// A manifest or an index, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Digest of its bytes.
    pub digest: Digest,
    /// What they say.
    pub document: Document,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the manifest, by which the image can be named for ever. Of an archive of an older `docker save`, which has no
    /// manifest, it is that of the manifest made from it.
    pub digest: Digest,
    /// Manifest.
    pub manifest: Manifest,
    /// Configuration. It has as many digests of uncompressed layers as the manifest has layers.
    pub config: ImageConfig,
}

impl Image {
    /// Lists the layers, the lowest first: the blob, and the digest of its uncompressed content.
    pub fn layers(&self) -> impl Iterator<Item = (&Descriptor, Digest)> {
        self.manifest.layers.iter().zip(self.config.diff_ids.iter().copied())
    }
}

/// Why an image could not be had from its source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source does not have it.
    #[error("{image}: there is no {what}; check the name and the tag")]
    Missing {
        /// The image.
        image: String,
        /// What is missing.
        what: String,
    },
    /// The registry does not give it to us.
    #[error(
        "{image}: the registry refuses access ({cause}); check the name, it may be private: give credentials that may pull it"
    )]
    Denied {
        /// The image.
        image: String,
        /// What the registry said.
        cause: String,
    },
    /// It is made for other platforms.
    #[error(
        "{image} is not made for {machine}, but for {has}; choose an image for {machine}, or build one with `docker build --platform {machine}`"
    )]
    Platform {
        /// The image.
        image: String,
        /// Platform that was asked for.
        machine: Platform,
        /// Platforms that it has.
        has: String,
    },
    /// The source has several images.
    #[error("{image} has several images: {names}; say which one")]
    Ambiguous {
        /// The source.
        image: String,
        /// Their names.
        names: String,
    },
    /// What the source has is not in the format that it should be in.
    #[error("{image}: {what} is not usable: {cause}")]
    Malformed {
        /// The image.
        image: String,
        /// What is not usable.
        what: String,
        /// What is wrong.
        cause: String,
    },
    /// What the source has is not what its digest and size say.
    #[error(
        "{image}: {what} has other content than its digest says, so it was damaged or changed; try again, or push the image again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// What has other content.
        what: String,
    },
    /// It is larger than it may be.
    #[error("{image}: {what} is larger than the limit of {most} bytes; use a smaller image")]
    TooLarge {
        /// The image.
        image: String,
        /// What is too large.
        what: String,
        /// The limit.
        most: u64,
    },
    /// The registry, or the store that it redirects to, did not answer well, in spite of several attempts.
    #[error("{image}: {host} did not deliver: {cause}; try again later")]
    Unreachable {
        /// The image.
        image: String,
        /// The host that was asked.
        host: String,
        /// The last failure.
        cause: String,
    },
    /// A file of the source could not be read.
    #[error("{image} could not be read: {source}")]
    Files {
        /// The image.
        image: String,
        /// The cause.
        source: io::Error,
    },
}

impl SourceError {
    fn missing(image: &str, what: impl Display) -> Self {
        Self::Missing { image: image.to_owned(), what: what.to_string() }
    }

    fn malformed(image: &str, what: impl Display, cause: impl Display) -> Self {
        Self::Malformed { image: image.to_owned(), what: what.to_string(), cause: cause.to_string() }
    }

    fn damaged(image: &str, what: impl Display) -> Self {
        Self::Damaged { image: image.to_owned(), what: what.to_string() }
    }

    fn too_large(image: &str, what: impl Display, most: u64) -> Self {
        Self::TooLarge { image: image.to_owned(), what: what.to_string(), most }
    }

    fn files(image: &str, source: io::Error) -> Self {
        Self::Files { image: image.to_owned(), source }
    }
}

/// Reads the configuration of a manifest, and finds out whether both belong to each other and to a machine.
async fn complete<S: ImageSource + ?Sized>(
    source: &S,
    digest: Digest,
    manifest: Manifest,
    machine: &Platform,
) -> Result<Image, SourceError> {
    let (image, what) = (source.name(), "its configuration");
    let bytes = read(source, &manifest.config, CONFIG_MAX).await?;
    let config = ImageConfig::parse(&bytes).map_err(|cause| SourceError::malformed(image, what, cause))?;
    if config.platform.suits(machine).is_none() {
        let (image, has) = (image.to_owned(), config.platform.to_string());
        return Err(SourceError::Platform { image, machine: machine.clone(), has });
    }
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(SourceError::malformed(image, what, "it has another number of layers than the manifest"));
    }
    Ok(Image { digest, manifest, config })
}

/// Reads a blob of at most this many bytes.
async fn read<S: ImageSource + ?Sized>(
    source: &S,
    descriptor: &Descriptor,
    most: u64,
) -> Result<Vec<u8>, SourceError> {
    if descriptor.size > most {
        return Err(SourceError::too_large(source.name(), descriptor.digest, most));
    }
    let mut blob = source.blob(descriptor).await?;
    let mut all = Vec::new();
    while let Some(piece) = blob.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Compares bytes with what a descriptor says of them.
fn verify(image: &str, bytes: &[u8], descriptor: &Descriptor) -> Result<(), SourceError> {
    let same = bytes.len() as u64 == descriptor.size && Digest::of(bytes) == descriptor.digest;
    if same { Ok(()) } else { Err(SourceError::damaged(image, descriptor.digest)) }
}

/// Compares what a stream brings with a descriptor; the stream ends with an error if it is something else.
fn verified(image: &str, pieces: Blob, descriptor: &Descriptor) -> Blob {
    let check = Check {
        image: image.to_owned(),
        pieces,
        running: Running::default(),
        expected: descriptor.digest,
        left: descriptor.size,
    };
    stream::try_unfold(check, Check::next).boxed()
}

struct Check {
    image: String,
    pieces: Blob,
    running: Running,
    expected: Digest,
    /// Bytes that must still come.
    left: u64,
}

impl Check {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, SourceError> {
        let damaged = |check: &Self| SourceError::damaged(&check.image, check.expected);
        if let Some(piece) = self.pieces.try_next().await? {
            self.running.add(&piece);
            self.left = self.left.checked_sub(piece.len() as u64).ok_or_else(|| damaged(&self))?;
            return Ok(Some((piece, self)));
        }
        let same = self.left == 0 && std::mem::take(&mut self.running).finish() == self.expected;
        if same { Ok(None) } else { Err(damaged(&self)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    async fn all(pieces: &[&'static [u8]], digest: Digest, size: u64) -> Result<usize, SourceError> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        let (media_type, annotations) = (String::new(), BTreeMap::new());
        let descriptor = Descriptor { media_type, digest, size, platform: None, annotations };
        let mut stream = verified("test", stream::iter(pieces).boxed(), &descriptor);
        let mut length = 0;
        while let Some(piece) = stream.try_next().await? {
            length += piece.len();
        }
        Ok(length)
    }

    #[tokio::test]
    async fn a_blob_is_what_its_digest_and_size_say() {
        let digest = Digest::of(b"content");
        assert_eq!(all(&[b"con", b"", b"tent"], digest, 7).await.unwrap(), 7);
        let wrong: [(&[&'static [u8]], u64); 6] = [
            (&[b"con"], 7),
            (&[b"content", b"x"], 7),
            (&[b"kontent"], 7),
            (&[b"content"], 8),
            (&[b"content"], 6),
            (&[], 0),
        ];
        for (pieces, size) in wrong {
            let error = all(pieces, digest, size).await.unwrap_err();
            assert!(matches!(error, SourceError::Damaged { .. }), "{pieces:?}: {error}");
        }
        assert_eq!(all(&[], Digest::of(b""), 0).await.unwrap(), 0);
    }
}
