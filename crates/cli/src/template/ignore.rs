// SPDX-License-Identifier: Apache-2.0
//! What is left out of a context: the rules of `.wrennignore` or `.dockerignore`, which mean what Docker means by them. These
//! are not Git's, which libraries have: every pattern begins at the root, and an exception also brings back what is in a
//! directory that is left out.

use std::{
    fs,
    io::{self, Read as _},
    iter::Peekable,
    path::Path,
    str::Chars,
};

use anyhow::{Context as _, Result};
use wrenn_archive::Choice;

use crate::failure::Failure;

/// Files with rules; the first one that exists counts.
const FILES: [&str; 2] = [".wrennignore", ".dockerignore"];
/// Maximum size of such a file, in bytes.
const SIZE_MAX: u64 = 1 << 20;
/// Maximum length of a pattern, in bytes.
const PATTERN_MAX: usize = 4096;

/// Rules in their order: the last one that matches decides.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    /// Whether it brings back what a rule before it leaves out.
    exception: bool,
    pattern: Pattern,
}

impl Rules {
    /// Reads the rules of a context. Without a file nothing is left out.
    pub(super) fn read(context: &Path) -> Result<Self> {
        for file in FILES {
            let path = context.join(file);
            let unreadable = || format!("cannot read {}", path.display());
            let opened = match fs::File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.with_context(unreadable)?,
            };
            let mut text = String::new();
            opened.take(SIZE_MAX + 1).read_to_string(&mut text).with_context(unreadable)?;
            if text.len() as u64 > SIZE_MAX {
                let message = format!("{} has more than {SIZE_MAX} bytes: use patterns", path.display());
                return Err(Failure::new("invalid_ignore_file", message).into());
            }
            return Self::parse(&text).map_err(|(line, cause)| {
                let message = format!("{}:{line}: {cause}", path.display());
                Failure::new("invalid_ignore_file", message).into()
            });
        }
        Ok(Self::default())
    }

    /// Parses rules; an error has its line.
    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut rules = Vec::new();
        for (before, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let written = line.strip_prefix('!').unwrap_or(line).trim();
            let exception = line.starts_with('!');
            let at_line = |cause| (before + 1, cause);
            if exception && written.is_empty() {
                return Err(at_line("behind the ! is no pattern: write what is to be kept"));
            }
            let cleaned = cleaned(written);
            if !cleaned.is_empty() {
                rules.push(Rule { exception, pattern: Pattern::parse(&cleaned).map_err(at_line)? });
            }
        }
        Ok(Self(rules))
    }

    /// Says what becomes of an entry, by its path from the context on.
    pub(super) fn choose(&self, path: &[u8], is_directory: bool) -> Choice {
        let path: Vec<char> = String::from_utf8_lossy(path).chars().collect();
        if !self.leave_out(&path) {
            return Choice::Packed;
        }
        let brings_back = |rule: &Rule| rule.exception && rule.pattern.may_match_within(&path);
        if is_directory && self.0.iter().any(brings_back) { Choice::IfNeeded } else { Choice::LeftOut }
    }

    fn leave_out(&self, path: &[char]) -> bool {
        // A rule that would change nothing is not asked.
        self.0.iter().fold(false, |out, rule| out ^ (out == rule.exception && rule.pattern.matches(path)))
    }
}

/// Returns a path without empty names, dots, and names that are left again.
fn cleaned(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join("/")
}

/// A pattern of paths. It is followed in all its ways at a time, so that no path takes long.
#[derive(Debug)]
struct Pattern(Vec<Part>);

