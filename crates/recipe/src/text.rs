// SPDX-License-Identifier: Apache-2.0
//! Texts with variables, which are expanded when a step runs: only then is the environment of the base known.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Problem, RecipeErrorCode as Code},
    limits,
};

/// Escape character, unless a directive of the recipe names another one.
pub(crate) const ESCAPE: char = '\\';
/// What follows a dollar sign in the special parameters of a shell.
const SPECIAL: &str = "@*#?-$!";

// What gets an escape character when it is printed: without quotes, within `${…}`, in double quotes, in a heredoc.
const BARE: &[char] = &['\\', '$', '"', '\''];
const NESTED: &[char] = &['\\', '$', '"', '\'', '}'];
const QUOTED: &[char] = &['\\', '$', '"'];
const DOCUMENT: &[char] = &['\\', '$'];

/// A text with variables in the forms `$NAME`, `${NAME}`, `${NAME:-TEXT}`, `${NAME-TEXT}`, `${NAME:+TEXT}` and
/// `${NAME+TEXT}`. As a string it is what stands in a recipe without quotes, as `${HOME}/\$5`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(Vec<Piece>);

/// Error of a text that is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the text is malformed: {0}")]
pub struct TextError(String);

// Two literals never follow each other, and none is empty, so that equal texts are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    Literal(String),
    Variable { name: String, instead: Option<Instead> },
}

/// The text that a variable stands for instead of its value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Instead {
    /// Whether it is used if the variable is set, or if it is not.
    if_set: bool,
    /// Whether a variable with an empty value counts as not set.
    empty_is_unset: bool,
    text: Text,
}

impl Text {
    /// Makes a text without variables.
    pub fn literal(text: impl Into<String>) -> Self {
        let text = text.into();
        Self(if text.is_empty() { Vec::new() } else { vec![Piece::Literal(text)] })
    }

    /// Returns the text if it has no variables.
    pub fn as_literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Reads a text with quotes.
    pub(crate) fn read(source: &str, escape: char) -> Result<Self, Problem> {
        Reader { source, at: 0, escape, quotes: true, depth: 0 }.until(None, 0)
    }

    /// Reads a heredoc, in which quotes are characters like others.
    pub(crate) fn read_document(source: &str) -> Result<Self, Problem> {
        Reader { source, at: 0, escape: ESCAPE, quotes: false, depth: 0 }.until(None, 0)
    }

    /// Replaces the variables by what `get` returns, those that are not set by nothing. `None` if the result has more than
    /// `limit` bytes.
    pub(crate) fn expand<'v, F>(&self, get: &F, limit: usize) -> Option<String>
    where
        F: Fn(&str) -> Option<&'v str>,
    {
        let mut expanded = String::new();
        self.expand_into(get, limit, &mut expanded).then_some(expanded)
    }

    fn expand_into<'v, F>(&self, get: &F, limit: usize, into: &mut String) -> bool
    where
        F: Fn(&str) -> Option<&'v str>,
    {
        self.0.iter().all(|piece| {
            match piece {
                Piece::Literal(text) => into.push_str(text),
                Piece::Variable { name, instead: None } => into.push_str(get(name).unwrap_or_default()),
                Piece::Variable { name, instead: Some(instead) } => {
                    let value = get(name).filter(|value| !(instead.empty_is_unset && value.is_empty()));
                    match value {
                        Some(value) if !instead.if_set => into.push_str(value),
                        None if instead.if_set => {}
                        _ => return instead.text.expand_into(get, limit, into),
                    }
                }
            }
            into.len() <= limit
        })
    }

    /// Prints the text as one word of an instruction, in quotes if it needs them.
    pub(crate) fn word(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+,=-".contains(c);
        match self.as_literal() {
            // A word that begins with a dash could be a flag.
            Some(text) if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) => {
                text.to_owned()
            }
            _ => format!("\"{}\"", self.printed(QUOTED)),
        }
    }

    /// Prints the text as a heredoc whose delimiter has no quotes.
    pub(crate) fn document(&self) -> String {
        self.printed(DOCUMENT)
    }

    fn printed(&self, escaped: &[char]) -> String {
        let mut printed = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => escape_into(&mut printed, text, escaped),
                Piece::Variable { name, instead } => {
                    printed.push_str("${");
                    printed.push_str(name);
                    if let Some(instead) = instead {
                        printed.push_str(if instead.empty_is_unset { ":" } else { "" });
                        printed.push(if instead.if_set { '+' } else { '-' });
                        printed.push_str(&instead.text.printed(NESTED));
                    }
                    printed.push('}');
                }
            }
        }
        printed
    }

    fn push(&mut self, next: char) {
        if let Some(Piece::Literal(text)) = self.0.last_mut() {
            text.push(next);
        } else {
            self.0.push(Piece::Literal(next.to_string()));
        }
    }
}

