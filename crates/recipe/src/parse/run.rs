// SPDX-License-Identifier: Apache-2.0
//! RUN.

use std::collections::BTreeSet;

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
    step::{Instruction, Run},
    words::Word,
};

use super::{
    command::{command, in_shell},
    options::options,
    value::{literal, positive},
};

const FLAGS: &[&str] = &["timeout", "secret"];
const REFUSED: &[(&str, &str)] = &[
    (
        "mount",
        "write --secret=NAME for a secret, which is then the file /run/secrets/NAME; use COPY for files, and leave a cache out, as \
         steps that did not change are not run again",
    ),
    ("network", "leave it out, as steps reach the internet"),
    ("security", "leave it out, as a step has its microVM for itself"),
];

/// Maximum length of the name of a secret, in bytes.
const SECRET: usize = 64;

/// Reads RUN.
pub(super) fn run(line: &Line, shell: Option<&[String]>) -> Result<Instruction, Vec<RecipeError>> {
    let (flags, rest) = options(line, FLAGS, REFUSED)?;
    let (mut timeout, mut secrets, mut errors) = (None, BTreeSet::new(), Vec::new());
    for flag in flags {
        let checked = match flag.name {
            "timeout" => positive(line, flag.value).map(|period| timeout = Some(period)),
            _ => add_secrets(line, flag.value, &mut secrets),
        };
        errors.extend(checked.err());
    }
    match command(line, rest) {
        Ok(command) if errors.is_empty() => {
            Ok(Instruction::Run(Run { command: in_shell(command, shell), timeout, secrets }))
        }
        command => {
            errors.extend(command.err());
            Err(errors)
        }
    }
}

fn add_secrets(line: &Line, word: Word<'_>, secrets: &mut BTreeSet<String>) -> Result<(), RecipeError> {
    for name in literal(line, word)?.split(',') {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_name =
            (1..=SECRET).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(known);
        if !is_name {
            let message = format!(
                "{} is not the name of a secret: it has 1 to {SECRET} letters, digits, '_', '.' or '-', and begins with none of \
                 the last two; values of secrets do not belong here",
                shown(name)
            );
            return Err(line.error(word.at, Code::Name, message));
        }
        if !secrets.insert(name.to_owned()) {
            let message = format!("the secret {} is there twice: remove one", shown(name));
            return Err(line.error(word.at, Code::Flag, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn commands_have_three_forms() {
        for recipe in [
            "RUN pip install  'a b' && echo $X # not a comment",
            "RUN --timeout=1h30m --secret=npm_token,pip.conf npm ci",
            "RUN [\"a\",\"$B\",\"c\\n\"]",
            "RUN [ -f /x ] && echo \"it's\"",
            "RUN echo a\\\\",
            "RUN <<EOF\nset -e\n\n\techo \"$X\"\nEOF",
            "RUN <<EOF1\nEOF\nEOF1",
            "RUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF",
            "RUN -- --help",
            "RUN echo '#!' <<<x",
        ] {
            assert_eq!(printed(recipe), format!("{recipe}\n"));
        }
        let several = "RUN <<A cat > a && <<-'B' cat > b\n1\nA\n\t2\n\tB\n";
        assert_eq!(printed(several), "RUN <<EOF\n<<A cat > a && <<-'B' cat > b\n1\nA\n\t2\nB\nEOF\n");
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("RUN", "1:1 missing"),
            ("RUN --timeout=5m", "1:1 missing"),
            ("RUN []", "1:1 missing"),
            ("RUN <<A\n\n  \nA", "1:1 missing"),
            ("RUN [\"\"]", "1:5 array"),
            ("RUN [\"a\\u0000\"]", "1:5 array"),
            ("RUN ['a', 'b']", "1:5 array"),
            ("RUN --timeout 5m a", "1:5 flag"),
            ("RUN --timeout=5 a", "1:15 duration"),
            ("RUN --timeout=0 a", "1:15 duration"),
            ("RUN --timeout=$T a", "1:15 variable"),
            ("RUN --timeout=1s --timeout=2s a", "1:18 flag"),
            ("RUN --tiemout=1s a", "1:5 flag"),
            ("RUN --secret=a,../b x", "1:14 name"),
            ("RUN --secret=a,a x", "1:14 flag"),
            ("RUN --secret=a \\\n --secret=,b x", "2:11 name"),
            ("RUN --mount=type=cache,target=/x a", "1:5 unsupported"),
            ("RUN --network=none a", "1:5 unsupported"),
            ("RUN #!/bin/sh", "1:5 heredoc"),
            ("# escape=`\nRUN a \\", "2:5 quote"),
            ("RUN <<A", "1:5 heredoc"),
        ] {
            assert_eq!(refused(recipe)[0], expected, "{recipe}");
        }
        assert_eq!(refused("RUN --timeout=x --secret=- []"), ["1:1 missing", "1:15 duration", "1:26 name"]);
    }
}
