// SPDX-License-Identifier: Apache-2.0
//! Lines of a recipe: joined to instructions where they are continued, with their heredocs, without comments.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, RecipeErrors, shown},
    exec::{Array, array},
    limits,
    place::{Place, Span},
    text::ESCAPE,
    words::{flags, words},
};

/// Instructions in which `<<` begins a heredoc; some only to refuse it without taking its lines for instructions.
const WITH_DOCUMENTS: &[&str] = &["RUN", "START", "COPY", "ADD", "CMD", "ENTRYPOINT", "HEALTHCHECK"];

/// The instructions of a recipe, and what could not be read of it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) lines: Vec<Line>,
    pub(crate) errors: RecipeErrors,
}

/// An instruction, joined from its lines.
#[derive(Debug)]
pub(crate) struct Line {
    /// The instruction in capitals.
    pub(crate) keyword: String,
    /// All of it without spaces at the end.
    pub(crate) text: String,
    /// Offset of what follows the instruction.
    pub(crate) args: usize,
    pub(crate) escape: char,
    pub(crate) documents: Vec<Document>,
    start: usize,
    end: u32,
    /// Offsets in the text with the number of the line that begins there.
    parts: Vec<(usize, u32)>,
}

/// A heredoc.
#[derive(Debug)]
pub(crate) struct Document {
    /// Offset of its word in the instruction.
    pub(crate) at: usize,
    /// Its delimiter without quotes.
    pub(crate) name: String,
    /// Whether the delimiter has quotes, so that nothing in the content is replaced.
    pub(crate) quoted: bool,
    /// Its lines as they stand there.
    pub(crate) raw: String,
    /// Whether tabs at the beginning of its lines are removed.
    without_tabs: bool,
    line: u32,
}

impl Line {
    /// Returns where a part of the text stands in the recipe.
    pub(crate) fn place(&self, at: usize) -> Place {
        let after = self.parts.partition_point(|(offset, _)| *offset <= at);
        let (offset, line) = self.parts[..after].last().copied().unwrap_or((0, 1));
        Place { line, column: self.text[offset..at].chars().count() as u32 + 1 }
    }

    /// Returns where the instruction stands in the recipe.
    pub(crate) fn span(&self) -> Span {
        let Place { line, column } = self.place(self.start);
        Span { line, column, last_line: self.end }
    }

    /// Makes an error at an offset of the text.
    pub(crate) fn error(&self, at: usize, code: Code, message: impl Into<String>) -> RecipeError {
        RecipeError::new(self.place(at), &self.keyword, code, message)
    }

    /// Makes an error of the whole instruction.
    pub(crate) fn wrong(&self, code: Code, message: impl Into<String>) -> RecipeError {
        self.error(self.start, code, message)
    }
}

impl Document {
    /// Returns its lines without tabs at their beginnings, if it wants that.
    pub(crate) fn content(&self) -> String {
        let line =
            |line: &str| if self.without_tabs { line.trim_start_matches('\t') } else { line }.to_owned();
        self.raw.split_inclusive('\n').map(line).collect()
    }

    /// Returns where a part of the content stands in the recipe.
    pub(crate) fn place(&self, at: usize) -> Place {
        let Place { line, column } = Place::after(&self.content()[..at]);
        let raw = self.raw.split('\n').nth(line as usize - 1).unwrap_or_default();
        let tabs = if self.without_tabs { raw.len() - raw.trim_start_matches('\t').len() } else { 0 };
        Place { line: self.line + line - 1, column: column + tabs as u32 }
    }
}

