// SPDX-License-Identifier: Apache-2.0
//! Images on this machine: an OCI layout in a directory, or an archive with such a layout or of `docker save`.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    Blob, Found, ImageSource, SourceError, docker_save, names,
    stored::{Directory, Files, Part, blocking},
    tar_index::TarIndex,
    verified, verify,
};
use crate::{
    digest::Digest,
    manifest::{Descriptor, Document, Index, MANIFEST_MAX},
};

/// Name of the index of an OCI layout.
const INDEX: &str = "index.json";
/// Annotations with the name of an image in an index: the whole one, and its tag or the whole one.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image in a directory or an archive.
pub struct LocalImage {
    name: &'static str,
    files: Arc<dyn Files>,
    top: Found,
    /// Files that are not found by their digest.
    parts: HashMap<Digest, Part>,
    /// Name that it is given there.
    told: Option<String>,
}

impl LocalImage {
    /// Opens an OCI layout in a directory. A tag or a name is needed if it has several images.
    pub async fn directory(path: &Path, tag: Option<&str>) -> Result<Self, SourceError> {
        const NAME: &str = "the directory";
        let (path, tag) = (path.to_owned(), tag.map(str::to_owned));
        opening(NAME, move || {
            let files = Directory::open(&path).map_err(|error| SourceError::files(NAME, error))?;
            Self::of(NAME, Arc::new(files), tag.as_deref())
        })
        .await
    }

    /// Opens a tar archive with an OCI layout, or of `docker save`. It is not extracted, and must not change while this is in
    /// use. A tag or a name is needed if it has several images.
    pub async fn archive(file: File, tag: Option<&str>) -> Result<Self, SourceError> {
        const NAME: &str = "the archive";
        let tag = tag.map(str::to_owned);
        opening(NAME, move || Self::of(NAME, Arc::new(TarIndex::of(file, NAME)?), tag.as_deref())).await
    }

    /// Returns the name that the directory or the archive gives to the image, as it stands there: a stranger has chosen it.
    pub fn told_name(&self) -> Option<&str> {
        self.told.as_deref()
    }

    fn of(name: &'static str, files: Arc<dyn Files>, tag: Option<&str>) -> Result<Self, SourceError> {
        if let Some(bytes) = small(&*files, name, INDEX)? {
            let document =
                Document::parse(&bytes).map_err(|cause| SourceError::malformed(name, INDEX, cause))?;
            let (document, told) = match document {
                Document::Index(index) => {
                    let index = wanted(index, name, tag)?;
                    let told = index.images().find_map(|entry| told(entry).next().cloned());
                    (Document::Index(index), told)
                }
                manifest @ Document::Manifest(_) => (manifest, None),
            };
            let top = Found { digest: Digest::of(&bytes), document };
            return Ok(Self { name, files, top, parts: HashMap::new(), told });
        }
        let Some(list) = small(&*files, name, docker_save::LIST)? else {
            let cause =
                "it is neither an OCI layout with `index.json` nor of `docker save` with `manifest.json`";
            return Err(SourceError::malformed(name, "it", cause));
        };
        let docker_save::Saved { top, parts, told } = docker_save::read(&*files, name, &list, tag)?;
        Ok(Self { name, files, top, parts, told })
    }

    async fn part(&self, descriptor: &Descriptor) -> Result<Part, SourceError> {
        let part = if let Some(part) = self.parts.get(&descriptor.digest) {
            part.clone()
        } else {
            let (files, path) =
                (Arc::clone(&self.files), format!("blobs/sha256/{}", descriptor.digest.hex()));
            let found = blocking(self.name.to_owned(), move || files.find(&path)).await?;
            found
                .ok_or_else(|| SourceError::missing(self.name, format!("blob {} in it", descriptor.digest)))?
        };
        if part.size == descriptor.size {
            Ok(part)
        } else {
            Err(SourceError::damaged(self.name, descriptor.digest))
        }
    }
}

#[async_trait]
impl ImageSource for LocalImage {
    fn name(&self) -> &str {
        self.name
    }

    async fn document(&self, of: Option<&Descriptor>) -> Result<Found, SourceError> {
        let Some(descriptor) = of else { return Ok(self.top.clone()) };
        if descriptor.size > MANIFEST_MAX {
            return Err(SourceError::too_large(self.name, descriptor.digest, MANIFEST_MAX));
        }
        let part = self.part(descriptor).await?;
        let bytes = blocking(self.name.to_owned(), move || part.bytes()).await?;
        verify(self.name, &bytes, descriptor)?;
        let document = Document::parse(&bytes)
            .map_err(|cause| SourceError::malformed(self.name, descriptor.digest, cause))?;
        Ok(Found { digest: descriptor.digest, document })
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let pieces = self.part(descriptor).await?.pieces(self.name);
        Ok(verified(self.name, pieces, descriptor))
    }
}

/// Opens a source on a thread that may wait for the disk.
async fn opening(
    name: &'static str,
    open: impl FnOnce() -> Result<LocalImage, SourceError> + Send + 'static,
) -> Result<LocalImage, SourceError> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.unwrap_or_else(|panic| Err(SourceError::files(name, io::Error::other(panic))))
}

/// Reads a file of at most the size of a manifest, `None` if there is none.
fn small(files: &dyn Files, name: &str, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
    let failed = |error| SourceError::files(name, error);
    match files.find(path).map_err(failed)? {
        Some(part) if part.size > MANIFEST_MAX => Err(SourceError::too_large(name, path, MANIFEST_MAX)),
        Some(part) => part.bytes().map(Some).map_err(failed),
        None => Ok(None),
    }
}

/// Keeps the manifests of the wanted image. Without a tag there must be one image only.
fn wanted(mut index: Index, name: &str, tag: Option<&str>) -> Result<Index, SourceError> {
    if let Some(tag) = tag {
        index.manifests.retain(|entry| told(entry).any(|name| names::is_named(name, tag)));
        return if index.manifests.is_empty() { Err(names::none_named(name, tag)) } else { Ok(index) };
    }
    let several = {
        let digests: BTreeSet<_> = index.images().map(|entry| entry.digest).collect();
        // One image may have several tags, and one tag several platforms.
        let all: BTreeSet<_> = index.images().filter_map(|entry| told(entry).next()).collect();
        (digests.len() > 1 && all.len() > 1).then(|| names::ambiguous(name, all.into_iter()))
    };
    several.map_or(Ok(index), Err)
}

/// Lists the names that an index gives to an image.
fn told(entry: &Descriptor) -> impl Iterator<Item = &String> {
    NAMES.iter().filter_map(move |key| entry.annotations.get(*key))
}
