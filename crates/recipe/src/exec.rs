// SPDX-License-Identifier: Apache-2.0
//! Exec form: the arguments of an instruction as a JSON array of texts.

use serde::de::IgnoredAny;

/// What the arguments of an instruction are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Array {
    /// No array.
    None,
    /// An array of texts.
    Words(Vec<String>),
    /// What was meant as an array, and is none of texts.
    Broken,
}

const QUOTES: [char; 2] = ['\'', '"'];

/// What to write instead of a broken array.
pub(crate) const BROKEN: &str = "this is not a JSON array of texts: write it as [\"PROGRAM\", \"ARGUMENT\"], with double quotes, or without brackets";

/// Reads the arguments of an instruction.
pub(crate) fn array(text: &str) -> Array {
    let Some(inner) = text.strip_prefix('[') else { return Array::None };
    if let Ok(words) = serde_json::from_str::<Vec<String>>(text) {
        return Array::Words(words);
    }
    // Dockerfiles take these for a command of the shell, which is never what they mean. `[ -f x ]` is one, and `[ab].txt` is a
    // pattern of files.
    let is_other = serde_json::from_str::<Vec<IgnoredAny>>(text).is_ok();
    if inner.starts_with(QUOTES) || is_list(inner) || is_other { Array::Broken } else { Array::None }
}

/// Returns whether a text begins with something in quotes and a comma.
fn is_list(text: &str) -> bool {
    let text = text.trim_start();
    let Some(quote) = text.chars().next().filter(|first| QUOTES.contains(first)) else { return false };
    text[1..].split_once(quote).is_some_and(|(_, after)| after.trim_start().starts_with(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_told_from_commands() {
        assert_eq!(array(r#"["a", "b \"c\""]"#), Array::Words(vec!["a".into(), "b \"c\"".into()]));
        assert_eq!(array("[ ]"), Array::Words(vec![]));
        for text in ["a", "", "[ -f x ] && y", "[ \"$A\" = \"b,c\" ]", "[ab]*.txt /x/", "[", "[a]"] {
            assert_eq!(array(text), Array::None, "{text}");
        }
        for text in [
            "['a', 'b']",
            "[ 'a' , 'b' ]",
            "[ \"a\", \"b\"",
            "[\"a\"",
            "[\"a\" \"b\"]",
            "[1]",
            "[\"a\", 1]",
            "[[]]",
            "[\"a\"] b",
        ] {
            assert_eq!(array(text), Array::Broken, "{text}");
        }
    }
}
