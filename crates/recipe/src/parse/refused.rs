// SPDX-License-Identifier: Apache-2.0
//! Instructions of Dockerfiles that recipes do not have, and words that are no instructions.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
};

/// Instructions of Dockerfiles, with what to write instead.
const REFUSED: &[(&str, &str)] = &[
    ("ADD", "write COPY for files of the context, RUN curl for a download, and RUN tar to unpack an archive"),
    ("LABEL", "a template has no labels: write a comment"),
    ("MAINTAINER", "a template has no labels: write a comment"),
    ("ONBUILD", "write the instruction into the recipes of the templates that start from this one"),
    ("STOPSIGNAL", "a sandbox stops as a whole: remove the line"),
    (
        "VOLUME",
        "all of a sandbox's disk is kept as long as the sandbox: remove the line, and write RUN mkdir for the directory",
    ),
];

const INSTRUCTIONS: &str =
    "FROM, ARG, ENV, WORKDIR, USER, COPY, RUN, START, HEALTHCHECK, SHELL, EXPOSE, CMD and ENTRYPOINT";

/// The error of an instruction that recipes do not have.
pub(super) fn refused(line: &Line) -> RecipeError {
    match REFUSED.iter().find(|(name, _)| *name == line.keyword) {
        Some((name, instead)) => line.wrong(Code::Unsupported, format!("recipes have no {name}: {instead}")),
        None => {
            let message = format!(
                "{} is not an instruction: there are {INSTRUCTIONS}; end the line before with \"{}\" if this continues it",
                shown(&line.keyword),
                line.escape
            );
            line.wrong(Code::UnknownInstruction, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cases::refused;

    #[test]
    fn instructions_of_dockerfiles_are_told_from_mistakes() {
        for recipe in [
            "ADD a /b",
            "ADD <<A /b\nRNU\nA",
            "LABEL a=b",
            "MAINTAINER a",
            "onbuild RUN a",
            "STOPSIGNAL 9",
            "VOLUME /a",
        ] {
            assert_eq!(refused(recipe), ["1:1 unsupported"], "{recipe}");
        }
        for recipe in ["RNU a", "RUN\u{a0}a", "=", "&& a", "RUNa", "é"] {
            assert_eq!(refused(recipe), ["1:1 unknown_instruction"], "{recipe}");
        }
    }
}
