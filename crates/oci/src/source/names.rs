// SPDX-License-Identifier: Apache-2.0
//! Names of images in a directory or an archive that has several.

use super::SourceError;
use crate::{reference::Reference, text::shown};

/// Maximum number of names in a message.
const SHOWN: usize = 20;

/// Returns whether a name of an image is the wanted one: the same text, or another way to write the same reference.
pub(super) fn is_named(name: &str, wanted: &str) -> bool {
    let reference = |text: &str| text.parse::<Reference>().ok();
    name == wanted || reference(name).is_some_and(|name| reference(wanted) == Some(name))
}

/// Makes the error that none has the wanted name.
pub(super) fn none_named(image: &str, wanted: &str) -> SourceError {
    SourceError::missing(image, format!("image `{}` in it", shown(wanted.as_bytes())))
}

/// Makes the error that it is not known which is meant.
pub(super) fn ambiguous<'a>(image: &str, names: impl Iterator<Item = &'a String>) -> SourceError {
    let names: Vec<_> = names.take(SHOWN).map(|name| shown(name.as_bytes())).collect();
    SourceError::Ambiguous { image: image.to_owned(), names: names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_be_written_in_several_ways() {
        for (name, wanted, same) in [
            ("latest", "latest", true),
            ("debian:bookworm", "docker.io/library/debian:bookworm", true),
            ("debian:bookworm", "debian:trixie", false),
            ("bookworm", "debian:bookworm", false),
            ("A B", "a b", false),
        ] {
            assert_eq!(is_named(name, wanted), same, "{name} {wanted}");
        }
    }
}
