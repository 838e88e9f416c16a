// SPDX-License-Identifier: Apache-2.0
//! ENV and ARG.

use std::collections::BTreeMap;

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    limits,
    lines::Line,
    step::{Variable, Variables},
    text::Text,
    words::{Word, words},
};

use super::{
    options::options,
    value::{all, text},
};

/// Reads ENV.
pub(super) fn assigned(line: &Line) -> Result<Variables, Vec<RecipeError>> {
    let (_, rest) = options(line, &[], &[])?;
    let words = words(&line.text, rest, line.escape);
    let Some(first) = words.first() else {
        return Err(line.wrong(Code::Missing, "there is no variable: write NAME=VALUE").into());
    };
    if !first.raw.contains('=') {
        return Ok(Variables { variables: vec![legacy(line, *first)?] });
    }
    Ok(Variables { variables: all(words.iter().map(|word| assignment(line, *word)))? })
}

/// Reads ARG. Without a value, a variable has that of `globals`, which are before FROM.
pub(super) fn declared(
    line: &Line,
    globals: &BTreeMap<String, String>,
) -> Result<Variables, Vec<RecipeError>> {
    let (_, rest) = options(line, &[], &[])?;
    let words = words(&line.text, rest, line.escape);
    if words.is_empty() {
        return Err(line.wrong(Code::Missing, "there is no variable: write NAME=VALUE").into());
    }
    let variable = |word: &Word<'_>| -> Result<Variable, RecipeError> {
        if word.raw.contains('=') {
            return assignment(line, *word);
        }
        let name = checked_name(line, word.at, word.raw)?;
        let message = format!("a recipe is built without arguments: write {name}=VALUE");
        let value = globals.get(&name).ok_or_else(|| line.error(word.at, Code::Missing, message))?;
        let value = Text::literal(value.as_str());
        Ok(Variable { name, value })
    };
    Ok(Variables { variables: all(words.iter().map(variable))? })
}

/// Reads `ENV NAME VALUE`, where the value is all that follows.
fn legacy(line: &Line, first: Word<'_>) -> Result<Variable, RecipeError> {
    let name = checked_name(line, first.at, first.raw)?;
    let raw = line.text[first.end()..].trim_start();
    let at = line.text.len() - raw.len();
    if raw.is_empty() {
        let message = format!("{name} has no value: write {name}=VALUE, or {name}= for an empty one");
        return Err(line.error(first.at, Code::Missing, message));
    }
    if raw.starts_with('=') {
        let message = format!("the value would begin with \"=\": write {name}=VALUE without spaces");
        return Err(line.error(at, Code::Name, message));
    }
    Ok(Variable { name, value: text(line, Word { at, raw })? })
}

fn assignment(line: &Line, word: Word<'_>) -> Result<Variable, RecipeError> {
    let Some((name, raw)) = word.raw.split_once('=') else {
        let message = format!("{} is no NAME=VALUE: put quotes around a value with spaces", shown(word.raw));
        return Err(line.error(word.at, Code::Missing, message));
    };
    let name = checked_name(line, word.at, name)?;
    let value = text(line, Word { at: word.end() - raw.len(), raw })?;
    Ok(Variable { name, value })
}

fn checked_name(line: &Line, at: usize, name: &str) -> Result<String, RecipeError> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.len() <= limits::NAME_BYTES && name.starts_with(first) && name.chars().all(rest) {
        return Ok(name.to_owned());
    }
    let message = format!(
        "{} is not the name of a variable: it has 1 to {} letters, digits, '_', '.' or '-', and begins with a letter or '_'",
        shown(name),
        limits::NAME_BYTES
    );
    Err(line.error(at, Code::Name, message))
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn variables_are_assigned() {
        for (recipe, expected) in [
            ("ENV A=1", "ENV A=1"),
            ("ENV A= B=\"\" discovery.type=x", "ENV A=\"\" B=\"\" discovery.type=x"),
            ("ENV A=b\\ c \\\n  # c\n D='$E'\"$F\"g", "ENV A=\"b c\" D=\"\\$E${F}g\""),
            ("ENV A b=c  \"d\"", "ENV A=\"b=c  d\""),
            ("ENV PATH /opt/bin:$PATH", "ENV PATH=\"/opt/bin:${PATH}\""),
            ("ENV A=${B:-${C+x}}", "ENV A=\"${B:-${C+x}}\""),
            ("ENV A='x\ty' a-b=--", "ENV A=\"x\ty\" a-b=\"--\""),
            ("ARG A=1 B=$A", "ARG A=1 B=\"${A}\""),
        ] {
            assert_eq!(printed(recipe), format!("{expected}\n"));
        }
    }

    #[test]
    fn arguments_before_from_are_for_from() {
        let source = "ARG V=3.12\nARG W=$V-slim\nFROM python:${W}\nARG V\nARG X=$V\n";
        assert_eq!(printed(source), "FROM python:3.12-slim\nARG V=3.12\nARG X=\"${V}\"\n");
        assert_eq!(refused("ARG V=1\nFROM a:$V\nARG W"), ["3:5 missing"]);
        assert_eq!(refused("ARG V\nFROM a:1"), ["1:5 missing"]);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("ENV", "1:1 missing"),
            ("ENV A", "1:5 missing"),
            ("ENV A = b", "1:7 name"),
            ("ENV 1A=b", "1:5 name"),
            ("ENV A=b c", "1:9 missing"),
            ("ENV A=b  é=c", "1:10 name"),
            ("ENV \"A B\"=c", "1:5 name"),
            ("ENV A='b", "1:7 quote"),
            ("ENV A=b \\\n  B=\"c$1\"", "2:7 variable"),
            ("ENV A=${B", "1:7 variable"),
            ("ENV --x A=b", "1:5 flag"),
            ("ARG", "1:1 missing"),
            ("ARG A", "1:5 missing"),
            ("ARG $A=b", "1:5 name"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
        assert_eq!(refused("ENV A=1 2=3 B=$$ C"), ["1:9 name", "1:15 variable", "1:18 missing"]);
    }
}
