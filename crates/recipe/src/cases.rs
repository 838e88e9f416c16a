// SPDX-License-Identifier: Apache-2.0
//! What tests of instructions ask: how a recipe is printed, and where and why it is refused.

use crate::parse;

/// Parses a recipe and prints it.
pub(crate) fn printed(source: &str) -> String {
    match parse(source.as_bytes()) {
        Ok(recipe) => recipe.to_string(),
        Err(errors) => panic!("{source:?} is refused: {errors}"),
    }
}

/// Returns place and code of every error of a recipe, as `1:5 path`.
pub(crate) fn refused(source: &str) -> Vec<String> {
    let Err(errors) = parse(source.as_bytes()) else { panic!("{source:?} is not refused") };
    errors.errors.iter().map(|error| format!("{}:{} {}", error.line, error.column, error.code)).collect()
}
