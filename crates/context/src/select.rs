// SPDX-License-Identifier: Apache-2.0
//! Finds what a `COPY` takes from a context, and under which names.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use wrenn_recipe::{Copied, Mode, Source, names};

use crate::{
    error::SelectError,
    hash::hex,
    limits::Limits,
    pattern::{Pattern, is_pattern},
    selection::Item,
    tree::{Entry, Stored, TIME, Tree, What},
};

/// Steps that it may take to find the sources of a `COPY`, about a second: a recipe is input, and so are the names that its
/// patterns are compared with.
const STEPS: u64 = 200_000_000;
/// Steps of each entry that is visited, besides those for its name.
const VISIT: u64 = 64;
/// Mode of files in a recipe.
const INLINE_MODE: u32 = 0o644;

/// What a source is.
enum Found<'a> {
    /// A directory, by its path.
    Directory(&'a str),
    /// A file or a link.
    Other(&'a str, &'a Entry),
    /// A file in the recipe: its name and its content.
    Inline(&'a str, &'a str),
}

/// Returns the directory that is copied into, and what is copied by its name in it.
pub(crate) fn select(
    tree: &Tree,
    limits: &Limits,
    copied: &Copied,
) -> Result<(String, BTreeMap<String, Item>), SelectError> {
    let mut finding = Finding { tree, steps: 0 };
    let mut all = Vec::new();
    for source in &copied.sources {
        match source {
            Source::Context(path) => finding.find(path, &mut all)?,
            Source::Inline { name, content } => all.push(Found::Inline(name, content)),
        }
    }
    let (directory, name) = place(copied, &all);
    let mut copying = Copying { limits, mode: copied.mode, items: BTreeMap::new(), bytes: 0 };
    for found in all {
        match found {
            Found::Directory(path) => {
                for (inner, entry) in tree.within(path) {
                    finding.spend(VISIT + inner.len() as u64)?;
                    let name = if path.is_empty() { inner.as_str() } else { &inner[path.len() + 1..] };
                    copying.add(name, entry.clone(), None)?;
                }
            }
            Found::Other(path, entry) => copying.add(name.unwrap_or(last(path)), entry.clone(), None)?,
            Found::Inline(own, content) => {
                let digest = hex(&Sha256::digest(content));
                let stored = Stored { offset: 0, size: content.len() as u64, digest };
                let entry = Entry { mode: INLINE_MODE, time: TIME, what: What::File(stored) };
                copying.add(name.unwrap_or(own), entry, Some(content))?;
            }
        }
    }
    Ok((directory.to_owned(), copying.items))
}

/// Returns the directory that is copied into, and the name in it if one file gets the name of the destination.
fn place<'a>(copied: &'a Copied, all: &[Found<'_>]) -> (&'a str, Option<&'a str>) {
    let destination = copied.destination.as_str();
    let is_one_file = matches!(all, [Found::Other(..) | Found::Inline(..)]);
    match destination.rsplit_once('/') {
        Some((parent, name)) if is_one_file && !copied.into_directory && !name.is_empty() => {
            (if parent.is_empty() { "/" } else { parent }, Some(name))
        }
        _ => (destination, None),
    }
}

/// Looks for sources.
struct Finding<'a> {
    tree: &'a Tree,
    steps: u64,
}

impl<'a> Finding<'a> {
    /// Finds all that a source names.
    fn find(&mut self, source: &str, all: &mut Vec<Found<'a>>) -> Result<(), SelectError> {
        let mut places = vec![""];
        for name in names(source) {
            self.spend(VISIT)?;
            places = if is_pattern(name) {
                let wrong = |problem| SelectError::Pattern { source: source.to_owned(), problem };
                self.matching(&places, &Pattern::parse(name).map_err(wrong)?)?
            } else {
                self.named(&places, name)?
            };
        }
        if places.is_empty() {
            return Err(SelectError::Missing { source: source.to_owned() });
        }
        for place in places {
            all.push(match self.tree.get(place) {
                Some((path, entry)) if !entry.is_directory() => Found::Other(path, entry),
                _ => Found::Directory(place),
            });
        }
        Ok(())
    }