/// Part of a pattern, and at the same time the place before it.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// This character.
    Char(char),
    /// Any character of a name.
    Any,
    /// A character of a name that is, or is not, in one of the ranges.
    Class { negated: bool, ranges: Vec<(char, char)> },
    /// Any part of a name.
    Star,
    /// Any number of directories, which the next part takes.
    Directories,
    /// Characters of directories, up to a slash.
    WithinDirectories,
    /// All that follows.
    Rest,
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > PATTERN_MAX {
            return Err("the pattern has more than 4096 bytes: shorten it");
        }
        let mut parts = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.peek() == Some(&'*') => {
                    chars.next();
                    let slash = chars.next_if_eq(&'/').is_some();
                    if chars.peek().is_none() || parts.is_empty() && !slash {
                        parts.push(Part::Rest);
                    } else {
                        parts.extend([Part::Directories, Part::WithinDirectories]);
                    }
                }
                '*' => parts.push(Part::Star),
                '?' => parts.push(Part::Any),
                '[' => parts.push(class(&mut chars)?),
                c => parts.push(Part::Char(escaped(c, &mut chars)?)),
            }
        }
        Ok(Self(parts))
    }

    /// Returns whether it matches a path, or a directory that this is in.
    fn matches(&self, path: &[char]) -> bool {
        let mut places = self.begin();
        for &c in path {
            if c == '/' && self.is_end(&places) {
                return true;
            }
            places = self.after(&places, c);
            if !places.contains(&true) {
                return false;
            }
        }
        self.is_end(&places)
    }

    /// Returns whether it may match something in a directory.
    fn may_match_within(&self, directory: &[char]) -> bool {
        let places = directory.iter().fold(self.begin(), |places, c| self.after(&places, *c));
        self.after(&places, '/').contains(&true)
    }

    /// Returns for each place whether it is one where the pattern begins.
    fn begin(&self) -> Vec<bool> {
        let mut places = vec![false; self.0.len() + 1];
        self.enter(0, &mut places);
        places
    }

    fn is_end(&self, places: &[bool]) -> bool {
        places[self.0.len()]
    }

    /// Returns the places after a character.
    fn after(&self, places: &[bool], c: char) -> Vec<bool> {
        let mut next = vec![false; places.len()];
        for (place, part) in self.0.iter().enumerate().filter(|(place, _)| places[*place]) {
            match part {
                Part::Char(wanted) if *wanted == c => self.enter(place + 1, &mut next),
                Part::Any if c != '/' => self.enter(place + 1, &mut next),
                Part::Class { negated, ranges }
                    if c != '/'
                        && ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated =>
                {
                    self.enter(place + 1, &mut next);
                }
                Part::Star if c != '/' => self.enter(place, &mut next),
                Part::Rest => self.enter(place, &mut next),
                Part::WithinDirectories => {
                    self.enter(place, &mut next);
                    if c == '/' {
                        self.enter(place + 1, &mut next);
                    }
                }
                _ => {}
            }
        }
        next
    }

    /// Adds a place, and those that are reached from it without a character.
    fn enter(&self, mut place: usize, places: &mut [bool]) {
        while !places[place] {
            places[place] = true;
            match self.0.get(place) {
                Some(Part::Star | Part::Rest) => place += 1,
                Some(Part::Directories) => {
                    places[place + 1] = true;
                    place += 2;
                }
                _ => return,
            }
        }
    }
}

/// Parses what is behind the `[` of a class.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<Part, &'static str> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let first = chars.next().ok_or("the [ has no ]: write \\[ for the character")?;
        if first == ']' && !ranges.is_empty() {
            return Ok(Part::Class { negated, ranges });
        }
        if matches!(first, ']' | '-') {
            return Err("a class such as [a-z] begins with a character: write \\] or \\- for these");
        }
        let first = escaped(first, chars)?;
        let last = match chars.next_if_eq(&'-').and_then(|_| chars.next()) {
            Some(last) => escaped(last, chars)?,
            None => first,
        };
        ranges.push((first, last));
    }
}

