// SPDX-License-Identifier: Apache-2.0
//! `NAME[:TAG]`, as it names templates and images.

/// Maximum length of a template's name and of a tag, in bytes.
const TEMPLATE_NAME: usize = 64;
const TAG: usize = 128;

pub(crate) fn name_and_tag(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(name, tag)| (name, Some(tag)))
}

pub(crate) fn is_tag(text: &str) -> bool {
    text.len() <= TAG
        && !text.starts_with(['.', '-'])
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Returns whether a text can be the name of a template, and so of an uploaded image.
pub(crate) fn is_template_name(text: &str) -> bool {
    text.len() <= TEMPLATE_NAME
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
