// SPDX-License-Identifier: Apache-2.0
//! Prints steps in the one form that all ways of writing them have in common. What is printed is parsed to the same steps.

use std::{collections::BTreeSet, fmt, iter};

use crate::{
    mode::Mode,
    period::Period,
    step::{Command, CopyFiles, Healthcheck, Instruction, Recipe, Run, Source, Start, Step, Variables},
    text::Text,
};

/// Delimiter of heredocs whose name has no meaning.
const DELIMITER: &str = "EOF";

impl Step {
    /// Returns the text of the step for keys of caches. It is the printed form without the timeout, which makes no other
    /// result: without comments, continued lines, and the spaces, quotes and escapes that mean nothing. Within a command all
    /// of it counts, as in Dockerfiles. It does not change between versions.
    pub fn canonical(&self) -> String {
        match &self.instruction {
            Instruction::Run(run) => printed_run(&Run { timeout: None, ..run.clone() }),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instruction.fmt(f)
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keyword = self.keyword();
        match self {
            Self::From { base } => write!(f, "{keyword} {base}"),
            Self::Arg(variables) | Self::Env(variables) => f.write_str(&assignments(keyword, variables)),
            Self::Workdir { path: text } | Self::User { user: text } => {
                write!(f, "{keyword} {}", text.word())
            }
            Self::Copy(copy) => f.write_str(&printed_copy(copy)),
            Self::Run(run) => f.write_str(&printed_run(run)),
            Self::Start(Start { command, .. }) => f.write_str(&with_command(keyword, command)),
            Self::Healthcheck(check) => f.write_str(&printed_check(check)),
        }
    }
}

fn assignments(keyword: &str, variables: &Variables) -> String {
    let mut printed = keyword.to_owned();
    for variable in &variables.variables {
        printed.push_str(&format!(" {}={}", variable.name, variable.value.word()));
    }
    printed
}

fn printed_run(run: &Run) -> String {
    let mut printed = "RUN".to_owned();
    put_flag(&mut printed, "timeout", run.timeout.as_ref().map(Period::to_string));
    let (plain, others): (Vec<_>, Vec<_>) = run.secrets.iter().partition(|secret| secret.is_plain());
    let plain: Vec<&str> = plain.iter().map(|secret| secret.id.as_str()).collect();
    put_flag(&mut printed, "secret", (!plain.is_empty()).then(|| plain.join(",")));
    others.iter().for_each(|secret| put_flag(&mut printed, "secret", Some(secret.to_string())));
    with_command(&printed, &run.command)
}

fn printed_check(check: &Healthcheck) -> String {
    let mut printed = "HEALTHCHECK".to_owned();
    let periods =
        [("interval", &check.interval), ("timeout", &check.timeout), ("start-period", &check.start_period)];
    for (name, period) in periods {
        put_flag(&mut printed, name, period.as_ref().map(Period::to_string));
    }
    put_flag(&mut printed, "retries", check.retries.map(|retries| retries.to_string()));
    printed.push_str(" CMD ");
    match &check.command {
        Command::Exec(words) => printed.push_str(&array(words)),
        Command::Shell(text) | Command::Script(text) => printed.push_str(text),
    }
    printed
}

fn printed_copy(copy: &CopyFiles) -> String {
    let mut printed = "COPY".to_owned();
    put_flag(&mut printed, "chown", copy.owner.as_ref().map(Text::word));
    put_flag(&mut printed, "chmod", copy.mode.as_ref().map(Mode::to_string));
    let mut documents = String::new();
    for source in &copy.sources {
        printed.push(' ');
        match source {
            Source::Context(path) => printed.push_str(&path.word()),
            Source::Inline { name, content } => {
                let (mark, document) = document(name, content);
                printed.push_str(&mark);
                documents.push('\n');
                documents.push_str(&document);
            }
        }
    }
    format!("{printed} {}{documents}", copy.destination.word())
}

/// Returns the word that begins a heredoc, and its lines with the delimiter.
fn document(name: &str, content: &Text) -> (String, String) {
    let has_end = |text: &str| text.lines().any(|line| line == name);
    if let Some(text) = content.as_literal().filter(|text| !has_end(text)) {
        return (format!("<<\"{name}\""), format!("{}{name}", ended(text)));
    }
    let mut lines = String::new();
    for line in content.document().split_inclusive('\n') {
        // An escaped letter is the letter, and the line is not the end.
        lines.push_str(if line.trim_end_matches('\n') == name { "\\" } else { "" });
        lines.push_str(line);
    }
    (format!("<<{name}"), format!("{}{name}", ended(&lines)))
}

/// Completes the last line.
fn ended(text: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}")
}

