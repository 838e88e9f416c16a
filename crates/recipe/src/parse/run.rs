// SPDX-License-Identifier: Apache-2.0
//! RUN.

use std::collections::BTreeSet;

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, shown},
    lines::Line,
    secret::{self, Secret},
    step::{Instruction, Run},
    words::Word,
};

use super::{
    command::{command, in_shell},
    options::options,
    value::{literal, positive},
};

const FLAGS: &[&str] = &["timeout", "secret", "mount"];
const REFUSED: &[(&str, &str)] = &[
    ("network", "leave it out, as steps reach the internet"),
    ("security", "leave it out, as a step has its microVM for itself"),
];

/// What to write instead of a mount that is no secret.
const NO_MOUNT: &str = "recipes have no --mount but of secrets: use COPY for files, and leave a cache out, as steps that did not \
    change are not run again";

/// Reads RUN.
pub(super) fn run(line: &Line, shell: Option<&[String]>) -> Result<Instruction, Vec<RecipeError>> {
    let (flags, rest) = options(line, FLAGS, REFUSED)?;
    let (mut timeout, mut secrets, mut errors) = (None, BTreeSet::new(), Vec::new());
    for flag in flags {
        let checked = match flag.name {
            "timeout" => positive(line, flag.value).map(|period| timeout = Some(period)),
            "mount" => add_mount(line, flag.value, &mut secrets),
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

fn add_secrets(line: &Line, word: Word<'_>, secrets: &mut BTreeSet<Secret>) -> Result<(), RecipeError> {
    let text = literal(line, word)?;
    let found = secret::list(&text).map_err(|error| line.error(word.at, error.code, error.to_string()))?;
    found.into_iter().try_for_each(|secret| add(line, word, secret, secrets))
}

fn add_mount(line: &Line, word: Word<'_>, secrets: &mut BTreeSet<Secret>) -> Result<(), RecipeError> {
    let text = literal(line, word)?;
    match secret::mount(&text).map_err(|error| line.error(word.at, error.code, error.to_string()))? {
        Some(secret) => add(line, word, secret, secrets),
        // It begins where the flag does.
        None => Err(line.error(word.at - "--mount=".len(), Code::Unsupported, NO_MOUNT)),
    }
}

fn add(
    line: &Line,
    word: Word<'_>,
    secret: Secret,
    secrets: &mut BTreeSet<Secret>,
) -> Result<(), RecipeError> {
    if secrets.iter().any(|other| other.id == secret.id) {
        let message = format!("the secret {} is there twice: remove one", shown(&secret.id));
        return Err(line.error(word.at, Code::Flag, message));
    }
    let path = secret.path();
    if secrets.iter().any(|other| other.path() == path) {
        let message = format!("two secrets would be at {}: give one of them another target", shown(&path));
        return Err(line.error(word.at, Code::Flag, message));
    }
    secrets.insert(secret);
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
            "RUN --secret=b --secret=a,target=/root/.npmrc,required=false npm ci",
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
            ("RUN --mount=target=/x a", "1:5 unsupported"),
            ("RUN --mount a", "1:5 flag"),
            ("RUN --mount=type=secret a", "1:13 flag"),
            ("RUN --mount=type=secret,id=a,env=A a", "1:13 unsupported"),
            ("RUN --mount=type=secret,id=a --secret=a a", "1:39 flag"),
            ("RUN --secret=a,target=/x --secret=b,target=/x a", "1:35 flag"),
            ("RUN --secret=a,env=A a", "1:14 unsupported"),
            ("RUN --secret=target=/x a", "1:14 flag"),
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
