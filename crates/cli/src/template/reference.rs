// SPDX-License-Identifier: Apache-2.0
//! Templates as users write them: a name, and after a colon a tag.

use std::{fmt, str::FromStr};

/// Tag of a reference that has none.
pub(super) const LATEST: &str = "latest";
/// Maximum length of a name and of a tag, in bytes.
const LENGTH: usize = 64;

/// A template, and a version of it by its tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(super) name: String,
    pub(super) tag: Option<String>,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(self::tag(tag)?)),
            None => (text, None),
        };
        Ok(Self { name: self::name(name)?, tag })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// Parses the name of a template.
pub(super) fn name(text: &str) -> Result<String, String> {
    let begins = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if begins && is_made_of_letters(text) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit".to_owned())
}

/// Parses a tag.
pub(super) fn tag(text: &str) -> Result<String, String> {
    let begins = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
    if begins && is_made_of_letters(text) {
        return Ok(text.to_owned());
    }
    Err("a tag has 1 to 64 letters, digits, '.', '_' or '-', the first a letter, a digit or '_'".to_owned())
}

fn is_made_of_letters(text: &str) -> bool {
    text.len() <= LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_and_perhaps_a_tag() {
        for text in ["web", "Web_1.x-y", "web:latest", "web:_v1", "0:0"] {
            assert_eq!(text.parse::<Reference>().map(|parsed| parsed.to_string()).as_deref(), Ok(text));
        }
        let long = "x".repeat(65);
        for text in ["", ":", "web:", ":x", "a:b:c", "../x", "a/b", "-a", "a:-b", "ä", "a b", long.as_str()]
        {
            assert!(text.parse::<Reference>().is_err_and(|error| error.contains("1 to 64")), "{text}");
        }
    }
}
