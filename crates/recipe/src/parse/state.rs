// SPDX-License-Identifier: Apache-2.0
//! WORKDIR, USER and EXPOSE.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
    path,
    step::Instruction,
    text::Text,
    user::User,
    words::{Word, words},
};

use super::{
    options::options,
    value::{all, text},
};

/// Reads WORKDIR.
pub(super) fn workdir(line: &Line) -> Result<Instruction, Vec<RecipeError>> {
    let (at, path) = whole(line, "there is no path: write one, such as /app")?;
    if let Some(literal) = path.as_literal() {
        path::check(literal).map_err(|message| line.error(at, Code::Path, message))?;
    }
    Ok(Instruction::Workdir { path })
}

/// Reads USER.
pub(super) fn user(line: &Line) -> Result<Instruction, Vec<RecipeError>> {
    let (at, user) = whole(line, "there is no user: write one, such as wrenn-user")?;
    check_user(line, at, &user)?;
    Ok(Instruction::User { user })
}

/// Checks a user, if it has no variables.
pub(super) fn check_user(line: &Line, at: usize, user: &Text) -> Result<(), RecipeError> {
    match user.as_literal().map(str::parse::<User>) {
        Some(Err(error)) => Err(line.error(at, Code::User, error.to_string())),
        _ => Ok(()),
    }
}

/// Reads EXPOSE, which makes no step: all ports of a sandbox can be reached.
pub(super) fn expose(line: &Line) -> Result<(), Vec<RecipeError>> {
    let (_, rest) = options(line, &[], &[])?;
    let ports = words(&line.text, rest, line.escape);
    if ports.is_empty() {
        return Err(line.wrong(Code::Missing, "there is no port: write one, or remove the line").into());
    }
    all(ports.iter().map(|port| expose_port(line, *port))).map(drop)
}

fn expose_port(line: &Line, word: Word<'_>) -> Result<(), RecipeError> {
    let text = text(line, word)?;
    // What a variable stands for has no effect either.
    let Some(literal) = text.as_literal() else { return Ok(()) };
    let ports = literal.strip_suffix("/tcp").unwrap_or(literal);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |port: &str| port.parse::<u16>().ok().filter(|number| *number > 0 && !port.starts_with('+'));
    if let (Some(first), Some(last)) = (number(first), number(last))
        && first <= last
    {
        return Ok(());
    }
    let message = format!(
        "{} cannot be exposed: all TCP ports of a sandbox can be reached, so remove it, or write a port from 1 to 65535",
        shown(literal)
    );
    Err(line.error(word.at, Code::Port, message))
}

/// Reads all that follows the instruction as one text; returns its offset, too.
fn whole(line: &Line, missing: &str) -> Result<(usize, Text), Vec<RecipeError>> {
    let (_, at) = options(line, &[], &[])?;
    if at == line.text.len() {
        return Err(line.wrong(Code::Missing, missing).into());
    }
    Ok((at, text(line, Word { at, raw: &line.text[at..] })?))
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn directories_and_users_are_texts() {
        for (recipe, expected) in [
            ("workdir  /a/b ", "WORKDIR /a/b"),
            ("WORKDIR ${HOME}/x", "WORKDIR \"${HOME}/x\""),
            ("WORKDIR \"/a b\"", "WORKDIR \"/a b\""),
            ("WORKDIR -- --x", "WORKDIR \"--x\""),
            ("USER app:100", "USER app:100"),
            ("USER ${U:-app}", "USER \"${U:-app}\""),
            ("USER a\nEXPOSE 80 8000-8010/tcp $P", "USER a"),
        ] {
            assert_eq!(printed(recipe), format!("{expected}\n"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("WORKDIR", "1:1 missing"),
            ("WORKDIR \"\"", "1:9 path"),
            ("WORKDIR /a\u{7}", "1:9 path"),
            ("WORKDIR /a'b", "1:11 quote"),
            ("USER", "1:1 missing"),
            ("USER  a/b", "1:7 user"),
            ("USER :b", "1:6 user"),
            ("USER --x", "1:6 flag"),
            ("EXPOSE", "1:1 missing"),
            ("EXPOSE 80 0", "1:11 port"),
            ("EXPOSE 53/udp", "1:8 port"),
            ("EXPOSE 9-8", "1:8 port"),
            ("EXPOSE +9", "1:8 port"),
            ("EXPOSE 65536", "1:8 port"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
    }
}
