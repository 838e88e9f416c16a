// SPDX-License-Identifier: Apache-2.0
//! Pulls the layers of an image into files. A download that breaks goes on where it broke; each is compared with its digest and
//! its size.

use std::{collections::HashSet, path::Path};

use futures::TryStreamExt as _;
use tokio::{fs::File, io::AsyncWriteExt as _};
use wrenn_oci::{Descriptor, ImageSource, Manifest};

use super::{
    error::{IMPORTING, of_source},
    place::Place,
    progress::Progress,
};
use crate::error::{AgentError, of_files};

/// Returns the bytes of all layers, each of which is pulled once.
pub(super) fn bytes(manifest: &Manifest) -> u64 {
    once(manifest).iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size))
}

/// Pulls all layers.
pub(super) async fn layers(
    source: &dyn ImageSource,
    manifest: &Manifest,
    place: &Place,
    progress: &Progress,
) -> Result<(), AgentError> {
    for layer in once(manifest) {
        pull(source, layer, &place.blob(&layer.digest), progress).await?;
    }
    Ok(())
}

/// Reads all layers, and keeps nothing: whoever sends an image that is here already has its layers, too.
pub(super) async fn check(source: &dyn ImageSource, manifest: &Manifest) -> Result<(), AgentError> {
    for layer in once(manifest) {
        let mut blob = source.blob(layer).await.map_err(|error| of_source(&error))?;
        while blob.try_next().await.map_err(|error| of_source(&error))?.is_some() {}
    }
    Ok(())
}

/// Lists the layers, and those that there are several times once.
fn once(manifest: &Manifest) -> Vec<&Descriptor> {
    let mut seen = HashSet::new();
    manifest.layers.iter().filter(|layer| seen.insert(layer.digest)).collect()
}

async fn pull(
    source: &dyn ImageSource,
    layer: &Descriptor,
    path: &Path,
    progress: &Progress,
) -> Result<(), AgentError> {
    let kept = |error: std::io::Error| of_files(IMPORTING, &error);
    let mut blob = source.blob(layer).await.map_err(|error| of_source(&error))?;
    let mut file = File::create_new(path).await.map_err(kept)?;
    while let Some(piece) = blob.try_next().await.map_err(|error| of_source(&error))? {
        file.write_all(&piece).await.map_err(kept)?;
        progress.fetched(piece.len() as u64);
    }
    file.flush().await.map_err(kept)?;
    file.sync_data().await.map_err(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wrenn_oci::Digest;

    use super::*;

    #[test]
    fn a_layer_that_is_there_twice_is_pulled_once() {
        let layer = |text: &str, size: u64| json!({ "digest": Digest::of(text.as_bytes()), "size": size });
        let manifest = |layers: &[serde_json::Value]| -> Manifest {
            let config = layer("config", 1);
            let text = json!({ "schemaVersion": 2, "config": config, "layers": layers });
            serde_json::from_value(text).expect("a manifest")
        };
        let three = manifest(&[layer("a", 5), layer("b", 7), layer("a", 5)]);
        assert_eq!((once(&three).len(), bytes(&three)), (2, 12));
        assert_eq!(bytes(&manifest(&[layer("a", u64::MAX), layer("b", 1)])), u64::MAX);
    }
}
