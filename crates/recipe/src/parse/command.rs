// SPDX-License-Identifier: Apache-2.0
//! Commands of RUN, START, CMD, ENTRYPOINT and HEALTHCHECK, in shell form, exec form and as heredocs.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    exec::{Array, BROKEN, array},
    lines::{Document, Line, continued},
    step::Command,
    text::ESCAPE,
    words::words,
};

use super::options::options;

/// What begins a file that is run without a shell.
const SCRIPT: &str = "#!";

/// Reads the command at an offset of the instruction.
pub(super) fn command(line: &Line, at: usize) -> Result<Command, RecipeError> {
    let text = &line.text[at..];
    let missing = || line.wrong(Code::Missing, "there is no command: write one");
    match array(text) {
        Array::Words(words) if words.is_empty() => return Err(missing()),
        Array::Words(words) => return program(line, at, words).map(Command::Exec),
        Array::Broken => return Err(line.error(at, Code::Array, BROKEN)),
        Array::None => {}
    }
    let is_document = words(text, 0, ESCAPE).len() == 1;
    let text = match line.documents.as_slice() {
        // The shell does not see the word of the heredoc, and runs its lines.
        [document] if is_document => {
            let content = document.content();
            if content.starts_with(SCRIPT) {
                return Ok(Command::Script(content));
            }
            content
        }
        [] => text.to_owned(),
        documents => with_documents(text, documents),
    };
    if text.trim().is_empty() {
        return Err(missing());
    }
    if text.starts_with(SCRIPT) {
        let message = "a shell takes this line for a comment: put the script into a heredoc";
        return Err(line.error(at, Code::Heredoc, message));
    }
    // It would continue the line when it is printed.
    if continued(&text, ESCAPE).is_some() {
        let message = "the backslash at the end of the command escapes nothing: remove it";
        return Err(line.error(at, Code::Quote, message));
    }
    Ok(Command::Shell(text))
}

/// Reads the command of an instruction that has no heredocs.
pub(super) fn inline_command(line: &Line, at: usize) -> Result<Command, RecipeError> {
    if let Some(document) = line.documents.first() {
        let message =
            format!("{} has no heredoc: put it into a file with COPY, or write START", line.keyword);
        return Err(line.error(document.at, Code::Heredoc, message));
    }
    command(line, at)
}

/// Makes the exec form of a shell form, if SHELL names a shell.
pub(super) fn in_shell(command: Command, shell: Option<&[String]>) -> Command {
    match (command, shell) {
        (Command::Shell(text), Some(shell)) => {
            let mut words = shell.to_vec();
            words.push(text);
            Command::Exec(words)
        }
        (command, _) => command,
    }
}

/// Reads SHELL.
pub(super) fn shell(line: &Line) -> Result<Vec<String>, Vec<RecipeError>> {
    let (_, at) = options(line, &[], &[])?;
    match array(&line.text[at..]) {
        Array::Words(words) if !words.is_empty() => Ok(program(line, at, words)?),
        _ if at == line.text.len() => Err(line.wrong(Code::Missing, BROKEN).into()),
        _ => Err(line.error(at, Code::Array, BROKEN).into()),
    }
}

/// Checks the words of an exec form.
fn program(line: &Line, at: usize, words: Vec<String>) -> Result<Vec<String>, RecipeError> {
    if words[0].is_empty() || words.iter().any(|word| word.contains('\0')) {
        let message = "the program is empty, or a word has a NUL, which no program takes: remove it";
        return Err(line.error(at, Code::Array, message));
    }
    Ok(words)
}

/// Completes a text with its heredocs, which the shell reads again.
fn with_documents(text: &str, documents: &[Document]) -> String {
    let mut script = format!("{text}\n");
    for document in documents {
        script.push_str(&document.raw);
        script.push_str(&document.name);
        script.push('\n');
    }
    script
}
