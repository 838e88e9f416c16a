// SPDX-License-Identifier: Apache-2.0
//! Errors of recipes. Each has its place and says what to write instead.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{limits, place::Place};

/// Maximum number of characters that are shown of what a recipe has.
const SHOWN: usize = 48;
/// What an error is about that is not in an instruction.
const RECIPE: &str = "recipe";
/// Maximum length of what can be an instruction.
const KEYWORD: usize = 16;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal;)*) => {
        /// What kind of error. Codes do not change between versions; new ones may be added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum RecipeErrorCode {
            $($(#[doc = $doc])* #[serde(rename = $text)] $name,)*
        }

        impl RecipeErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the code as it stands in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The recipe is not UTF-8, or has a character that no recipe has.
    Character = "character";
    /// Something is larger than its limit.
    Limit = "limit";
    /// A parser directive is not known, repeated or too late.
    Directive = "directive";
    /// The instruction does not exist.
    UnknownInstruction = "unknown_instruction";
    /// The instruction, or this form of it, exists in Dockerfiles but not in recipes.
    Unsupported = "unsupported";
    /// Something is missing.
    Missing = "missing";
    /// There is more than the instruction takes.
    Excess = "excess";
    /// A flag is not known, repeated, or has a wrong value.
    Flag = "flag";
    /// A duration is malformed, or out of range.
    Duration = "duration";
    /// A quote is not closed, or an escape character escapes nothing.
    Quote = "quote";
    /// What follows a dollar sign is not a variable in a supported form.
    Variable = "variable";
    /// A JSON array is malformed, or not one of texts.
    Array = "array";
    /// The name of a variable or a secret is not valid.
    Name = "name";
    /// A user is not valid.
    User = "user";
    /// A mode is not valid.
    Mode = "mode";
    /// A path is not valid.
    Path = "path";
    /// What a recipe starts from is not valid.
    Base = "base";
    /// A port is not valid.
    Port = "port";
    /// A heredoc has no end, or is where none can be.
    Heredoc = "heredoc";
    /// The last line is continued.
    Continuation = "continuation";
    /// The instruction stands where it cannot.
    Order = "order";
    /// The instruction can be there once only.
    Repeated = "repeated";
    /// Two instructions exclude each other.
    Conflict = "conflict";
}

impl fmt::Display for RecipeErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}, column {column}, {instruction}: {message}")]
pub struct RecipeError {
    /// What kind of error, for programs.
    pub code: RecipeErrorCode,
    /// Line, counted from 1.
    pub line: u32,
    /// Column, counted from 1 in characters.
    pub column: u32,
    /// The instruction in capitals, or `recipe` if it is in none.
    pub instruction: String,
    /// What is wrong, and what to write instead. The wording may change between versions.
    pub message: String,
}

impl RecipeError {
    pub(crate) fn new(
        place: Place,
        keyword: &str,
        code: RecipeErrorCode,
        message: impl Into<String>,
    ) -> Self {
        // Anything can stand where an instruction should be.
        let is_keyword =
            (1..=KEYWORD).contains(&keyword.len()) && keyword.bytes().all(|byte| byte.is_ascii_uppercase());
        let instruction = if is_keyword { keyword } else { RECIPE }.to_owned();
        Self { code, line: place.line, column: place.column, instruction, message: message.into() }
    }

    pub(crate) fn of_recipe(place: Place, code: RecipeErrorCode, message: impl Into<String>) -> Self {
        Self::new(place, RECIPE, code, message)
    }
}

// So that `?` works where all errors are gathered.
impl From<RecipeError> for Vec<RecipeError> {
    fn from(error: RecipeError) -> Self {
        vec![error]
    }
}

/// The errors of a recipe, at least one, in the order of their places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeErrors {
    /// The first errors, at most [`limits::ERRORS`].
    pub errors: Vec<RecipeError>,
    /// Whether there are more.
    pub more: bool,
}

impl RecipeErrors {
    pub(crate) fn push(&mut self, error: RecipeError) {
        if self.errors.len() < limits::ERRORS {
            self.errors.push(error);
        } else {
            self.more = true;
        }
    }

    pub(crate) fn sorted(mut self) -> Self {
        self.errors.sort_by_key(|error| (error.line, error.column));
        self
    }
}

impl From<RecipeError> for RecipeErrors {
    fn from(error: RecipeError) -> Self {
        Self { errors: vec![error], more: false }
    }
}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.errors.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        if self.more { f.write_str("\nand more errors") } else { Ok(()) }
    }
}

impl std::error::Error for RecipeErrors {}

/// An error in a text whose place is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Offset in the text, in bytes.
    pub(crate) at: usize,
    pub(crate) code: RecipeErrorCode,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(at: usize, code: RecipeErrorCode, message: impl Into<String>) -> Self {
        Self { at, code, message: message.into() }
    }
}

/// Returns a text for a message: in quotes, escaped, and cut if it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_place_and_its_instruction() {
        let place = Place { line: 3, column: 5 };
        let error = RecipeError::new(place, "RUN", RecipeErrorCode::Missing, "there is no command");
        assert_eq!(error.to_string(), "line 3, column 5, RUN: there is no command");
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["code"], "missing");
        assert_eq!(json["line"], 3);
        let odd = RecipeError::new(place, "\u{1b}[31m", RecipeErrorCode::Missing, "");
        assert_eq!(odd.instruction, "recipe");
    }

    #[test]
    fn codes_are_the_same_in_json_and_text() {
        for code in RecipeErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn the_number_of_errors_is_limited() {
        let mut errors = RecipeErrors::default();
        let place = Place { line: 1, column: 1 };
        for _ in 0..=limits::ERRORS {
            assert!(!errors.more);
            errors.push(RecipeError::of_recipe(place, RecipeErrorCode::Missing, "x"));
        }
        assert!(errors.more && errors.errors.len() == limits::ERRORS);
        assert!(errors.to_string().ends_with("and more errors"));
    }

    #[test]
    fn what_is_shown_is_escaped_and_cut() {
        assert_eq!(shown("a\n"), r#""a\n""#);
        assert_eq!(shown(&"x".repeat(100)).chars().count(), SHOWN + 3);
    }
}
