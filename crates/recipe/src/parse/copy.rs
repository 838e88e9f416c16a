// SPDX-License-Identifier: Apache-2.0
//! COPY.

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    exec::{Array, BROKEN, array},
    lines::{Document, Line},
    mode::Mode,
    path,
    step::{CopyFiles, Instruction, Source},
    text::Text,
    words::{Word, words},
};

use super::{
    options::{Given, options},
    state::check_user,
    value::{all, literal, text},
};

const FLAGS: &[&str] = &["chown", "chmod"];
const REFUSED: &[(&str, &str)] = &[
    (
        "from",
        "a recipe has one stage, so make what the other stages make with RUN, or upload it in the context",
    ),
    ("link", "leave it out, as the files are the same without it"),
    ("parents", "name the whole destination of each file"),
    ("exclude", "leave the files out of the uploaded context"),
];

type Files = (Vec<Source>, Text);

/// Reads COPY.
pub(super) fn copy(line: &Line) -> Result<Instruction, Vec<RecipeError>> {
    let (flags, rest) = options(line, FLAGS, REFUSED)?;
    let (mut owner, mut mode, mut errors) = (None, None, Vec::new());
    for Given { name, value } in flags {
        let checked = match name {
            "chown" => user(line, value).map(|user| owner = Some(user)),
            _ => bits(line, value).map(|bits| mode = Some(bits)),
        };
        errors.extend(checked.err());
    }
    let files = match array(&line.text[rest..]) {
        Array::Words(words) => of_array(line, rest, &words),
        Array::Broken => Err(line.error(rest, Code::Array, BROKEN).into()),
        Array::None => of_words(line, rest),
    };
    match files {
        Ok((sources, destination)) if errors.is_empty() => {
            Ok(Instruction::Copy(CopyFiles { sources, destination, owner, mode }))
        }
        files => {
            errors.extend(files.err().into_iter().flatten());
            Err(errors)
        }
    }
}

fn of_words(line: &Line, rest: usize) -> Result<Files, Vec<RecipeError>> {
    let words = words(&line.text, rest, line.escape);
    let [sources @ .., last] = words.as_slice() else { return Err(missing(line).into()) };
    if sources.is_empty() {
        return Err(missing(line).into());
    }
    if document(line, *last).is_some() {
        let message = "a heredoc is what is copied: write the destination behind it";
        return Err(line.error(last.at, Code::Heredoc, message).into());
    }
    let destination = text(line, *last).and_then(|text| destination(line, last.at, text, sources.len()));
    let sources = all(sources.iter().map(|word| match document(line, *word) {
        Some(document) => inline(line, document),
        None => text(line, *word).and_then(|text| in_context(line, word.at, text)),
    }));
    both(sources, destination)
}

fn of_array(line: &Line, at: usize, words: &[String]) -> Result<Files, Vec<RecipeError>> {
    let [sources @ .., last] = words else { return Err(missing(line).into()) };
    if sources.is_empty() {
        return Err(missing(line).into());
    }
    // Where a word of an array stands is not known.
    let text = |word: &String| -> Result<Text, RecipeError> {
        // As a variable may be in it, what is in the array is checked before it is read.
        if word.contains(char::is_control) {
            return Err(line.error(at, Code::Path, "a path has a control character: remove it"));
        }
        let text = Text::read(word, line.escape);
        text.map_err(|problem| line.error(at, problem.code, problem.message))
    };
    let destination = text(last).and_then(|text| destination(line, at, text, sources.len()));
    let sources = all(sources.iter().map(|word| text(word).and_then(|text| in_context(line, at, text))));
    both(sources, destination)
}

fn missing(line: &Line) -> RecipeError {
    line.wrong(Code::Missing, "there is no source or no destination: write COPY SOURCE DESTINATION")
}

fn both(
    sources: Result<Vec<Source>, Vec<RecipeError>>,
    destination: Result<Text, RecipeError>,
) -> Result<Files, Vec<RecipeError>> {
    match (sources, destination) {
        (Ok(sources), Ok(destination)) => Ok((sources, destination)),
        (sources, destination) => Err(sources.err().into_iter().flatten().chain(destination.err()).collect()),
    }
}

