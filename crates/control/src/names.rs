// SPDX-License-Identifier: Apache-2.0
//! Names that users give.

/// Rule for the name of a template or a snapshot.
pub(crate) const RULE: &str =
    "a name has 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit";

/// Returns whether a text is a valid name of a template or a snapshot.
pub(crate) fn is_template_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.len() <= 64
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
