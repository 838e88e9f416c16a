// SPDX-License-Identifier: Apache-2.0
//! Values in instructions: words as texts, durations, and all of several results.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    limits,
    lines::Line,
    period::Period,
    text::Text,
    words::Word,
};

/// Reads a word as a text with variables.
pub(super) fn text(line: &Line, word: Word<'_>) -> Result<Text, RecipeError> {
    let text = Text::read(word.raw, line.escape);
    text.map_err(|problem| line.error(word.at + problem.at, problem.code, problem.message))
}

/// Reads a word in which nothing is expanded.
pub(super) fn literal(line: &Line, word: Word<'_>) -> Result<String, RecipeError> {
    let text = text(line, word)?;
    let message = "variables are not expanded here: write the value";
    text.as_literal().map(str::to_owned).ok_or_else(|| line.error(word.at, Code::Variable, message))
}

/// Reads a duration.
pub(super) fn period(line: &Line, word: Word<'_>) -> Result<Period, RecipeError> {
    let period = literal(line, word)?.parse::<Period>();
    period.map_err(|error| line.error(word.at, Code::Duration, error.to_string()))
}

/// Reads a duration that is not zero.
pub(super) fn positive(line: &Line, word: Word<'_>) -> Result<Period, RecipeError> {
    let period = period(line, word)?;
    if period.is_zero() {
        return Err(line.error(
            word.at,
            Code::Duration,
            "the duration is zero: write a longer one, such as 30s",
        ));
    }
    Ok(period)
}

/// Returns all values, or all errors: no more than make it known that there are too many.
pub(super) fn all<T>(
    results: impl Iterator<Item = Result<T, RecipeError>>,
) -> Result<Vec<T>, Vec<RecipeError>> {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
        if errors.len() > limits::ERRORS {
            break;
        }
    }
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}