    /// Returns what has the name in any of the directories.
    fn named(&mut self, directories: &[&'a str], name: &str) -> Result<Vec<&'a str>, SelectError> {
        let mut found = Vec::new();
        for directory in directories {
            let path = joined(directory, name);
            self.spend(VISIT + path.len() as u64)?;
            found.extend(self.tree.get(&path).map(|(path, _)| path));
        }
        Ok(found)
    }

    /// Returns what matches the pattern in any of the directories.
    fn matching(&mut self, directories: &[&'a str], pattern: &Pattern) -> Result<Vec<&'a str>, SelectError> {
        let mut found = Vec::new();
        for directory in directories {
            for path in self.tree.children(directory) {
                let name = last(path);
                self.spend(VISIT + path.len() as u64 + pattern.cost(name))?;
                if pattern.matches(name) {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }

    fn spend(&mut self, steps: u64) -> Result<(), SelectError> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > STEPS { Err(SelectError::TooSlow) } else { Ok(()) }
    }
}

/// What is copied so far.
struct Copying<'a> {
    limits: &'a Limits,
    mode: Option<Mode>,
    items: BTreeMap<String, Item>,
    bytes: u64,
}

impl Copying<'_> {
    fn add(&mut self, name: &str, mut entry: Entry, inline: Option<&str>) -> Result<(), SelectError> {
        if let Some(mode) = self.mode.filter(|_| !matches!(entry.what, What::Link(_))) {
            entry.mode = mode.bits().into();
        }
        let former = self.items.get(name).map(|item| &item.entry);
        if former.is_some_and(|former| former.is_directory() != entry.is_directory()) {
            return Err(SelectError::Conflict { name: name.to_owned() });
        }
        self.bytes = self.bytes.saturating_add(entry.size()) - former.map_or(0, Entry::size);
        if self.bytes > self.limits.unpacked_bytes {
            return Err(SelectError::TooMuch { what: "bytes", limit: self.limits.unpacked_bytes });
        }
        self.items.insert(name.to_owned(), Item { entry, inline: inline.map(str::to_owned) });
        if self.items.len() as u64 > u64::from(self.limits.entries) {
            return Err(SelectError::TooMuch {
                what: "files and directories",
                limit: self.limits.entries.into(),
            });
        }
        Ok(())
    }
}

fn joined(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Returns the last name of a path.
fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(source: &str) -> Copied {
        Copied {
            sources: vec![Source::Context(source.to_owned())],
            destination: "/x".to_owned(),
            into_directory: true,
            owner: None,
            mode: None,
        }
    }

    fn tree(names: impl Iterator<Item = String>) -> Tree {
        let (mut tree, limits) = (Tree::default(), Limits::default());
        for name in names {
            let stored = Stored { offset: 0, size: 1, digest: String::new() };
            tree.insert(name, Entry { mode: 0, time: 0, what: What::File(stored) }, &limits).unwrap();
        }
        tree
    }

    #[test]
    fn sources_that_take_too_long_are_refused() {
        let tree = tree((0..5_000).map(|number| format!("{}{number}", "a".repeat(100))));
        let limits = Limits::default();
        let quick = select(&tree, &limits, &copied(&("*a".repeat(10) + "*")));
        assert_eq!(quick.map(|(_, items)| items.len()), Ok(5_000));
        let slow = select(&tree, &limits, &copied(&"*a".repeat(1_000)));
        assert_eq!(slow.err(), Some(SelectError::TooSlow));
    }

    #[test]
    fn what_is_copied_is_within_the_limits() {
        let tree = tree((0..10).map(|number| format!("d/{number}")));
        for (unpacked_bytes, entries, taken) in [(10, 10, true), (10, 9, false), (9, 10, false)] {
            let limits = Limits { unpacked_bytes, entries, ..Limits::default() };
            let outcome = select(&tree, &limits, &copied("d"));
            assert_eq!(outcome.is_ok(), taken, "{unpacked_bytes} {entries}");
        }
        let twice = Copied { sources: vec![Source::Context("d".to_owned()); 2], ..copied("d") };
        let limits = Limits { unpacked_bytes: 10, ..Limits::default() };
        assert!(select(&tree, &limits, &twice).is_ok(), "what is replaced does not count");
    }
}