/// Returns the heredoc that a word begins.
fn document<'a>(line: &'a Line, word: Word<'_>) -> Option<&'a Document> {
    let found = line.documents.binary_search_by_key(&word.at, |document| document.at);
    found.ok().map(|index| &line.documents[index])
}

fn inline(line: &Line, document: &Document) -> Result<Source, RecipeError> {
    let content = document.content();
    let content = if document.quoted {
        Text::literal(content)
    } else {
        Text::read_document(&content).map_err(|problem| {
            RecipeError::new(document.place(problem.at), &line.keyword, problem.code, problem.message)
        })?
    };
    Ok(Source::Inline { name: document.name.clone(), content })
}

fn in_context(line: &Line, at: usize, path: Text) -> Result<Source, RecipeError> {
    if let Some(literal) = path.as_literal() {
        path::check_source(literal).map_err(|message| line.error(at, Code::Path, message))?;
    }
    Ok(Source::Context(path))
}

fn destination(line: &Line, at: usize, path: Text, sources: usize) -> Result<Text, RecipeError> {
    if let Some(literal) = path.as_literal() {
        path::check_destination(literal, sources).map_err(|message| line.error(at, Code::Path, message))?;
    }
    Ok(path)
}

fn user(line: &Line, word: Word<'_>) -> Result<Text, RecipeError> {
    let user = text(line, word)?;
    check_user(line, word.at, &user)?;
    Ok(user)
}

fn bits(line: &Line, word: Word<'_>) -> Result<Mode, RecipeError> {
    let bits = literal(line, word)?.parse::<Mode>();
    bits.map_err(|error| line.error(word.at, Code::Mode, error.to_string()))
}

#[cfg(test)]
mod tests {
    use crate::cases::{printed, refused};

    #[test]
    fn files_come_from_the_context_and_from_heredocs() {
        for (recipe, expected) in [
            ("COPY . .", "COPY . ."),
            ("COPY package*.json [ab].txt ./", "COPY \"package*.json\" \"[ab].txt\" ./"),
            ("COPY --chmod=755 --chown=me:us a /b", "COPY --chown=me:us --chmod=0755 a /b"),
            ("COPY --chown=$U a\\ b \"$D\"/", "COPY --chown=\"${U}\" \"a b\" \"${D}/\""),
            ("COPY [\"a b\", \"c\", \"/d/\"]", "COPY \"a b\" c /d/"),
            ("COPY <<a.conf /etc/\nx='$Y'\na.conf", "COPY <<a.conf /etc/\nx='${Y}'\na.conf"),
            ("COPY <<-\"E\" b/c /etc/\n\tx $Y\n\tE", "COPY <<\"E\" b/c /etc/\nx $Y\nE"),
            ("COPY <<E /x\nE", "COPY <<\"E\" /x\nE"),
            ("COPY -- --a \"<<b\" /x/", "COPY \"--a\" \"<<b\" /x/"),
        ] {
            assert_eq!(printed(recipe), format!("{expected}\n"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (recipe, expected) in [
            ("COPY", "1:1 missing"),
            ("COPY a", "1:1 missing"),
            ("COPY [\"a\"]", "1:1 missing"),
            ("COPY ['a', '/b']", "1:6 array"),
            ("COPY [\"a\\n\", \"/b\"]", "1:6 path"),
            ("COPY [\"a$1\", \"/b\"]", "1:6 variable"),
            ("COPY a ../../b /c/", "1:8 path"),
            ("COPY /a /b", "1:6 path"),
            ("COPY https://a.b/c /d", "1:6 path"),
            ("COPY a b /c", "1:10 path"),
            ("COPY a 'b", "1:8 quote"),
            ("COPY a <<B\nB", "1:8 heredoc"),
            ("COPY <<-A /b\nx\n\t  $1\nA", "3:4 variable"),
            ("COPY --from=build /a /b", "1:6 unsupported"),
            ("COPY --link a /b", "1:6 unsupported"),
            ("COPY --chmod=u+x a /b", "1:14 mode"),
            ("COPY --chown=a:b:c a /b", "1:14 user"),
        ] {
            assert_eq!(refused(recipe), [expected], "{recipe}");
        }
        assert_eq!(
            refused("COPY --chmod=9 /a ../b /c"),
            ["1:14 mode", "1:16 path", "1:19 path", "1:24 path"]
        );
    }
}