/// Reads the instructions of a recipe.
pub(crate) fn read(source: &str) -> Source {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let lines = source.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let mut reader =
        Reader { lines, next: 0, escape: ESCAPE, has_begun: false, errors: RecipeErrors::default() };
    reader.check_characters();
    reader.directives();
    let mut lines = Vec::new();
    while let Some(line) = reader.instruction() {
        if lines.len() == limits::INSTRUCTIONS {
            let message =
                format!("the recipe has more than {} instructions: join some RUN", limits::INSTRUCTIONS);
            reader.errors.push(line.wrong(Code::Limit, message));
            break;
        }
        if line.text.len() > limits::LINE_BYTES {
            let message = format!(
                "the instruction has {} bytes: at most {}; put long texts into a heredoc or the uploaded context",
                line.text.len(),
                limits::LINE_BYTES
            );
            reader.errors.push(line.wrong(Code::Limit, message));
        } else if !line.keyword.is_empty() {
            lines.push(line);
        }
    }
    Source { lines, errors: reader.errors }
}

struct Reader<'a> {
    lines: Vec<&'a str>,
    next: usize,
    escape: char,
    /// Whether there was an instruction.
    has_begun: bool,
    errors: RecipeErrors,
}

impl<'a> Reader<'a> {
    fn check_characters(&mut self) {
        for (at, line) in self.lines.iter().enumerate() {
            if self.errors.more {
                break;
            }
            if let Some(offset) = line.find(['\0', '\r']) {
                let column = line[..offset].chars().count() as u32 + 1;
                self.errors.push(RecipeError::of_recipe(
                    Place { line: at as u32 + 1, column },
                    Code::Character,
                    "a NUL, or a carriage return within a line, cannot be in a recipe: write it as \\0 or \\r in a command",
                ));
            }
        }
    }

    /// Reads the directives, which are the first lines.
    fn directives(&mut self) {
        let mut seen = Vec::new();
        while let Some((key, value)) = self.lines.get(self.next).copied().and_then(directive) {
            let place = Place { line: self.next as u32 + 1, column: 1 };
            self.next += 1;
            let refused = if seen.contains(&key) {
                Some("the directive is there twice: remove one".to_owned())
            } else {
                self.directive(&key, value).err()
            };
            if let Some(message) = refused {
                self.errors.push(RecipeError::of_recipe(place, Code::Directive, message));
            }
            seen.push(key);
        }
    }

