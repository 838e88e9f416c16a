// SPDX-License-Identifier: Apache-2.0
//! A recipe as it is written: found, read, checked before anything is sent, and shown where something is wrong with it.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use wrenn_recipe::{Instruction, Recipe, RecipeErrors, Source as Copied, limits, parse};

use crate::failure::Failure;

/// Names of a recipe in the context; the first one that exists is taken.
const NAMES: [&str; 2] = ["Wrennfile", "Dockerfile"];
/// Maximum number of characters that are shown of a line.
const WIDTH: usize = 100;

/// A recipe.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path, as the user knows it.
    name: String,
    text: String,
    recipe: Recipe,
}

impl Source {
    /// Reads a recipe, by default that in the context. Its errors are told with their lines.
    pub(super) fn read(file: Option<&Path>, context: &Path) -> Result<Self> {
        let path = match file {
            Some(file) => file.to_owned(),
            None => found(context)?,
        };
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        // One byte more than it may have, which is then told with its other errors.
        let limit = limits::RECIPE_BYTES as u64 + 1;
        fs::File::open(&path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .with_context(|| format!("cannot read the recipe {name}"))?;
        let parsed = parse(&bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match parsed {
            Ok(recipe) => Ok(Self { name, text, recipe }),
            Err(errors) => Err(Failure::new("invalid_recipe", refused(&name, &text, &errors)).into()),
        }
    }

    /// Returns its text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns whether it copies files of the context.
    pub(super) fn copies_files(&self) -> bool {
        let of_context = |source: &Copied| matches!(source, Copied::Context(_));
        self.recipe.steps.iter().any(|step| match &step.instruction {
            Instruction::Copy(copy) => copy.sources.iter().any(of_context),
            _ => false,
        })
    }

    /// Shows a line of it.
    pub(super) fn line(&self, line: u32) -> Option<String> {
        let shown = excerpt(&self.text, line, None)?;
        Some(format!("{}:{line}\n{shown}", self.name))
    }

    /// Shows the lines that a message of the server names.
    pub(super) fn named_in(&self, message: &str) -> Vec<String> {
        let places = message.lines().filter_map(place);
        let shown = places.filter_map(|(line, column)| {
            let place = column.map_or_else(|| line.to_string(), |column| format!("{line}:{column}"));
            Some(format!("{}:{place}\n{}", self.name, excerpt(&self.text, line, column)?))
        });
        shown.collect()
    }
}

/// Returns the path of the recipe in a context.
fn found(context: &Path) -> Result<PathBuf> {
    for name in NAMES {
        let path = context.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    let message = format!(
        "there is no Wrennfile and no Dockerfile in {}: write one, or name the recipe by -f",
        context.display()
    );
    Err(Failure::new("no_recipe", message).into())
}

/// Tells the errors of a recipe, each with its line and a mark below its column.
fn refused(name: &str, text: &str, errors: &RecipeErrors) -> String {
    let count = errors.errors.len();
    let mut told = match (count, errors.more) {
        (1, false) => "the recipe has an error".to_owned(),
        (count, false) => format!("the recipe has {count} errors"),
        (count, true) => format!("the recipe has more than {count} errors"),
    };
    for error in &errors.errors {
        let (line, column) = (error.line, error.column);
        let _ = write!(told, "\n{name}:{line}:{column}: {}: {}", error.instruction, error.message);
        if let Some(shown) = excerpt(text, line, Some(column)) {
            let _ = write!(told, "\n{shown}");
        }
    }
    told
}

/// Shows a line with its number, and a mark below a column of it.
fn excerpt(text: &str, line: u32, column: Option<u32>) -> Option<String> {
    let text = text.trim_start_matches('\u{feff}').lines().nth(line.checked_sub(1)? as usize)?;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let chars: Vec<char> = text.trim_end().chars().map(plain).collect();
    let at = column.map(|column| (column.saturating_sub(1) as usize).min(chars.len()));
    let from = at.unwrap_or(0).saturating_sub(WIDTH / 2).min(chars.len().saturating_sub(WIDTH));
    let part: String = chars.iter().skip(from).take(WIDTH).collect();
    let mut shown = format!("  {line} | {part}");
    if let Some(at) = at {
        let (margin, mark) = (line.to_string().len(), at - from + 1);
        let _ = write!(shown, "\n  {:margin$} | {:>mark$}", "", "^");
    }
    Some(shown)
}

/// Returns the first place that a text names: `line 3`, or `line 3, column 5`.
fn place(text: &str) -> Option<(u32, Option<u32>)> {
    let (line, rest) = text.split("line ").skip(1).find_map(number)?;
    let column = rest.strip_prefix(", column ").and_then(number);
    Some((line, column.map(|(column, _)| column)))
}

/// Splits a number off.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("Wrennfile"), text)?;
        let source = Source::read(None, dir.path())?;
        Ok(Source { name: "Wrennfile".to_owned(), ..source })
    }

    #[test]
    fn the_recipe_is_found_in_the_context() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let error = Source::read(None, dir.path()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("no Wrennfile and no Dockerfile"), "{error}");
        fs::write(dir.path().join("Dockerfile"), "FROM minimal\nRUN docker\n")?;
        assert!(Source::read(None, dir.path())?.text().contains("docker"));
        fs::write(dir.path().join("Wrennfile"), "FROM minimal\nRUN wrenn\n")?;
        assert!(Source::read(None, dir.path())?.text().contains("wrenn"));
        let other = dir.path().join("Dockerfile");
        assert!(Source::read(Some(&other), dir.path())?.text().contains("docker"));
        assert!(Source::read(Some(&dir.path().join("none")), dir.path()).is_err());
        Ok(())
    }

