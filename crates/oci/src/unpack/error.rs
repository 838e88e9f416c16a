// SPDX-License-Identifier: Apache-2.0
//! Errors of unpacking; each names the layer, and the entry that it is about.

use std::io;

use rustix::io::Errno;

use crate::{digest::Digest, tar::TarError, text::shown};

/// Why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The entry is not one that may be unpacked.
    #[error("entry `{entry}` of layer {layer} is refused: {cause}; build the image without it")]
    Refused {
        /// Digest of the layer.
        layer: Digest,
        /// Name of the entry, escaped.
        entry: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The image is larger than it may be.
    #[error("layer {layer} has more than {most} {what}, which is the limit; use a smaller image")]
    TooLarge {
        /// Digest of the layer.
        layer: Digest,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        most: u64,
    },
    /// The layer is not a tar archive.
    #[error("layer {layer} is not readable after {entries} entries: {cause}; build or push the image again")]
    Malformed {
        /// Digest of the layer.
        layer: Digest,
        /// Number of entries before, of all layers.
        entries: u64,
        /// What is wrong.
        cause: &'static str,
    },
    /// The layer broke off, or could not be decompressed.
    #[error("layer {layer} could not be read: {source}; try again, or push the image again")]
    Stream {
        /// Digest of the layer.
        layer: Digest,
        /// The cause.
        source: io::Error,
    },
    /// The layer has other content than the configuration of the image says.
    #[error(
        "layer {layer} has the uncompressed digest {found}, but the image says {expected}; build or push the image again"
    )]
    Content {
        /// Digest of the layer.
        layer: Digest,
        /// Digest that the configuration says.
        expected: Digest,
        /// Digest of what was read.
        found: Digest,
    },
    /// The file system refused what an entry needs.
    #[error("cannot {action} entry `{entry}` of layer {layer}: {source}")]
    Files {
        /// Digest of the layer.
        layer: Digest,
        /// Name of the entry, escaped.
        entry: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl UnpackError {
    /// Returns whether there was not enough space for the image.
    pub fn is_out_of_space(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Files { source, .. } if full(source.kind()))
    }

    /// Makes an error of what went wrong with an entry.
    pub(super) fn of(trouble: Trouble, layer: Digest, entries: u64, entry: &[u8]) -> Self {
        match trouble {
            Trouble::Refused(cause) => Self::Refused { layer, entry: shown(entry), cause },
            Trouble::TooLarge(what, most) => Self::TooLarge { layer, what, most },
            Trouble::Malformed(cause) => Self::Malformed { layer, entries, cause },
            Trouble::Stream(source) => Self::Stream { layer, source },
            Trouble::Files(action, source) => Self::Files { layer, entry: shown(entry), action, source },
        }
    }
}

/// What went wrong, before it is known where.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(&'static str),
    /// Of what there is too much, and the limit.
    TooLarge(&'static str, u64),
    Malformed(&'static str),
    Stream(io::Error),
    /// What was tried, and the cause.
    Files(&'static str, io::Error),
}

/// Error of a stream that has more bytes than the limit.
#[derive(Debug, thiserror::Error)]
#[error("the layers have more than {0} bytes")]
pub(super) struct TooManyBytes(pub(super) u64);

impl From<io::Error> for Trouble {
    /// Takes errors of reading a layer.
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TooManyBytes>()) {
            Some(TooManyBytes(most)) => Self::TooLarge("bytes with the layers below it", *most),
            None => Self::Stream(error),
        }
    }
}

impl From<TarError> for Trouble {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Malformed(cause) => Self::Malformed(cause),
            TarError::Stream(error) => error.into(),
        }
    }
}

/// Makes what went wrong of an action that failed.
pub(super) fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Trouble {
    move |error| Trouble::Files(action, error.into())
}

/// Makes what went wrong when a directory could not be opened that an entry is in.
pub(super) fn unusable(error: Errno) -> Trouble {
    match error {
        Errno::NOTDIR => Trouble::Refused("it is in something that is no directory"),
        Errno::LOOP => Trouble::Refused("it is behind symbolic links that lead in a circle"),
        Errno::XDEV => Trouble::Refused("it is on another file system than the top"),
        error => failed("open the directory of")(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_layer_and_entry_and_tell_a_full_disk_apart() {
        let layer = Digest::of(b"layer");
        let of = |trouble| UnpackError::of(trouble, layer, 3, b"a\nb");
        for (error, full) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
            let error = of(failed("write")(error));
            assert_eq!(error.is_out_of_space(), full, "{error}");
            assert!(
                error.to_string().contains("a\\nb") && error.to_string().contains(&layer.hex()),
                "{error}"
            );
        }
        let too_many = of(io::Error::other(TooManyBytes(7)).into());
        assert!(matches!(too_many, UnpackError::TooLarge { most: 7, .. }));
        assert!(matches!(of(io::Error::other("cut").into()), UnpackError::Stream { .. }));
    }
}
