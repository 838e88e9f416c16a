// SPDX-License-Identifier: Apache-2.0
//! What is in a context: paths with what is there. Every directory that a path is in is there, too.

use std::{
    collections::{BTreeMap, btree_map::Range},
    ops::Bound,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{ContextError, refused, shown},
    hash::Fields,
    limits::Limits,
};

/// Time of what has none of its own, in seconds since 1970: the beginning of 1980, because no zip archive has an earlier one.
pub(crate) const TIME: i64 = 315_532_800;
/// Mode of directories that an archive has no entry for.
pub(crate) const DIRECTORY_MODE: u32 = 0o755;

/// A file, a directory or a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Seconds since 1970.
    pub(crate) time: i64,
    pub(crate) what: What,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Directory,
    File(Stored),
    /// A symbolic link with its target.
    Link(String),
}

/// Content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Where it begins in the archive that is kept.
    pub(crate) offset: u64,
    pub(crate) size: u64,
    /// Digest of the content alone.
    pub(crate) digest: String,
}

impl Entry {
    pub(crate) fn is_directory(&self) -> bool {
        self.what == What::Directory
    }

    /// Returns the size of a file's content; 0 for all else.
    pub(crate) fn size(&self) -> u64 {
        if let What::File(stored) = &self.what { stored.size } else { 0 }
    }

    /// Returns the digest of everything but the time. The mode of a link means nothing.
    pub(crate) fn digest(&self) -> String {
        let (kind, mode, content) = match &self.what {
            What::Directory => ("directory", self.mode, ""),
            What::File(stored) => ("file", self.mode, stored.digest.as_str()),
            What::Link(target) => ("link", 0, target.as_str()),
        };
        let mut fields = Fields::of(kind);
        fields.add(mode.to_be_bytes());
        fields.add(content);
        fields.digest()
    }
}

/// The entries of a context by their paths.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
    /// Bytes of names and targets of links so far.
    #[serde(skip)]
    name_bytes: u64,
}