/// Returns a character, or the one that it escapes.
fn escaped(c: char, chars: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    if c == '\\' { chars.next().ok_or("nothing follows the \\: write \\\\ for the character") } else { Ok(c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    fn left_out(text: &str, path: &str) -> bool {
        rules(text).choose(path.as_bytes(), false) == Choice::LeftOut
    }

    #[test]
    fn patterns_mean_what_docker_means() {
        for (pattern, matching, other) in [
            ("a", &["a", "a/b", "a/b/c"][..], &["b/a", "ab"][..]),
            ("/a/", &["a", "a/b"], &["b/a"]),
            ("./a//b/../c", &["a/c"], &["a", "a/b"]),
            ("*.log", &["x.log", ".log", "x.log/y"], &["a/x.log", "x.logs"]),
            ("*/x", &["a/x", "a/x/y"], &["x", "a/b/x"]),
            ("**/x", &["x", "a/x", "a/b/x", "a/x/y"], &["ax", "a/bx"]),
            ("**/*.pyc", &["x.pyc", "a/b/x.pyc"], &["x.py"]),
            ("**.pyc", &["x.pyc", "a/b/x.pyc"], &["x.py"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "b/a/c"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "b"]),
            ("**", &["a", "a/b"], &[]),
            ("a?", &["ab", "aä"], &["a", "a/", "abc"]),
            ("[a-cx].o", &["a.o", "c.o", "x.o"], &["d.o", "-.o"]),
            ("[^a].o", &["b.o"], &["a.o", "/.o"]),
            ("\\*[\\]\\-]", &["*]", "*-"], &["a]", "*"]),
            ("a+(b).c", &["a+(b).c"], &["aab.c"]),
            (" a b ", &["a b"], &["a"]),
        ] {
            for path in matching {
                assert!(left_out(pattern, path), "{pattern} does not match {path}");
            }
            for path in other {
                assert!(!left_out(pattern, path), "{pattern} matches {path}");
            }
        }
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let text = "\u{feff}# all but the documents\n\n*.md\n!README*.md\nREADME-secret.md\n # no comment\n";
        for (path, out) in
            [("a.md", true), ("README.md", false), ("README-secret.md", true), ("# no comment", true)]
        {
            assert_eq!(left_out(text, path), out, "{path}");
        }
        assert!(!left_out("!a\n", "a") && left_out("!a\na", "a"));
    }

    #[test]
    fn directories_are_looked_into_only_for_exceptions() {
        let all = rules("*\n!src/**/*.py\n!top");
        assert_eq!(all.choose(b"target", true), Choice::LeftOut);
        assert_eq!(all.choose(b"src", true), Choice::IfNeeded);
        assert_eq!(all.choose(b"src/a/b", true), Choice::IfNeeded);
        assert_eq!(all.choose(b"src/a/b.py", false), Choice::Packed);
        assert_eq!(all.choose(b"src/a/b.c", false), Choice::LeftOut);
        assert_eq!(all.choose(b"top/x", true), Choice::Packed);
        assert_eq!(rules("a").choose(b"a", true), Choice::LeftOut);
        assert_eq!(rules("*\n!**/x").choose(b"any", true), Choice::IfNeeded);
    }

    #[test]
    fn what_is_no_pattern_is_told_with_its_line() {
        for (text, line) in [("a\n[b", 2), ("!", 1), ("\n\n[]x]", 3), ("a\\", 1), ("[-a]", 1)] {
            assert_eq!(Rules::parse(text).err().map(|(line, _)| line), Some(line), "{text:?}");
        }
        assert!(Rules::parse(&"x".repeat(PATTERN_MAX + 1)).is_err());
    }

    #[test]
    fn no_pattern_takes_long() {
        let hard = format!("{}b", "*a**/".repeat(500));
        assert!(!left_out(&hard, &"a".repeat(2000)));
        assert!(left_out(&"*".repeat(PATTERN_MAX), "x"));
    }

    #[test]
    fn the_first_file_that_exists_counts() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert!(Rules::read(dir.path())?.0.is_empty());
        fs::write(dir.path().join(".dockerignore"), "docker\n")?;
        assert_eq!(Rules::read(dir.path())?.choose(b"docker", false), Choice::LeftOut);
        fs::write(dir.path().join(".wrennignore"), "wrenn\n")?;
        let rules = Rules::read(dir.path())?;
        assert_eq!(rules.choose(b"docker", false), Choice::Packed);
        assert_eq!(rules.choose(b"wrenn", false), Choice::LeftOut);
        fs::write(dir.path().join(".wrennignore"), "fine\n[\n")?;
        let error = Rules::read(dir.path()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(".wrennignore:2: the ["), "{error}");
        Ok(())
    }
}