fn escape_into(printed: &mut String, text: &str, escaped: &[char]) {
    for next in text.chars() {
        if escaped.contains(&next) {
            printed.push(ESCAPE);
        }
        printed.push(next);
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printed(BARE))
    }
}

impl FromStr for Text {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        Self::read(text, ESCAPE).map_err(|problem| TextError(problem.message))
    }
}

struct Reader<'a> {
    source: &'a str,
    at: usize,
    escape: char,
    /// Whether quotes have a meaning.
    quotes: bool,
    /// Number of `${…}` around.
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Reads up to a character outside of quotes and takes that, too, or up to the end. What has to be closed by the
    /// character begins at `start`.
    fn until(&mut self, stop: Option<char>, start: usize) -> Result<Text, Problem> {
        let mut text = Text::default();
        while let Some(next) = self.peek() {
            let at = self.at;
            if Some(next) == stop {
                self.take();
                return Ok(text);
            }
            match next {
                '\'' if self.quotes => self.single(&mut text)?,
                '"' if self.quotes => self.double(&mut text)?,
                '$' => self.variable(&mut text)?,
                _ => {
                    self.take();
                    let escaped = next == self.escape;
                    let next = if escaped { self.take() } else { Some(next) };
                    let nothing = || {
                        let message = format!(
                            "the \"{next}\" at the end escapes nothing: write it twice",
                            next = self.escape
                        );
                        Problem::new(at, Code::Quote, message)
                    };
                    text.push(next.ok_or_else(nothing)?);
                }
            }
        }
        match stop {
            None => Ok(text),
            Some(_) => Err(Problem::new(start, Code::Variable, "the \"${\" is not closed: add the \"}\"")),
        }
    }

    fn single(&mut self, text: &mut Text) -> Result<(), Problem> {
        let start = self.at;
        self.take();
        while let Some(next) = self.take() {
            if next == '\'' {
                return Ok(());
            }
            text.push(next);
        }
        Err(open_quote(start, '\''))
    }

    fn double(&mut self, text: &mut Text) -> Result<(), Problem> {
        let start = self.at;
        self.take();
        while let Some(next) = self.peek() {
            match next {
                '"' => {
                    self.take();
                    return Ok(());
                }
                '$' => self.variable(text)?,
                _ => {
                    self.take();
                    let after = self.peek().filter(|after| "\"$".contains(*after) || *after == self.escape);
                    if next == self.escape && after.is_some() {
                        self.take();
                    }
                    text.push(after.filter(|_| next == self.escape).unwrap_or(next));
                }
            }
        }
        Err(open_quote(start, '"'))
    }

    fn variable(&mut self, text: &mut Text) -> Result<(), Problem> {
        let start = self.at;
        self.take();
        if self.peek() == Some('{') {
            self.take();
            let piece = self.braces(start)?;
            text.0.push(piece);
            return Ok(());
        }
        let name = self.name();
        if !name.is_empty() {
            text.0.push(Piece::Variable { name: name.to_owned(), instead: None });
            return Ok(());
        }
        match self.peek() {
            Some(next) if next.is_alphanumeric() || SPECIAL.contains(next) => {
                let message = format!(
                    "\"${next}\" names no variable: put \"{escape}\" before the dollar sign, or single quotes around the text",
                    escape = self.escape
                );
                Err(Problem::new(start, Code::Variable, message))
            }
            _ => {
                text.push('$');
                Ok(())
            }
        }
    }

    /// Reads what follows `${`.
    fn braces(&mut self, start: usize) -> Result<Piece, Problem> {
        let wrong = |message: &str| Problem::new(start, Code::Variable, message);
        let name = self.name().to_owned();
        if name.is_empty() {
            return Err(wrong(
                "\"${\" needs the name of a variable: letters, digits and '_', not first a digit",
            ));
        }
        let first = self.take();
        let empty_is_unset = first == Some(':');
        let operator = if empty_is_unset { self.take() } else { first };
        let if_set = match operator {
            Some('}') if !empty_is_unset => return Ok(Piece::Variable { name, instead: None }),
            Some('-') => false,
            Some('+') => true,
            None => return Err(wrong("the \"${\" is not closed: add the \"}\"")),
            Some(_) => {
                return Err(wrong(
                    "after the name in \"${…}\" there can be :-TEXT, -TEXT, :+TEXT or +TEXT: do anything else in a RUN",
                ));
            }
        };
        if self.depth == limits::NESTED {
            let message =
                format!("more than {} variables are within each other: set one before", limits::NESTED);
            return Err(Problem::new(start, Code::Limit, message));
        }
        self.depth += 1;
        let text = self.until(Some('}'), start)?;
        self.depth -= 1;
        Ok(Piece::Variable { name, instead: Some(Instead { if_set, empty_is_unset, text }) })
    }

    fn name(&mut self) -> &'a str {
        let source: &'a str = self.source;
        let rest = &source[self.at..];
        let begins = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = if begins { &rest[..end] } else { "" };
        self.at += name.len();
        name
    }

    fn peek(&self) -> Option<char> {
        self.source[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }
}

