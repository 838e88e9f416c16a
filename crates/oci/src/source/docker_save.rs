// SPDX-License-Identifier: Apache-2.0
//! Images as `docker save` and Podman wrote them before they wrote OCI layouts: a list of images with a configuration and
//! layers by name. A manifest is made from it.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{
    Found, SourceError, names,
    stored::{Files, Part},
};
use crate::{
    config::{CONFIG_MAX, ImageConfig},
    decompress,
    digest::Digest,
    manifest::{Descriptor, Document, Manifest},
};

/// Name of the list.
pub(super) const LIST: &str = "manifest.json";
/// Media types of what has none.
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// An image that was found.
pub(super) struct Saved {
    /// Its manifest.
    pub(super) top: Found,
    /// Its layers and configuration.
    pub(super) parts: HashMap<Digest, Part>,
    /// Its first name.
    pub(super) told: Option<String>,
}

/// An image of the list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Makes the manifest of an image from the list, and finds its layers and configuration.
pub(super) fn read(
    files: &dyn Files,
    image: &str,
    list: &[u8],
    tag: Option<&str>,
) -> Result<Saved, SourceError> {
    let unusable = |cause: &str| SourceError::malformed(image, LIST, cause);
    let all: Vec<Listed> = serde_json::from_slice(list).map_err(|error| unusable(&error.to_string()))?;
    let listed = chosen(&all, image, tag)?;
    let find = |path: &str| {
        let part = files.find(path).map_err(|error| SourceError::files(image, error))?;
        part.ok_or_else(|| {
            SourceError::missing(image, "file that `manifest.json` names as configuration or layer")
        })
    };
    let failed = |error| SourceError::files(image, error);
    let part = find(&listed.config)?;
    if part.size > CONFIG_MAX {
        return Err(SourceError::too_large(image, "its configuration", CONFIG_MAX));
    }
    let bytes = part.bytes().map_err(failed)?;
    let config = ImageConfig::parse(&bytes)
        .map_err(|cause| SourceError::malformed(image, "its configuration", cause))?;
    if config.diff_ids.len() != listed.layers.len() {
        return Err(unusable("it has another number of layers than the configuration"));
    }
    let mut parts = HashMap::new();
    let config_descriptor = described(CONFIG, Digest::of(&bytes), part.size);
    parts.insert(config_descriptor.digest, part);
    let mut layers = Vec::new();
    for (path, diff_id) in listed.layers.iter().zip(&config.diff_ids) {
        let part = find(path)?;
        // What is not compressed is named by the configuration, and verified when it is read.
        let compressed = decompress::is_compressed(part.clone()).map_err(failed)?;
        let digest = if compressed { part.digest().map_err(failed)? } else { *diff_id };
        layers.push(described(LAYER, digest, part.size));
        parts.insert(digest, part);
    }
    let manifest = Manifest { schema_version: 2, config: config_descriptor, layers };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| unusable(&error.to_string()))?;
    let document = Document::parse(&bytes).map_err(|cause| unusable(&cause))?;
    let told = listed.repo_tags.iter().flatten().next().cloned();
    Ok(Saved { top: Found { digest: Digest::of(&bytes), document }, parts, told })
}

fn chosen<'a>(all: &'a [Listed], image: &str, tag: Option<&str>) -> Result<&'a Listed, SourceError> {
    match (tag, all) {
        (Some(tag), _) => {
            let has_tag =
                |listed: &&Listed| listed.repo_tags.iter().flatten().any(|name| names::is_named(name, tag));
            all.iter().find(has_tag).ok_or_else(|| names::none_named(image, tag))
        }
        (None, [one]) => Ok(one),
        (None, []) => Err(SourceError::missing(image, "image in it")),
        (None, _) => {
            Err(names::ambiguous(image, all.iter().flat_map(|listed| listed.repo_tags.iter().flatten())))
        }
    }
}

fn described(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}