    fn directive(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("escape", "\\" | "`") => {
                self.escape = if value == "`" { '`' } else { ESCAPE };
                Ok(())
            }
            ("escape", _) => Err(format!("{} cannot be the escape character: write \\ or `", shown(value))),
            ("syntax", _) if is_standard(value) => Ok(()),
            ("syntax", _) => Err(format!(
                "{} is another language than that of recipes, which is docker/dockerfile:1: remove the directive",
                shown(value)
            )),
            _ => Err("recipes have no settings for checks: remove the directive".to_owned()),
        }
    }

    /// Reads an instruction with its heredocs.
    fn instruction(&mut self) -> Option<Line> {
        let (mut number, mut part) = self.begin()?;
        self.has_begun = true;
        let mut text = String::new();
        let mut parts = Vec::new();
        let mut dangling = None;
        loop {
            let continued = continued(part, self.escape);
            parts.push((text.len(), number));
            text.push_str(continued.unwrap_or(part));
            let Some(before) = continued else { break };
            match self.continuation() {
                Some(next) => (number, part) = next,
                None => {
                    dangling = Some(Place { line: number, column: before.chars().count() as u32 + 1 });
                    break;
                }
            }
        }
        let mut line = self.line(text, parts);
        if let Some(place) = dangling {
            self.errors.push(RecipeError::new(
                place,
                &line.keyword,
                Code::Continuation,
                "nothing follows this line, which is continued: remove the escape character, or complete the recipe",
            ));
        }
        line.documents = self.documents(&line);
        line.end = self.next as u32;
        Some(line)
    }

    fn line(&self, mut text: String, parts: Vec<(usize, u32)>) -> Line {
        text.truncate(text.trim_end().len());
        let start = text.len() - text.trim_start().len();
        let end =
            text[start..].find(|c: char| c.is_ascii_whitespace()).map_or(text.len(), |length| start + length);
        let args = text.len() - text[end..].trim_start().len();
        let keyword = text[start..end].to_ascii_uppercase();
        Line { keyword, text, args, escape: self.escape, documents: Vec::new(), start, end: 0, parts }
    }

    /// Returns the next line that is not empty and not a comment, with its number.
    fn begin(&mut self) -> Option<(u32, &'a str)> {
        loop {
            let (number, line) = self.take()?;
            let is_comment = line.trim_start().starts_with('#');
            if !is_comment && !line.trim_start().is_empty() {
                return Some((number, line));
            }
            // Dockerfiles take it for a comment, and the author for a directive.
            if !self.has_begun && directive(line).is_some_and(|(key, _)| key == "escape") {
                self.errors.push(RecipeError::of_recipe(
                    Place { line: number, column: 1 },
                    Code::Directive,
                    "the directive has no effect here: make it the first line of the recipe",
                ));
            }
        }
    }

    /// Returns the line that continues the one before. Comments and empty lines between them do not count.
    fn continuation(&mut self) -> Option<(u32, &'a str)> {
        loop {
            let (number, line) = self.take()?;
            let trimmed = line.trim_start();
            if !trimmed.is_empty() && !trimmed.starts_with('#') {
                return Some((number, line));
            }
        }
    }

    fn take(&mut self) -> Option<(u32, &'a str)> {
        let line = self.lines.get(self.next).copied()?;
        self.next += 1;
        Some((self.next as u32, line))
    }

    fn documents(&mut self, line: &Line) -> Vec<Document> {
        let mut found = Vec::new();
        if !WITH_DOCUMENTS.contains(&line.keyword.as_str()) {
            return found;
        }
        let (_, at) = flags(&line.text, line.args, line.escape);
        if matches!(array(&line.text[at..]), Array::Words(_)) {
            return found;
        }
        // The text of a command is the shell's, whatever escapes in the recipe.
        let escape = if line.keyword == "COPY" { line.escape } else { ESCAPE };
        for word in words(&line.text, at, escape) {
            let Some(mark) = mark(word.raw) else { continue };
            if found.len() == limits::HEREDOCS {
                let message =
                    format!("more than {} heredocs are in one instruction: split it", limits::HEREDOCS);
                self.errors.push(line.error(word.at, Code::Limit, message));
                break;
            }
            let is_word = mark.is_word;
            if !is_word {
                let message = format!(
                    "the delimiter in {} is not one: write a word of letters, digits, '_', '.' or '-', and a space after it",
                    shown(word.raw)
                );
                self.errors.push(line.error(word.at, Code::Heredoc, message));
            }
            if mark.name.is_empty() {
                break;
            }
            match self.document(word.at, mark) {
                Ok(document) => found.push(document),
                Err((code, message)) => {
                    self.errors.push(line.error(word.at, code, message));
                    break;
                }
            }
            if !is_word {
                break;
            }
        }
        found
    }

    /// Reads the lines of a heredoc.
    fn document(&mut self, at: usize, mark: Mark) -> Result<Document, (Code, String)> {
        let Mark { name, quoted, without_tabs, .. } = mark;
        let line = self.next as u32 + 1;
        let mut raw = String::new();
        while let Some((_, text)) = self.take() {
            let end = if without_tabs { text.trim_start_matches('\t') } else { text };
            if end == name {
                if raw.len() > limits::HEREDOC_BYTES {
                    let message = format!(
                        "the heredoc has {} bytes: at most {}; put it into the uploaded context",
                        raw.len(),
                        limits::HEREDOC_BYTES
                    );
                    return Err((Code::Limit, message));
                }
                return Ok(Document { at, name, quoted, raw, without_tabs, line });
            }
            raw.push_str(text);
            raw.push('\n');
        }
        let message = format!(
            "the heredoc has no end: add a line with {name} alone, or put a space after the \"<<\" if it is not a heredoc"
        );
        Err((Code::Heredoc, message))
    }
}

