// SPDX-License-Identifier: Apache-2.0
//! What a recipe starts from: a template, or an OCI image of a registry or one that was uploaded.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::shown,
    name::{is_tag, is_template_name, name_and_tag},
    uploaded::UploadedImage,
};

/// Prefix of what can only be a template.
const TEMPLATE: &str = "template:";
/// Registry of references that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Maximum length of registry and repository together, in bytes.
const NAME: usize = 255;

/// What a recipe starts from: `template:NAME[:TAG]`, `uploaded:NAME[:TAG]`, or a name that is a template's or an image's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Base(String);

/// Error of a text that is neither a template nor an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} names neither a template nor an image: write one, such as template:minimal or python:3.12-slim")]
pub struct BaseError(String);

impl Base {
    /// Returns the text as it stands in the recipe.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns name and tag of a template, if it can only be one.
    pub fn template(&self) -> Option<(&str, Option<&str>)> {
        self.0.strip_prefix(TEMPLATE).map(name_and_tag)
    }

    /// Returns the image that was uploaded, if it is one.
    pub fn uploaded(&self) -> Option<UploadedImage> {
        UploadedImage::of_reference(&self.0)?.ok()
    }

    /// Returns the image of a registry, if it can be one. It can be a template all the same.
    pub fn image(&self) -> Option<ImageReference> {
        let is_other = self.0.starts_with(TEMPLATE) || UploadedImage::of_reference(&self.0).is_some();
        self.0.parse::<ImageReference>().ok().filter(|_| !is_other)
    }
}

impl FromStr for Base {
    type Err = BaseError;

    fn from_str(text: &str) -> Result<Self, BaseError> {
        if let Some(uploaded) = UploadedImage::of_reference(text) {
            return if uploaded.is_ok() { Ok(Self(text.to_owned())) } else { Err(BaseError(shown(text))) };
        }
        let (name, tag) = name_and_tag(text.strip_prefix(TEMPLATE).unwrap_or(text));
        let is_template = is_template_name(name) && tag.is_none_or(is_tag);
        let is_image = !text.starts_with(TEMPLATE) && text.parse::<ImageReference>().is_ok();
        if is_template || is_image { Ok(Self(text.to_owned())) } else { Err(BaseError(shown(text))) }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reference to an OCI image, with the registry and the repository that a short one means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageReference {
    /// Host of the registry, with a port if one is given.
    pub registry: String,
    /// Repository, such as `library/python`.
    pub repository: String,
    /// Tag; without a tag and a digest it is `latest`.
    pub tag: Option<String>,
    /// Digest, such as `sha256:…`; it decides if there is a tag, too.
    pub digest: Option<String>,
}

/// Error of a text that is not a reference to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a reference to an image: write [REGISTRY/]REPOSITORY[:TAG][@DIGEST] in lower-case letters"
)]
pub struct ImageReferenceError(String);

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, ImageReferenceError> {
        parsed(text).ok_or_else(|| ImageReferenceError(shown(text)))
    }
}

fn parsed(text: &str) -> Option<ImageReference> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let tag = name_and_tag(&rest[last..]).1;
    let name = &rest[..rest.len() - tag.map_or(0, |tag| tag.len() + 1)];
    let (registry, repository) = match name.split_once('/') {
        Some((first, repository)) if is_host(first) => (first, repository),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    let valid = name.len() <= NAME
        && is_registry(registry)
        && repository.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    valid.then(|| ImageReference {
        registry: registry.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// Returns whether the first part of a name is a host, and not the beginning of a repository.
fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':']) || text.contains(|c: char| c.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = name_and_tag(text);
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Returns whether a text is a part of a repository: words of lower-case letters and digits, between which there is a dot, one
/// or two underscores, or dashes.
fn is_component(text: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates =
        |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    text.starts_with(known) && text.ends_with(known) && text.split(known).all(separates)
}

fn is_digest(text: &str) -> bool {
    let is_hex = |digits: &str| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match text.split_once(':') {
        Some(("sha256", digits)) => digits.len() == 64 && is_hex(digits),
        Some(("sha512", digits)) => digits.len() == 128 && is_hex(digits),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_completed() {
        let digest = format!("ghcr.io/a/b@{DIGEST}");
        for (text, expected) in [
            ("python", "docker.io/library/python"),
            ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
            ("docker.io/python", "docker.io/library/python"),
            ("index.docker.io/bitnami/redis:7", "docker.io/bitnami/redis:7"),
            ("bitnami/redis", "docker.io/bitnami/redis"),
            ("ghcr.io/org/team/app:v1", "ghcr.io/org/team/app:v1"),
            ("localhost/app", "localhost/app"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("Registry.example/a__b/c.d-e", "Registry.example/a__b/c.d-e"),
            (digest.as_str(), digest.as_str()),
        ] {
            let parsed: ImageReference = text.parse().unwrap();
            assert_eq!(parsed.to_string(), expected);
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn other_texts_are_no_references() {
        let long = format!("a/{}", "b".repeat(300));
        for text in [
            "",
            ":",
            "a:",
            "a@",
            "a@sha256:12",
            "A",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a b",
            "a:b:c",
            "a:.b",
            "../a",
            "a/../b",
            "h.x:0/a",
            "h.x:70000/a",
            "h.x:/a",
            "ä",
            "-h.x/a",
            "a\n",
            &long,
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_base_is_a_template_or_a_name() {
        let base = |text: &str| text.parse::<Base>();
        let template = base("template:py_3.12:v1").unwrap();
        assert_eq!((template.template(), template.image()), (Some(("py_3.12", Some("v1"))), None));
        let bare = base("minimal").unwrap();
        assert_eq!(bare.template(), None);
        assert_eq!(bare.image().unwrap().repository, "library/minimal");
        let only_template = base("My_Template").unwrap();
        assert_eq!((only_template.template(), only_template.image()), (None, None));
        for text in [
            "",
            "template:",
            "template:a/b",
            "template:../x",
            "template:a:",
            "template:.a",
            "a b",
            "-a",
            "A/B/c",
        ] {
            assert!(base(text).is_err(), "{text}");
        }
    }
}