    #[test]
    fn errors_are_told_with_their_lines_and_a_mark() {
        let text = "FROM minimal\n\tRUN --wrong=1 x\nNOTHING\n";
        let told = source(text).err().map(|error| error.to_string()).unwrap_or_default();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines[0], "the recipe has 2 errors");
        assert!(lines[1].contains("Wrennfile:2:6: RUN: "), "{told}");
        assert_eq!(lines[2..4], ["  2 |  RUN --wrong=1 x", "    |      ^"]);
        assert!(lines[4].contains("Wrennfile:3:1: "), "{told}");
        assert_eq!(lines[5..], ["  3 | NOTHING", "    | ^"]);
    }

    #[test]
    fn long_lines_are_shown_around_the_place() {
        let text = format!("a\n{}x{}\n", "-".repeat(300), "+".repeat(300));
        let shown = excerpt(&text, 2, Some(301)).unwrap_or_default();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0].len(), "  2 | ".len() + WIDTH);
        assert_eq!(lines[0].find('x'), lines[1].find('^'));
        assert_eq!(excerpt("ab", 1, Some(3)).as_deref(), Some("  1 | ab\n    |   ^"));
        assert_eq!(excerpt("ab", 1, Some(900)).as_deref(), Some("  1 | ab\n    |   ^"));
        assert_eq!((excerpt("ab", 2, None), excerpt("ab", 0, None)), (None, None));
    }

    #[test]
    fn lines_that_the_server_names_are_shown() -> Result<()> {
        let source = source("FROM minimal\nCOPY app /srv\n")?;
        let message =
            "2 errors:\nline 2, column 6, COPY: app is missing\nstep 1 (line 1) fails\nno line \nline 9";
        let shown = source.named_in(message);
        assert_eq!(
            shown,
            ["Wrennfile:2:6\n  2 | COPY app /srv\n    |      ^", "Wrennfile:1\n  1 | FROM minimal"]
        );
        assert_eq!(source.line(2).as_deref(), Some("Wrennfile:2\n  2 | COPY app /srv"));
        Ok(())
    }

    #[test]
    fn files_are_needed_only_for_copies_of_the_context() -> Result<()> {
        assert!(source("FROM minimal\nCOPY a b /c/\n")?.copies_files());
        assert!(!source("FROM minimal\nCOPY <<a /c\nx\na\nRUN COPY\n")?.copies_files());
        Ok(())
    }
}