/// Returns the line without its escape character, if another line continues it. One that is itself escaped does not count.
pub(crate) fn continued(line: &str, escape: char) -> Option<&str> {
    let before = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!before.ends_with(escape)).then_some(before)
}

/// Returns key and value of a directive.
fn directive(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
    (matches!(key.as_str(), "escape" | "syntax" | "check") && !value.is_empty()).then_some((key, value))
}

/// Returns whether a frontend is that of Dockerfiles, in a version whose language this is a subset of.
fn is_standard(frontend: &str) -> bool {
    let name = frontend.split('@').next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let is_version = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match name.strip_prefix("docker/dockerfile") {
        Some("" | ":latest" | ":1") => true,
        Some(tag) => tag.strip_prefix(":1.").is_some_and(is_version),
        None => false,
    }
}

/// The word that begins a heredoc.
struct Mark {
    name: String,
    quoted: bool,
    without_tabs: bool,
    /// Whether the name is one. Else it is what a shell would take for it.
    is_word: bool,
}

fn mark(raw: &str) -> Option<Mark> {
    let rest = raw.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, without_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let (mut name, mut quoted, mut open) = (String::new(), false, None);
    let mut chars = rest.chars();
    while let Some(next) = chars.next() {
        match (open, next) {
            (None, '\'' | '"') => (open, quoted) = (Some(next), true),
            (Some(quote), _) if next == quote => open = None,
            (None | Some('"'), '\\') => {
                quoted = true;
                name.extend(chars.next());
            }
            _ => name.push(next),
        }
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let length = name.find(|c: char| !known(c)).unwrap_or(name.len());
    let is_word = open.is_none() && length == name.len() && length <= 255 && !name.starts_with(['.', '-']);
    name.truncate(length);
    Some(Mark { is_word: is_word && !name.is_empty(), name, quoted, without_tabs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        let source = read(source);
        assert_eq!(source.errors, RecipeErrors::default());
        source.lines.iter().map(|line| line.text.trim_start().to_owned()).collect()
    }

    fn refused(source: &str) -> Vec<(u32, u32, Code)> {
        read(source).errors.errors.iter().map(|error| (error.line, error.column, error.code)).collect()
    }

    #[test]
    fn lines_are_joined_without_comments_and_empty_lines() {
        assert_eq!(
            texts("\u{feff}# c\n\nRUN a \\\n  # c\n\n  b\\\nc\r\n  RUN d  \n"),
            ["RUN a   bc", "RUN d"]
        );
        assert_eq!(texts("RUN a \\  \t\nb"), ["RUN a b"]);
        assert_eq!(texts("RUN a \\\\\nRUN b"), ["RUN a \\\\", "RUN b"]);
        assert_eq!(texts("\\\nRUN a"), ["RUN a"]);
        assert_eq!(texts("# escape=`\nRUN a `\n  \\\nRUN b"), ["RUN a   \\", "RUN b"]);
        assert_eq!(texts("#!/bin/x\n# escape\n# a=b\nRUN a\n# escape=`\n"), ["RUN a"]);
    }

    #[test]
    fn places_are_those_of_the_recipe() {
        let source = read("# é\n\nRUN é \\\n  # c\n\n  b");
        let line = &source.lines[0];
        assert_eq!(line.span(), Span { line: 3, column: 1, last_line: 6 });
        let at = |text: &str| line.text.find(text).unwrap();
        assert_eq!(line.place(at("é")), Place { line: 3, column: 5 });
        assert_eq!(line.place(at("b")), Place { line: 6, column: 3 });
        assert_eq!(line.place(line.text.len()), Place { line: 6, column: 4 });
    }

    #[test]
    fn heredocs_follow_their_instruction() {
        let source = read("RUN cat <<A 3<<-'B' <<<c\na\nA\n\t\tb\n\tB\nCOPY <<\"a.b\" /x\na.b\nENV A <<x\n");
        assert_eq!(source.errors, RecipeErrors::default());
        let [run, copy, env] = source.lines.as_slice() else { panic!("{source:?}") };
        let [a, b] = run.documents.as_slice() else { panic!("{run:?}") };
        assert_eq!((a.at, a.name.as_str(), a.quoted, a.content().as_str()), (8, "A", false, "a\n"));
        assert_eq!(
            (b.name.as_str(), b.quoted, b.raw.as_str(), b.content().as_str()),
            ("B", true, "\t\tb\n", "b\n")
        );
        assert_eq!(b.place(0), Place { line: 4, column: 3 });
        assert_eq!(run.span().last_line, 5);
        assert_eq!((copy.documents[0].name.as_str(), copy.documents[0].raw.as_str()), ("a.b", ""));
        assert!(env.documents.is_empty());
        assert!(read("RUN [\"<<A\", \"b\"]\nRUN echo \"<<A\" '<<B' << C").lines[1].documents.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for (source, line, column, code) in [
            ("RUN a\0b", 1, 6, Code::Character),
            ("RUN é\rb\n", 1, 6, Code::Character),
            ("RUN a \\\n\n# x\n", 1, 7, Code::Continuation),
            ("RUN a \\", 1, 7, Code::Continuation),
            ("# escape=x\nRUN a", 1, 1, Code::Directive),
            ("# escape=`\n# Escape = `\nRUN a", 2, 1, Code::Directive),
            ("# x\n# escape=`\nRUN a", 2, 1, Code::Directive),
            ("# syntax=example/other\nRUN a", 1, 1, Code::Directive),
            ("# syntax=docker/dockerfile:1-labs\nRUN a", 1, 1, Code::Directive),
            ("# check=skip=all\nRUN a", 1, 1, Code::Directive),
            ("RUN cat \\\n <<EOF\nx\n", 2, 2, Code::Heredoc),
            ("RUN <<EOF; echo\nx\nEOF\nRUN b", 1, 5, Code::Heredoc),
            ("RUN <<'EOF\nx\nEOF\nRUN b", 1, 5, Code::Heredoc),
            ("RUN echo $(( 1<<3 ))", 1, 14, Code::Heredoc),
        ] {
            assert_eq!(refused(source), [(line, column, code)], "{source:?}");
        }
    }

    #[test]
    fn frontends_of_dockerfiles_are_accepted() {
        for frontend in
            ["docker/dockerfile", "docker/dockerfile:1", "docker.io/docker/dockerfile:1.7@sha256:x"]
        {
            assert_eq!(texts(&format!("# Syntax = {frontend}\nRUN a")), ["RUN a"]);
        }
    }

    #[test]
    fn sizes_are_limited() {
        let long = "x".repeat(limits::LINE_BYTES);
        assert_eq!(refused(&format!("RUN {long}\nRUN a")), [(1, 1, Code::Limit)]);
        let many = "RUN a\n".repeat(limits::INSTRUCTIONS);
        assert!(refused(&many).is_empty());
        assert_eq!(refused(&format!("{many}RUN a\nRUN b\n")), [(501, 1, Code::Limit)]);
        let marks = "<<A ".repeat(limits::HEREDOCS);
        let ends = "A\n".repeat(limits::HEREDOCS);
        assert!(refused(&format!("RUN {marks}\n{ends}")).is_empty());
        assert_eq!(refused(&format!("RUN {marks}<<B\n{ends}B a\n")), [(1, 405, Code::Limit)]);
        let large = "x\n".repeat(limits::HEREDOC_BYTES / 2);
        assert!(refused(&format!("RUN <<A\n{large}A\n")).is_empty());
        assert_eq!(refused(&format!("RUN <<A\n{large}x\nA\nRUN b\n")), [(1, 5, Code::Limit)]);
    }
}