/// Adds a command to an instruction with its flags.
fn with_command(printed: &str, command: &Command) -> String {
    match command {
        Command::Exec(words) => format!("{printed} {}", array(words)),
        Command::Shell(text) if !text.contains('\n') => {
            // Else it would begin with a flag.
            let end = if text.starts_with("--") { " --" } else { "" };
            format!("{printed}{end} {text}")
        }
        Command::Shell(text) | Command::Script(text) => {
            let taken: BTreeSet<&str> = text.lines().filter(|line| line.starts_with(DELIMITER)).collect();
            let later = (1..).map(|number| format!("{DELIMITER}{number}"));
            let mut names = iter::once(DELIMITER.to_owned()).chain(later);
            let name = names.find(|name| !taken.contains(name.as_str())).unwrap_or_default();
            format!("{printed} <<{name}\n{}{name}", ended(text))
        }
    }
}

fn put_flag(printed: &mut String, name: &str, value: Option<String>) {
    if let Some(value) = value {
        printed.push_str(&format!(" --{name}={value}"));
    }
}

fn array(words: &[String]) -> String {
    serde_json::Value::from(words).to_string()
}

#[cfg(test)]
mod tests {
    use crate::{cases::printed, parse};

    #[test]
    fn all_ways_of_writing_a_step_are_printed_alike() {
        for (source, expected) in [
            ("run  a  \\\n# c\n  b ", "RUN a    b"),
            ("RUN --secret=b --timeout=60s --secret=a,c x", "RUN --timeout=1m --secret=a,b,c x"),
            (
                "RUN --mount=type=secret,id=c,required --secret=b,target=/x,a x",
                "RUN --secret=a,c --secret=b,target=/x x",
            ),
            ("RUN [ \"a\" , \"b c\" ]", "RUN [\"a\",\"b c\"]"),
            ("RUN -- --x", "RUN -- --x"),
            ("RUN <<-X\n\ta\n\tX", "RUN <<EOF\na\nEOF"),
            ("RUN cat <<EOF\na\nEOF", "RUN <<EOF1\ncat <<EOF\na\nEOF\nEOF1"),
            ("RUN <<X\n#!/bin/a\nb\nX", "RUN <<EOF\n#!/bin/a\nb\nEOF"),
            ("env A=1  B='x y'\\ z C=\"$A\"", "ENV A=1 B=\"x y z\" C=\"${A}\""),
            ("ENV A b  c", "ENV A=\"b  c\""),
            ("WORKDIR /a b", "WORKDIR \"/a b\""),
            ("COPY [\"a b\", \"/c\"]", "COPY \"a b\" /c"),
            ("COPY <<E <<'F' g /h/\n$A\n\\E\nE\n$A\nF", "COPY <<E <<\"F\" g /h/\n${A}\n\\E\nE\n$A\nF"),
            ("HEALTHCHECK --retries=3 --interval=5s cmd x", "HEALTHCHECK --interval=5s --retries=3 CMD x"),
        ] {
            assert_eq!(printed(source), format!("{expected}\n"), "{source}");
            assert_eq!(printed(expected), format!("{expected}\n"));
        }
    }

    #[test]
    fn other_escape_characters_are_printed_as_backslashes() {
        assert_eq!(printed("# escape=`\nENV A=`$B\\ `\n  C=x"), "ENV A=\"\\$B\\\\\" C=x\n");
    }

    #[test]
    fn the_canonical_text_has_no_timeout() {
        let canonical = |source: &str| parse(source.as_bytes()).unwrap().steps[0].canonical();
        assert_eq!(canonical("RUN --timeout=5m --secret=s a"), "RUN --secret=s a");
        assert_eq!(canonical("RUN  --secret=s   a"), "RUN --secret=s a");
        assert_ne!(canonical("RUN a  b"), canonical("RUN a b"));
        assert_eq!(canonical("ENV A='b'"), canonical("env  A=\"b\""));
    }
}
