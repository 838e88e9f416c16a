// SPDX-License-Identifier: Apache-2.0
//! START, CMD, ENTRYPOINT and HEALTHCHECK together: what runs in the finished template.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    exec::{Array, array},
    lines::Line,
    place::Span,
    step::{Command, Healthcheck, Instruction, Start, Step},
};

use super::{
    command::{command, in_shell, inline_command},
    healthcheck::healthcheck,
    options::options,
};

/// What the recipe says so far about what runs in the template.
#[derive(Default)]
pub(super) struct Ending {
    has_start: bool,
    cmd: Option<(Span, Command)>,
    entrypoint: Option<Entrypoint>,
    healthcheck: Option<(Span, Healthcheck)>,
}

struct Entrypoint {
    span: Span,
    /// The command; none if the entrypoint of the image is taken away.
    command: Option<Command>,
    /// Whether it is in shell form, which takes no arguments.
    in_shell: bool,
}

impl Ending {
    /// Reads START, whose step stays where it is.
    pub(super) fn start(
        &mut self,
        line: &Line,
        shell: Option<&[String]>,
    ) -> Result<Instruction, Vec<RecipeError>> {
        let (_, at) = options(line, &[], &[])?;
        if self.has_start {
            let message = "a recipe has one START: start all in one command, such as START a & exec b";
            return Err(line.wrong(Code::Repeated, message).into());
        }
        self.has_start = true;
        let command = in_shell(command(line, at)?, shell);
        Ok(Instruction::Start(Start { command, after_entrypoint: false }))
    }

    pub(super) fn cmd(&mut self, line: &Line, shell: Option<&[String]>) -> Result<(), Vec<RecipeError>> {
        let (_, at) = options(line, &[], &[])?;
        if self.cmd.is_some() {
            return Err(twice(line).into());
        }
        let command = in_shell(inline_command(line, at)?, shell);
        self.cmd = Some((line.span(), command));
        Ok(())
    }

    pub(super) fn entrypoint(
        &mut self,
        line: &Line,
        shell: Option<&[String]>,
    ) -> Result<(), Vec<RecipeError>> {
        let (_, at) = options(line, &[], &[])?;
        if self.entrypoint.is_some() {
            return Err(twice(line).into());
        }
        let span = line.span();
        let entrypoint = match array(&line.text[at..]) {
            Array::Words(words) if words.is_empty() => Entrypoint { span, command: None, in_shell: false },
            _ => {
                let command = inline_command(line, at)?;
                let is_shell = matches!(command, Command::Shell(_));
                Entrypoint { span, command: Some(in_shell(command, shell)), in_shell: is_shell }
            }
        };
        self.entrypoint = Some(entrypoint);
        Ok(())
    }

    pub(super) fn healthcheck(&mut self, line: &Line) -> Result<(), Vec<RecipeError>> {
        if self.healthcheck.is_some() {
            return Err(line
                .wrong(Code::Repeated, "a recipe has one HEALTHCHECK: remove the other one")
                .into());
        }
        self.healthcheck = Some((line.span(), healthcheck(line)?));
        Ok(())
    }

    /// Returns the last steps of the recipe.
    pub(super) fn finish(&mut self, shell: Option<&[String]>) -> Result<Vec<Step>, RecipeError> {
        let (entrypoint, cmd) = (self.entrypoint.take(), self.cmd.take());
        let of_entrypoint = entrypoint.as_ref().map(|entrypoint| (entrypoint.span, "ENTRYPOINT"));
        let first = cmd.as_ref().map(|(span, _)| (*span, "CMD")).or(of_entrypoint);
        if let Some((span, keyword)) = first.filter(|_| self.has_start) {
            let message = "the recipe has a START, too, which means the same: remove one of them";
            return Err(RecipeError::new(span.place(), keyword, Code::Conflict, message));
        }
        let mut steps = Vec::new();
        if let Some((span, instruction)) = started(entrypoint, cmd)? {
            steps.push(Step { span, instruction });
        }
        if let Some((span, check)) = self.healthcheck.take() {
            // It is run with the last shell, as all of it is about the finished template.
            let check = Healthcheck { command: in_shell(check.command, shell), ..check };
            steps.push(Step { span, instruction: Instruction::Healthcheck(check) });
        }
        Ok(steps)
    }
}

