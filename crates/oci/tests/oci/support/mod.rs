// SPDX-License-Identifier: Apache-2.0
//! Images for tests, a registry that serves them badly, and what is on a disk.

pub(crate) mod disk;
pub(crate) mod images;
pub(crate) mod layers;
pub(crate) mod server;

use futures::TryStreamExt as _;
use wrenn_oci::{Descriptor, ImageSource, SourceError};

/// Reads a blob of a source.
pub(crate) async fn fetched(
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, SourceError> {
    let (mut blob, mut all) = (source.blob(descriptor).await?, Vec::new());
    while let Some(piece) = blob.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}
