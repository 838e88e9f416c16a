// SPDX-License-Identifier: Apache-2.0
//! Images that a team has uploaded: `uploaded:NAME[:TAG]` where an image is named, and `NAME[:TAG]` by themselves.

use std::{fmt, str::FromStr};

use crate::{
    error::shown,
    name::{is_tag, is_template_name, name_and_tag},
};

/// Prefix of references to uploaded images.
const PREFIX: &str = "uploaded:";
/// Tag of those that name none.
const LATEST: &str = "latest";

/// Name and tag of an image that a team has uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadedImage {
    name: String,
    tag: String,
}

/// Error of a text that cannot be the name of an uploaded image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not the name of an uploaded image: write NAME[:TAG]; a name has 1 to 64 letters, digits, '.', '_' or '-', the first a \
     letter or digit"
)]
pub struct UploadedImageError(String);

impl UploadedImage {
    /// Parses a reference to an image. `None` if it is not one to an uploaded image.
    pub fn of_reference(text: &str) -> Option<Result<Self, UploadedImageError>> {
        text.strip_prefix(PREFIX).map(str::parse)
    }

    /// Returns the whole reference, with the prefix and the tag.
    pub fn reference(&self) -> String {
        format!("{PREFIX}{self}")
    }
}

impl FromStr for UploadedImage {
    type Err = UploadedImageError;

    fn from_str(text: &str) -> Result<Self, UploadedImageError> {
        let (name, tag) = name_and_tag(text);
        let tag = tag.unwrap_or(LATEST);
        if !is_template_name(name) || !is_tag(tag) {
            return Err(UploadedImageError(shown(text)));
        }
        Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
    }
}

impl fmt::Display for UploadedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Base;

    #[test]
    fn a_reference_has_the_prefix_and_a_tag() {
        for (text, name) in [("app", "app:latest"), ("App_1.2:v1", "App_1.2:v1"), ("a:_x", "a:_x")] {
            let image: UploadedImage = text.parse().unwrap();
            assert_eq!(image.to_string(), name);
            assert_eq!(image.reference(), format!("uploaded:{name}"));
            assert_eq!(UploadedImage::of_reference(&image.reference()), Some(Ok(image)));
        }
        for text in ["app", "uploade:app", "docker.io/uploaded:app", "template:uploaded:app"] {
            assert_eq!(UploadedImage::of_reference(text), None, "{text}");
        }
        let long = "x".repeat(65);
        for text in
            ["", ":", ":1", "a:", "a:b:c", "a/b", "-a", "a b", "ä", "a@sha256:00", "../a", "a:.b", &long]
        {
            let error = text.parse::<UploadedImage>().unwrap_err().to_string();
            assert!(error.len() < 400, "{error}");
            assert!(
                UploadedImage::of_reference(&format!("uploaded:{text}"))
                    .is_some_and(|parsed| parsed.is_err())
            );
        }
    }

    #[test]
    fn a_recipe_can_start_from_one() {
        for text in ["uploaded:app", "uploaded:App:1.2"] {
            let base: Base = text.parse().unwrap();
            assert!(
                base.uploaded().is_some() && base.image().is_none() && base.template().is_none(),
                "{text}"
            );
            assert_eq!(base.to_string(), text);
        }
        assert!("uploaded:".parse::<Base>().is_err() && "uploaded:a/b".parse::<Base>().is_err());
        // These are none.
        for text in ["uploaded", "template:uploaded:app", "docker.io/library/uploaded:app"] {
            assert_eq!(text.parse::<Base>().unwrap().uploaded(), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_read_again_as_it_is_written(text in "[a-zA-Z0-9.:_-]{0,12}") {
            if let Ok(image) = text.parse::<UploadedImage>() {
                prop_assert_eq!(UploadedImage::of_reference(&image.reference()), Some(Ok(image)));
            }
        }
    }
}