/// Makes one START of ENTRYPOINT and CMD, as Dockerfiles make one command of them.
fn started(
    entrypoint: Option<Entrypoint>,
    cmd: Option<(Span, Command)>,
) -> Result<Option<(Span, Instruction)>, RecipeError> {
    let start = |command, after_entrypoint| Instruction::Start(Start { command, after_entrypoint });
    match (entrypoint, cmd) {
        (None, None) => Ok(None),
        (None, Some((span, command))) => Ok(Some((span, start(command, true)))),
        (Some(Entrypoint { command: None, .. }), Some((span, command))) => {
            Ok(Some((span, start(command, false))))
        }
        (Some(Entrypoint { command: None, span, .. }), None) => {
            let message =
                "this leaves nothing to start: write CMD or START with a command, or remove the line";
            Err(RecipeError::new(span.place(), "ENTRYPOINT", Code::Missing, message))
        }
        (Some(Entrypoint { span, command: Some(command), .. }), None) => {
            Ok(Some((span, start(command, false))))
        }
        (
            Some(Entrypoint { command: Some(Command::Exec(program)), in_shell: false, .. }),
            Some((span, command)),
        ) => {
            let arguments = match command {
                Command::Exec(words) => words,
                Command::Shell(text) | Command::Script(text) => {
                    vec!["/bin/sh".to_owned(), "-c".to_owned(), text]
                }
            };
            Ok(Some((span, start(Command::Exec([program, arguments].concat()), false))))
        }
        (Some(_), Some((span, _))) => {
            let message =
                "an ENTRYPOINT in shell form takes no CMD: write one of them as START with the whole command";
            Err(RecipeError::new(span.place(), "CMD", Code::Conflict, message))
        }
    }
}

fn twice(line: &Line) -> RecipeError {
    let message = format!("only the last {} of a Dockerfile counts: remove the others", line.keyword);
    line.wrong(Code::Repeated, message)
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn commands_of_images_become_what_is_started_at_the_end() {
        for (recipe, expected) in [
            ("START a &\nRUN b", "START a &\nRUN b"),
            ("CMD a b\nUSER c", "USER c\nCMD a b"),
            ("CMD [\"a\", \"b\"]", "CMD [\"a\",\"b\"]"),
            ("ENTRYPOINT a b\nUSER c", "USER c\nSTART a b"),
            ("ENTRYPOINT [\"a\"]\nCMD [\"b\"]", "START [\"a\",\"b\"]"),
            ("CMD b c\nENTRYPOINT [\"a\"]", "START [\"a\",\"/bin/sh\",\"-c\",\"b c\"]"),
            ("ENTRYPOINT []\nCMD a", "START a"),
            ("START <<X\na\nb\nX", "START <<EOF\na\nb\nEOF"),
            ("HEALTHCHECK CMD x\nCMD a", "CMD a\nHEALTHCHECK CMD x"),
        ] {
            assert_eq!(printed(recipe), format!("{expected}\n"));
            assert_eq!(printed(expected), format!("{expected}\n"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("START", "1:1 missing"),
            ("START a\nSTART b", "2:1 repeated"),
            ("START --x", "1:7 flag"),
            ("START a\nCMD b", "2:1 conflict"),
            ("ENTRYPOINT a\nSTART b", "1:1 conflict"),
            ("CMD a\nCMD b", "2:1 repeated"),
            ("ENTRYPOINT a\nENTRYPOINT b", "2:1 repeated"),
            ("ENTRYPOINT a\nCMD b", "2:1 conflict"),
            ("CMD []", "1:1 missing"),
            ("ENTRYPOINT []", "1:1 missing"),
            ("CMD ['a']", "1:5 array"),
            ("CMD a <<B\nRUN c\nB", "1:7 heredoc"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
    }
}
