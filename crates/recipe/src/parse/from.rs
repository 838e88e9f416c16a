// SPDX-License-Identifier: Apache-2.0
//! FROM.

use std::collections::BTreeMap;

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    limits,
    lines::Line,
    reference::Base,
    step::Instruction,
    words::words,
};

use super::{options::options, value::text};

const REFUSED: &[(&str, &str)] =
    &[("platform", "leave it out, as an image is always that of the host's architecture")];

/// Reads FROM, in which the ARG before it are expanded.
pub(super) fn from(line: &Line, globals: &BTreeMap<String, String>) -> Result<Instruction, Vec<RecipeError>> {
    let (_, rest) = options(line, &[], REFUSED)?;
    let words = words(&line.text, rest, line.escape);
    let word = match words.as_slice() {
        [] => {
            let message = "there is no template or image: write one, such as template:minimal or python:3.12";
            return Err(line.wrong(Code::Missing, message).into());
        }
        [word] => *word,
        [_, name, ..] if name.raw.eq_ignore_ascii_case("as") => {
            let message = "a recipe has one stage, which has no name: remove AS and the name";
            return Err(line.error(name.at, Code::Unsupported, message).into());
        }
        [_, other, ..] => {
            let message = "FROM takes one template or image: remove the rest";
            return Err(line.error(other.at, Code::Excess, message).into());
        }
    };
    let get = |name: &str| globals.get(name).map(String::as_str);
    let base = text(line, word)?.expand(&get, limits::PATH_BYTES).unwrap_or_default();
    let base = base.parse::<Base>().map_err(|error| line.error(word.at, Code::Base, error.to_string()))?;
    Ok(Instruction::From { base })
}

/// The error of a FROM that is not the first instruction.
pub(super) fn misplaced(line: &Line, is_there: bool) -> RecipeError {
    if is_there {
        let message = "a recipe has one stage, and this is its second FROM: build what the stage before makes with RUN, or make \
             a template of its own of it";
        return line.wrong(Code::Repeated, message);
    }
    line.wrong(Code::Order, "only ARG can be before FROM: make it the first instruction")
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn a_recipe_starts_from_a_template_or_an_image() {
        for base in [
            "template:minimal",
            "template:py:v1",
            "python:3.12-slim",
            "Mine",
            "ghcr.io/a/b:c",
            "localhost:5000/a",
        ] {
            assert_eq!(printed(&format!("FROM {base}")), format!("FROM {base}\n"));
        }
        assert_eq!(printed("ARG I=python\nARG T\\\n=3\nfrom \"$I\":${T:-4}"), "FROM python:3\n");
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("FROM", "1:1 missing"),
            ("FROM template:../x", "1:6 base"),
            ("FROM a b", "1:8 excess"),
            ("FROM a aS b", "1:8 unsupported"),
            ("FROM --platform=linux/amd64 a", "1:6 unsupported"),
            ("FROM python:$V", "1:6 base"),
            ("FROM 'a", "1:6 quote"),
            ("RUN a\nFROM b", "2:1 order"),
            ("FROM a\nRUN b\nFROM c", "3:1 repeated"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
    }
}
