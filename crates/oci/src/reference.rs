// SPDX-License-Identifier: Apache-2.0
//! References, which name an image in a registry: `debian:bookworm`, `localhost:5000/team/app@sha256:…`.

use std::{fmt, str::FromStr};

use reqwest::Url;

use crate::{digest::Digest, text::shown};

/// Registry of references that name none.
const HUB: &str = "docker.io";
/// Other names of it.
const HUB_TOO: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Tag of references that have neither a tag nor a digest.
const LATEST: &str = "latest";
/// Maximum length of a reference, of a repository and of a tag, in bytes.
const REFERENCE_MAX: usize = 1024;
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// Name of an image in a registry. It has a tag, a digest, or both; then the digest counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host of the registry, and its port if that is given.
    pub registry: String,
    /// Repository in the registry.
    pub repository: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest of a manifest or an index.
    pub digest: Option<Digest>,
}

/// Text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{reference}` names no image: {cause}; write it like `debian:bookworm` or `registry.example.com/team/app:1.2`"
)]
pub struct ReferenceError {
    reference: String,
    cause: &'static str,
}

impl Reference {
    /// Returns the host that serves the API of the registry. That of Docker Hub has another name than the registry.
    pub(crate) fn api_host(&self) -> &str {
        if self.registry == HUB { HUB_TOO[1] } else { &self.registry }
    }

    /// Returns what a registry finds the manifest by: the digest, else the tag.
    pub(crate) fn selector(&self) -> String {
        let tag = || self.tag.clone().unwrap_or_else(|| LATEST.to_owned());
        self.digest.map_or_else(tag, |digest| digest.to_string())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parsed(text).map_err(|cause| ReferenceError { reference: shown(text.as_bytes()), cause })
    }
}

fn parsed(text: &str) -> Result<Reference, &'static str> {
    if text.len() > REFERENCE_MAX {
        return Err("it is longer than 1024 bytes");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>();
            (rest, Some(digest.map_err(|_| "its digest is not `sha256:` and 64 hexadecimal digits")?))
        }
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // Else it is the port of the registry.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if !tag.is_none_or(is_tag) {
        return Err(
            "a tag has up to 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two",
        );
    }
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if is_registry(host) => (host, path),
        _ => (HUB, name),
    };
    if !is_host(registry) {
        return Err("its registry is no host name or address with an optional port");
    }
    let registry = if HUB_TOO.contains(&registry) { HUB } else { registry };
    let official = registry == HUB && !path.contains('/');
    let repository = if official { format!("library/{path}") } else { path.to_owned() };
    if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_component) {
        return Err(
            "a repository has lower case letters and digits, with single `.`, `_`, `__` or `-` between them",
        );
    }
    let tag = tag.or(digest.is_none().then_some(LATEST)).map(str::to_owned);
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// Returns whether the first part of a name is a registry, not a part of the repository.
fn is_registry(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
        && Url::parse(&format!("https://{text}/")).is_ok()
}

fn is_tag(text: &str) -> bool {
    text.len() <= TAG_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && !matches!(text.bytes().next(), None | Some(b'.' | b'-'))
}

fn is_component(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(usual)
        && text.ends_with(usual)
        && text
            .split(usual)
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_reference_is_completed_as_docker_does() {
        let digest = Digest::of(b"");
        let pinned = format!("localhost:5000/a/b@{digest}");
        let both = format!("ghcr.io/a/b:1@{digest}");
        let full = [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:bookworm", "docker.io/library/debian:bookworm"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("[::1]:5000/app:x", "[::1]:5000/app:x"),
            ("Registry/app", "Registry/app:latest"),
            ("registry.example.com/a/b/c__d-e.f:V1.0-x_y", "registry.example.com/a/b/c__d-e.f:V1.0-x_y"),
            (pinned.as_str(), pinned.as_str()),
            (both.as_str(), both.as_str()),
        ];
        for (text, expected) in full {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), expected);
            assert_eq!(expected.parse::<Reference>(), Ok(reference), "{text}");
        }
        let hub: Reference = "debian".parse().unwrap();
        assert_eq!((hub.api_host(), hub.selector().as_str()), ("registry-1.docker.io", "latest"));
        assert_eq!(both.parse::<Reference>().unwrap().selector(), digest.to_string());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a/".repeat(600);
        for text in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "A",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "a:",
            "a:.b",
            "a@",
            "a@sha256:00",
            "../a",
            "a/../b",
            "host.name:99999/a",
            "host.name:x/a",
            "user@host.name/a",
            "host.name/a?b",
            "ä",
            "a:b:c",
            &format!("a:{}", "x".repeat(129)),
            &long,
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("names no image") && error.len() < 700, "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_read_again_as_it_is_written(text in "[a-z.:/@_-]{0,24}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
