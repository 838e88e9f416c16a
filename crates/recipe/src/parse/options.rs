// SPDX-License-Identifier: Apache-2.0
//! Flags of instructions.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
    words::{Flag, Word, flags},
};

use super::value::all;

/// A flag that an instruction has, with its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) name: &'a str,
    pub(super) value: Word<'a>,
}

/// The flags that may be there several times: their values add up.
const SEVERAL: [&str; 2] = ["secret", "mount"];

/// Reads the flags of an instruction; returns them and the offset of what follows. `known` are those that it has, and
/// `refused` those that it has in Dockerfiles, with what to write instead.
pub(super) fn options<'a>(
    line: &'a Line,
    known: &[&str],
    refused: &[(&str, &str)],
) -> Result<(Vec<Given<'a>>, usize), Vec<RecipeError>> {
    let (found, rest) = flags(&line.text, line.args, line.escape);
    let mut seen = Vec::new();
    let given = all(found.into_iter().map(|flag| given(line, flag, known, refused, &mut seen)))?;
    Ok((given, rest))
}

fn given<'a>(
    line: &Line,
    flag: Flag<'a>,
    known: &[&str],
    refused: &[(&str, &str)],
    seen: &mut Vec<&'a str>,
) -> Result<Given<'a>, RecipeError> {
    let Flag { at, name, value } = flag;
    if let Some((_, instead)) = refused.iter().find(|(other, _)| *other == name) {
        return Err(line.error(at, Code::Unsupported, format!("recipes have no --{name}: {instead}")));
    }
    if !known.contains(&name) {
        let flags: Vec<String> = known.iter().map(|name| format!("--{name}")).collect();
        let has = if flags.is_empty() { "none".to_owned() } else { flags.join(", ") };
        let message = format!(
            "{} is not a flag of {keyword}, which has {has}: remove it, or write \"{keyword} --\" before what is no flag",
            shown(name),
            keyword = line.keyword
        );
        return Err(line.error(at, Code::Flag, message));
    }
    if !SEVERAL.contains(&name) {
        if seen.contains(&name) {
            return Err(line.error(at, Code::Flag, format!("--{name} is there twice: remove one")));
        }
        seen.push(name);
    }
    let value = value.filter(|value| !value.raw.is_empty());
    let value = value.ok_or_else(|| {
        line.error(at, Code::Flag, format!("--{name} has no value: write --{name}=VALUE without spaces"))
    })?;
    Ok(Given { name, value })
}
