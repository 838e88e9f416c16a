// SPDX-License-Identifier: Apache-2.0
//! Names and labels that users give.

use std::collections::BTreeMap;

use wrenn_api::{ErrorCode, SandboxId};
use wrenn_rpc::Foreign;

use crate::error::Fault;

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

/// Rule for a tag of a template.
pub(crate) const TAG_RULE: &str =
    "a tag has 1 to 64 letters, digits, '.', '_' or '-', the first a letter, a digit or '_'";
/// Tag that the name of a template alone means.
pub(crate) const LATEST: &str = "latest";

/// Returns whether a text is a valid tag of a template.
pub(crate) fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && text.len() <= 64
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Splits `NAME` or `NAME:TAG` into the name of a template and a tag, by default [`LATEST`].
pub(crate) fn template_reference(text: &str) -> Result<(&str, &str), Fault> {
    let (name, tag) = text.split_once(':').unwrap_or((text, LATEST));
    let rule = match (is_template_name(name), is_tag(tag)) {
        (true, true) => return Ok((name, tag)),
        (false, _) => RULE,
        (true, false) => TAG_RULE,
    };
    Err(Fault::invalid(format!("{} is not the name of a template: {rule}", Foreign(text))))
}

/// Maximum number of labels of a sandbox.
pub(crate) const LABELS_MAX: usize = 32;
/// Maximum length of the value of a label, in characters.
const VALUE_MAX: usize = 256;
/// Maximum length of the name of a sandbox, as of a label of DNS, and of the name of a label, in bytes.
const NAME_MAX: usize = 63;

/// Checks the name of a sandbox.
pub(crate) fn check_sandbox_name(name: &str) -> Result<(), Fault> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let label = name.len() <= NAME_MAX
        && ends(name.bytes().next())
        && ends(name.bytes().last())
        && name.bytes().all(known);
    if !label {
        let message = format!(
            "name: the name of a sandbox has 1 to {NAME_MAX} lower-case letters, digits or '-', and begins and ends with a letter \
             or digit"
        );
        return Err(Fault::invalid(message));
    }
    if name.parse::<SandboxId>().is_ok() {
        return Err(Fault::invalid("name: it is an id; choose another one"));
    }
    Ok(())
}

/// The fault of a name that another sandbox of the team has.
pub(crate) fn taken(name: &str) -> Fault {
    let message = format!(
        "the team has a sandbox named {name:?}: choose another name, or delete that one or rename it"
    );
    Fault::new(ErrorCode::SandboxNameTaken, message)
}

/// Checks the labels of a new sandbox.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    if labels.len() > LABELS_MAX {
        return Err(too_many_labels(labels.len()));
    }
    labels.keys().try_for_each(|name| check_label_name(name))?;
    labels.iter().try_for_each(|(name, value)| check_label_value(name, value))
}

/// The fault of a sandbox with too many labels.
pub(crate) fn too_many_labels(count: usize) -> Fault {
    Fault::invalid(format!("labels: the sandbox would have {count}: at most {LABELS_MAX}"))
}

/// Checks the name of a label.
pub(crate) fn check_label_name(name: &str) -> Result<(), Fault> {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if name.len() <= NAME_MAX
        && ends(name.bytes().next())
        && ends(name.bytes().last())
        && name.bytes().all(known)
    {
        return Ok(());
    }
    let name: String = name.chars().take(NAME_MAX).collect();
    let message = format!(
        "labels: {name:?} cannot be the name of a label: it has 1 to {NAME_MAX} letters, digits, '.', '_', '/' or '-', and begins \
         and ends with a letter or digit"
    );
    Err(Fault::invalid(message))
}

/// Checks the value of a label.
pub(crate) fn check_label_value(name: &str, value: &str) -> Result<(), Fault> {
    let count = value.chars().take(VALUE_MAX + 1).count();
    if count <= VALUE_MAX && !value.chars().any(char::is_control) {
        return Ok(());
    }
    let message = format!(
        "labels: the value of {name:?} has more than {VALUE_MAX} characters, or one that controls a terminal, such as a line break"
    );
    Err(Fault::invalid(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_a_name_and_a_tag() {
        fn parsed(text: &str) -> Result<(&str, &str), String> {
            template_reference(text).map_err(|error| error.message)
        }
        let longest = format!("{0}:{0}", "x".repeat(64));
        for (text, name, tag) in [
            ("web", "web", "latest"),
            ("web:latest", "web", "latest"),
            ("py_3.12-x:_1.0-rc", "py_3.12-x", "_1.0-rc"),
            (longest.as_str(), &longest[..64], &longest[..64]),
        ] {
            assert_eq!(parsed(text), Ok((name, tag)));
        }
        for text in ["", ":", ":a", "-a", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            let told = parsed(text).err().unwrap_or_default();
            assert!(told.ends_with(RULE), "{text:?}: {told}");
        }
        for text in ["a:", "a:-1", "a:.1", "a:b:c", "a:b c", "a:ä", &format!("a:{}", "x".repeat(65))] {
            let told = parsed(text).err().unwrap_or_default();
            assert!(told.ends_with(TAG_RULE), "{text:?}: {told}");
        }
    }

    #[test]
    fn names_of_sandboxes_are_labels_of_dns_and_no_ids() {
        let longest = "x".repeat(63);
        for name in ["web", "a", "1", "ci-42", "a--b", "sb03hal", &longest] {
            assert!(check_sandbox_name(name).is_ok(), "{name}");
        }
        let (long, id) = ("x".repeat(64), SandboxId::new().to_string());
        for name in ["", "-", "-a", "a-", "Web", "a.b", "a_b", "a b", "ä", "a\n", &long, &id] {
            assert!(check_sandbox_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn labels_have_bounds() {
        let check =
            |name: &str, value: &str| check_labels(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let (longest, long) = ("ä".repeat(256), "ä".repeat(257));
        for (name, value) in [("a", ""), ("team.example/Branch_1", "main, really"), ("a", &longest)] {
            assert!(check(name, value).is_ok(), "{name}={value}");
        }
        let name = "x".repeat(64);
        for (name, value) in [
            ("", "x"),
            ("-a", "x"),
            ("a=b", "x"),
            ("ä", "x"),
            (&name, "x"),
            ("a", &long),
            ("a", "\u{1b}[31m"),
            ("a", "b\n"),
        ] {
            assert!(check(name, value).is_err(), "{name}={value}");
        }
        let many = |count: u32| (0..count).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_labels(&many(32)).is_ok() && check_labels(&many(33)).is_err());
    }
}