impl Tree {
    /// Inserts an entry in the place of one that is there already, and directories that it is in and that are missing.
    pub(crate) fn insert(&mut self, path: String, entry: Entry, limits: &Limits) -> Result<(), ContextError> {
        if path.is_empty() {
            return Err(refused(b"", "it has no name; give it one"));
        }
        self.make_parents(&path, limits)?;
        if let What::Link(target) = &entry.what {
            self.charge(target.len(), limits)?;
        }
        match self.entries.get_mut(&path) {
            None => self.add(path, entry, limits),
            Some(former) if former.is_directory() == entry.is_directory() => {
                *former = entry;
                Ok(())
            }
            Some(_) => {
                let problem = "the archive has it as a directory and as something else; pack one";
                Err(refused(path.as_bytes(), problem))
            }
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<(&str, &Entry)> {
        self.entries.get_key_value(path).map(|(path, entry)| (path.as_str(), entry))
    }

    /// Returns the digest of what is in the context.
    pub(crate) fn digest(&self) -> String {
        let mut fields = Fields::of("wrenn context 1");
        for (path, entry) in &self.entries {
            fields.add(path);
            fields.add(entry.digest());
        }
        fields.digest()
    }

    /// Returns all that is in a directory and in directories within, in the order of the paths: each directory comes before
    /// what is in it. The empty path is the context itself.
    pub(crate) fn within(&self, directory: &str) -> Range<'_, String, Entry> {
        if directory.is_empty() {
            return self.entries.range::<str, _>(..);
        }
        // The character after `/` ends what begins with the directory and a slash.
        let (from, to) = (format!("{directory}/"), format!("{directory}0"));
        let bounds: (Bound<&str>, Bound<&str>) = (Bound::Included(&from), Bound::Excluded(&to));
        self.entries.range::<str, _>(bounds)
    }

    /// Returns what is in a directory, but not what is in directories within.
    pub(crate) fn children(&self, directory: &str) -> Vec<&str> {
        let before = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let (mut children, mut from) = (Vec::new(), Bound::Included(before.clone()));
        loop {
            let bounds: (Bound<&str>, Bound<&str>) = (from.as_ref().map(String::as_str), Bound::Unbounded);
            let Some((path, _)) = self.entries.range::<str, _>(bounds).next() else { return children };
            let Some(name) = path.strip_prefix(&before) else { return children };
            from = match name.split_once('/') {
                None => {
                    children.push(path.as_str());
                    Bound::Excluded(path.clone())
                }
                // It is in a child that was found before, as everything is up to here.
                Some((child, _)) => Bound::Included(format!("{before}{child}0")),
            };
        }
    }

    /// Makes the directories that a path is in, as far as they are missing.
    fn make_parents(&mut self, path: &str, limits: &Limits) -> Result<(), ContextError> {
        let (mut missing, mut at) = (Vec::new(), path);
        while let Some((parent, _)) = at.rsplit_once('/') {
            match self.entries.get(parent) {
                None => missing.push(parent),
                Some(entry) if entry.is_directory() => break,
                Some(_) => {
                    let parent = shown(parent.as_bytes());
                    let problem = format!("it is in {parent}, which is no directory; pack one of them");
                    return Err(refused(path.as_bytes(), problem));
                }
            }
            at = parent;
        }
        for parent in missing {
            let entry = Entry { mode: DIRECTORY_MODE, time: TIME, what: What::Directory };
            self.add(parent.to_owned(), entry, limits)?;
        }
        Ok(())
    }

    fn add(&mut self, path: String, entry: Entry, limits: &Limits) -> Result<(), ContextError> {
        if self.entries.len() as u64 >= u64::from(limits.entries) {
            return Err(ContextError::TooMany {
                what: "files and directories",
                limit: limits.entries.into(),
            });
        }
        self.charge(path.len(), limits)?;
        self.entries.insert(path, entry);
        Ok(())
    }

    fn charge(&mut self, bytes: usize, limits: &Limits) -> Result<(), ContextError> {
        self.name_bytes = self.name_bytes.saturating_add(bytes as u64);
        if self.name_bytes > limits.name_bytes() {
            let what = "the names of the files in the archive have together";
            return Err(ContextError::TooLarge { what, limit: limits.name_bytes() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(what: What) -> Entry {
        Entry { mode: 0o644, time: 0, what }
    }

    fn file(content: &str) -> Entry {
        entry(What::File(Stored { offset: 0, size: 1, digest: content.to_owned() }))
    }

    fn tree(entries: &[(&str, Entry)]) -> Result<Tree, ContextError> {
        let (mut tree, limits) = (Tree::default(), Limits { entries: 20, ..Limits::default() });
        for (path, entry) in entries {
            tree.insert((*path).to_owned(), entry.clone(), &limits)?;
        }
        Ok(tree)
    }

    #[test]
    fn what_is_in_a_directory_is_found_whatever_the_names() {
        let paths = ["d-e", "d/a-", "d/a/x/y", "d/a0", "d/b", "d0", "e"];
        let tree = tree(&paths.map(|path| (path, file("")))).unwrap();
        assert_eq!(tree.children("d"), ["d/a", "d/a-", "d/a0", "d/b"]);
        assert_eq!(tree.children(""), ["d", "d-e", "d0", "e"]);
        assert_eq!(tree.children("d/b"), [""; 0]);
        let within: Vec<&String> = tree.within("d").map(|(path, _)| path).collect();
        assert_eq!(within, ["d/a", "d/a-", "d/a/x", "d/a/x/y", "d/a0", "d/b"]);
        assert_eq!(tree.within("").count(), 10);
    }

    #[test]
    fn the_last_of_a_name_counts_unless_a_directory_becomes_another_thing() {
        let link = || entry(What::Link("x".to_owned()));
        let tree_of = |entries: &[(&str, Entry)]| tree(entries).ok().map(|tree| tree.digest());
        let last = tree_of(&[("a", file("2"))]);
        assert_eq!(tree_of(&[("a", file("1")), ("a", link()), ("a", file("2"))]), last);
        let closed = || Entry { mode: 0o700, ..entry(What::Directory) };
        let first = tree_of(&[("d", closed()), ("d/a", file("1"))]);
        assert_eq!(tree_of(&[("d/a", file("1")), ("d", closed())]), first);
        for clash in [
            [("a", file("1")), ("a", entry(What::Directory))],
            [("a", entry(What::Directory)), ("a", link())],
            [("a", file("1")), ("a/b", file("2"))],
            [("a", link()), ("a/b/c", file("2"))],
            [("a/b", file("1")), ("a", file("2"))],
        ] {
            let error = tree(&clash).err();
            assert!(matches!(error, Some(ContextError::Path { .. })), "{clash:?}: {error:?}");
        }
    }

    #[test]
    fn a_digest_depends_on_all_but_the_time() {
        let one = |path: &str, entry: Entry| tree(&[(path, entry)]).unwrap().digest();
        let digest = one("a", file("1"));
        assert_eq!(one("a", Entry { time: 7, ..file("1") }), digest);
        let others = [
            one("b", file("1")),
            one("a", file("2")),
            one("a", Entry { mode: 0o600, ..file("1") }),
            one("a", entry(What::Link("1".to_owned()))),
            one("a", entry(What::Directory)),
            tree(&[("a", file("1")), ("b", file("1"))]).unwrap().digest(),
        ];
        assert!(!others.contains(&digest));
    }

    #[test]
    fn directories_that_no_entry_is_for_count() {
        let deep = "d/".repeat(19) + "f";
        assert_eq!(tree(&[(deep.as_str(), file(""))]).unwrap().within("").count(), 20);
        let deeper = format!("d/{deep}");
        assert!(matches!(tree(&[(deeper.as_str(), file(""))]), Err(ContextError::TooMany { limit: 20, .. })));
        let long = ["n".repeat(255), "m".repeat(255)].join("/").repeat(20);
        assert!(matches!(tree(&[(long.as_str(), file(""))]), Err(ContextError::TooLarge { .. })));
    }
}
