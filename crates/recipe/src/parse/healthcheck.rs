// SPDX-License-Identifier: Apache-2.0
//! HEALTHCHECK.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
    step::{Command, Healthcheck},
    words::{Word, next_word},
};

use super::{
    command::inline_command,
    options::{Given, options},
    value::{literal, period, positive},
};

const FLAGS: &[&str] = &["interval", "timeout", "start-period", "retries"];
const REFUSED: &[(&str, &str)] = &[("start-interval", "write --interval, which holds from the start on")];

/// Maximum number of failures in a row.
const RETRIES: u32 = 1000;

/// Reads HEALTHCHECK.
pub(super) fn healthcheck(line: &Line) -> Result<Healthcheck, Vec<RecipeError>> {
    let (flags, rest) = options(line, FLAGS, REFUSED)?;
    let (mut interval, mut timeout, mut start_period, mut retries) = (None, None, None, None);
    let mut errors = Vec::new();
    for Given { name, value } in flags {
        let checked = match name {
            "interval" => positive(line, value).map(|period| interval = Some(period)),
            "timeout" => positive(line, value).map(|period| timeout = Some(period)),
            "start-period" => period(line, value).map(|period| start_period = Some(period)),
            _ => count(line, value).map(|count| retries = Some(count)),
        };
        errors.extend(checked.err());
    }
    match command(line, rest) {
        Ok(command) if errors.is_empty() => {
            Ok(Healthcheck { command, interval, timeout, start_period, retries })
        }
        command => {
            errors.extend(command.err());
            Err(errors)
        }
    }
}

fn command(line: &Line, rest: usize) -> Result<Command, RecipeError> {
    let Some(kind) = next_word(&line.text, rest, line.escape) else {
        return Err(line.wrong(Code::Missing, "there is no check: write CMD and a command"));
    };
    if kind.raw.eq_ignore_ascii_case("none") {
        let message = "a recipe has no check unless it says one: remove the line";
        return Err(line.error(kind.at, Code::Unsupported, message));
    }
    if !kind.raw.eq_ignore_ascii_case("cmd") {
        let message = format!("{} is not CMD: write CMD before the command of the check", shown(kind.raw));
        return Err(line.error(kind.at, Code::Missing, message));
    }
    let at = line.text.len() - line.text[kind.end()..].trim_start().len();
    inline_command(line, at)
}

fn count(line: &Line, word: Word<'_>) -> Result<u32, RecipeError> {
    let text = literal(line, word)?;
    let count =
        text.parse::<u32>().ok().filter(|count| (1..=RETRIES).contains(count) && !text.starts_with('+'));
    let message = format!("{} is not a number of failures: write one from 1 to {RETRIES}", shown(&text));
    count.ok_or_else(|| line.error(word.at, Code::Flag, message))
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn a_check_has_times_and_a_command() {
        for (recipe, expected) in [
            (
                "HEALTHCHECK CMD curl -f http://localhost/ || exit 1",
                "HEALTHCHECK CMD curl -f http://localhost/ || exit 1",
            ),
            ("HEALTHCHECK cmd [\"a\", \"b c\"]", "HEALTHCHECK CMD [\"a\",\"b c\"]"),
            (
                "HEALTHCHECK --retries=3 --timeout=500ms --start-period=0 --interval=90s CMD --x",
                "HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0s --retries=3 CMD --x",
            ),
            ("HEALTHCHECK CMD a\nRUN b", "RUN b\nHEALTHCHECK CMD a"),
        ] {
            assert_eq!(printed(recipe), format!("{expected}\n"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("HEALTHCHECK", "1:1 missing"),
            ("HEALTHCHECK CMD", "1:1 missing"),
            ("HEALTHCHECK curl x", "1:13 missing"),
            ("HEALTHCHECK NONE", "1:13 unsupported"),
            ("HEALTHCHECK --interval=0s CMD a", "1:24 duration"),
            ("HEALTHCHECK --retries=0 CMD a", "1:23 flag"),
            ("HEALTHCHECK --start-interval=1s CMD a", "1:13 unsupported"),
            ("HEALTHCHECK CMD a <<B\nRUN c\nB", "1:19 heredoc"),
            ("HEALTHCHECK CMD a\nHEALTHCHECK CMD b", "2:1 repeated"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
    }
}