fn open_quote(at: usize, quote: char) -> Problem {
    Problem::new(
        at,
        Code::Quote,
        format!("the {quote} is not closed: add the second one, or put an escape character before it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &Text) -> String {
        let get = |name: &str| match name {
            "A" => Some("1 2"),
            "EMPTY" => Some(""),
            _ => None,
        };
        text.expand(&get, 1000).unwrap()
    }

    #[test]
    fn variables_are_replaced_as_in_dockerfiles() {
        for (source, expected) in [
            ("a$A-b", "a1 2-b"),
            ("${A}x", "1 2x"),
            ("$NONE.", "."),
            (r"\$A \${A}", "$A ${A}"),
            ("'$A' \"$A\"", "$A 1 2"),
            ("${EMPTY:-x}${EMPTY-y}", "x"),
            ("${NONE:-x}${NONE-y}", "xy"),
            ("${EMPTY:+x}${EMPTY+y}${NONE:+z}${A:+w}", "yw"),
            ("${NONE:-a ${A} 'b}'}c", "a 1 2 b}c"),
            (r#"${NONE:-\}"}"}"#, "}}"),
            ("a$ $(b) $/", "a$ $(b) $/"),
            (r#""a\"b\\c\d" \e'\f'"#, r#"a"b\c\d e\f"#),
            ("", ""),
            ("''", ""),
        ] {
            let text = Text::read(source, ESCAPE).unwrap();
            assert_eq!(expanded(&text), expected, "{source}");
            assert_eq!(Text::read(&text.to_string(), ESCAPE), Ok(text.clone()), "{source}");
            assert_eq!(Text::read(&text.word(), ESCAPE), Ok(text.clone()), "{source}");
            assert_eq!(Text::read_document(&text.document()), Ok(text), "{source}");
        }
    }

    #[test]
    fn other_escape_characters_leave_backslashes_alone() {
        let text = Text::read(r"C:\a`$b`` c", '`').unwrap();
        assert_eq!(text.as_literal(), Some(r"C:\a$b` c"));
        assert_eq!(text.word(), r#""C:\\a\$b` c""#);
    }

    #[test]
    fn in_heredocs_quotes_are_kept() {
        let text = Text::read_document("'it's' \"$A\"\\n\\\\\n").unwrap();
        assert_eq!(expanded(&text), "'it's' \"1 2\"n\\\n");
    }

    #[test]
    fn malformed_texts_are_refused_with_the_place() {
        for (source, at, code) in [
            ("a 'b", 2, Code::Quote),
            ("ä\"b", 2, Code::Quote),
            ("a\\", 1, Code::Quote),
            ("a $1", 2, Code::Variable),
            ("$$", 0, Code::Variable),
            ("$é", 0, Code::Variable),
            ("a${b", 1, Code::Variable),
            ("${}", 0, Code::Variable),
            ("${:-a}", 0, Code::Variable),
            ("${A:}", 0, Code::Variable),
            ("${A:?x}", 0, Code::Variable),
            ("${A#x}", 0, Code::Variable),
            ("${A%x}", 0, Code::Variable),
            ("${A/x/y}", 0, Code::Variable),
            ("x${A:-${B}", 1, Code::Variable),
        ] {
            let problem = Text::read(source, ESCAPE).unwrap_err();
            assert_eq!((problem.at, problem.code), (at, code), "{source}");
        }
    }

    #[test]
    fn depth_and_size_are_limited() {
        let nested = |depth: usize| format!("{}{}", "${A:-".repeat(depth), "}".repeat(depth));
        assert!(Text::read(&nested(limits::NESTED), ESCAPE).is_ok());
        let problem = Text::read(&nested(limits::NESTED + 1), ESCAPE).unwrap_err();
        assert_eq!(problem.code, Code::Limit);
        let text = Text::read("$A$A", ESCAPE).unwrap();
        let get = |_: &str| Some("123");
        assert_eq!((text.expand(&get, 6), text.expand(&get, 5)), (Some("123123".to_owned()), None));
    }

    #[test]
    fn words_have_quotes_only_if_they_need_them() {
        for (literal, word) in [
            ("/a/b.c", "/a/b.c"),
            ("", "\"\""),
            ("-a", "\"-a\""),
            ("a b", "\"a b\""),
            ("<<A", "\"<<A\""),
            ("ä", "\"ä\""),
        ] {
            assert_eq!(Text::literal(literal).word(), word);
        }
    }
}
