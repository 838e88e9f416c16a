// SPDX-License-Identifier: Apache-2.0
//! Random layers become what a simple model of layers in memory says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use proptest::{
    collection::vec, prelude::Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
    test_runner::Config,
};
use tar::EntryType;
use wrenn_oci::Rules;

use crate::support::{
    disk::{Seen, tree, unpacked},
    layers::{Item, item, layer},
};

/// An entry of a layer.
#[derive(Debug, Clone)]
enum Operation {
    File(String),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

use Operation::{Directory, File, HardLink, Opaque, Symlink, Whiteout};

fn operation() -> impl Strategy<Value = Operation> {
    const PATH: &str = "[abc](/[abc]){0,2}";
    prop_oneof![
        4 => PATH.prop_map(File),
        3 => PATH.prop_map(Directory),
        2 => (PATH, "(/|\\.\\./)?[abc](/[abc])?").prop_map(|(path, target)| Symlink(path, target)),
        2 => (PATH, PATH).prop_map(|(path, target)| HardLink(path, target)),
        2 => PATH.prop_map(Whiteout),
        1 => PATH.prop_map(Opaque),
    ]
}

/// Names from the top on.
type Names = Vec<String>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    /// With content that no other file has.
    File(String),
    Symlink(String),
}

/// What there is, and what of it is the current layer's own.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<Names, Node>,
    own: BTreeSet<Names>,
}

/// The layer is refused.
#[derive(Debug)]
struct Refused;

impl Model {
    fn apply(&mut self, number: usize, operations: &[Operation]) -> Result<(), Refused> {
        self.own.clear();
        for (at, operation) in operations.iter().enumerate() {
            match operation {
                File(path) => {
                    let place = self.place(path)?;
                    self.put(place, Node::File(content(number, at)));
                }
                Symlink(path, target) => {
                    let place = self.place(path)?;
                    self.put(place, Node::Symlink(target.clone()));
                }
                Directory(path) => {
                    let place = self.place(path)?;
                    if self.nodes.get(&place) == Some(&Node::Directory) {
                        self.own.insert(place);
                    } else {
                        self.put(place, Node::Directory);
                    }
                }
                HardLink(path, target) => {
                    let place = self.place(path)?;
                    let first = self.existing(target).ok_or(Refused)?;
                    if first != place {
                        self.remove(&place);
                    }
                    match self.nodes.get(&first).cloned() {
                        Some(_) if first == place => {
                            self.own.insert(place);
                        }
                        Some(node) if node != Node::Directory => self.put(place, node),
                        _ => return Err(Refused),
                    }
                }
                Whiteout(path) => {
                    if let Some(place) = self.existing(path) {
                        self.hide(&place);
                    }
                }
                Opaque(path) => {
                    if let Ok(Some(directory)) = self.directory(names(path), false) {
                        let depth = directory.len() + 1;
                        let below = |path: &&Names| path.len() == depth && path.starts_with(&directory);
                        let inner: Vec<_> = self.nodes.keys().filter(below).cloned().collect();
                        inner.iter().for_each(|place| self.hide(place));
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds where an entry is to be, and makes the directories that it is in.
    fn place(&mut self, path: &str) -> Result<Names, Refused> {
        let mut above = names(path);
        let name = above.pop().ok_or(Refused)?;
        let mut place = self.directory(above, true)?.ok_or(Refused)?;
        place.push(name);
        Ok(place)
    }

    /// Finds where an entry would be, if it is in a directory that is there.
    fn existing(&mut self, path: &str) -> Option<Names> {
        let mut above = names(path);
        let name = above.pop()?;
        let mut place = self.directory(above, false).ok()??;
        place.push(name);
        Some(place)
    }

    /// Follows links to a directory; one that is missing is made, or none.
    fn directory(&mut self, path: Names, make: bool) -> Result<Option<Names>, Refused> {
        let (mut coming, mut found, mut links) = (path, Names::new(), 0);
        coming.reverse();
        while let Some(name) = coming.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            found.push(name);
            match self.nodes.get(&found).cloned() {
                Some(Node::Directory) => {}
                Some(Node::File(_)) => return Err(Refused),
                Some(Node::Symlink(target)) => {
                    found.pop();
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    if target.starts_with('/') {
                        found.clear();
                    }
                    coming.extend(names(&target).into_iter().rev());
                }
                None if make => {
                    self.nodes.insert(found.clone(), Node::Directory);
                    self.own.insert(found.clone());
                }
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    fn put(&mut self, place: Names, node: Node) {
        self.remove(&place);
        self.own.insert(place.clone());
        self.nodes.insert(place, node);
    }

    fn remove(&mut self, place: &Names) {
        self.nodes.retain(|path, _| !path.starts_with(place));
    }

    /// Removes what is not the layer's own, from the innermost on.
    fn hide(&mut self, place: &Names) {
        let paths: Vec<_> = self.nodes.keys().filter(|path| path.starts_with(place)).cloned().collect();
        for path in paths.iter().rev() {
            let is_full = self.nodes.keys().any(|other| other.len() > path.len() && other.starts_with(path));
            if !is_full && !self.own.contains(path) {
                self.nodes.remove(path);
            }
        }
    }

    fn shown(&self) -> BTreeMap<PathBuf, Shown> {
        let show = |node: &Node| match node {
            Node::Directory => (None, String::new(), 0),
            Node::Symlink(target) => (Some(PathBuf::from(target)), String::new(), 0),
            Node::File(content) => {
                let names = self.nodes.values().filter(|other| *other == node).count();
                (None, content.clone(), names as u64)
            }
        };
        self.nodes.iter().map(|(path, node)| (path.iter().collect(), show(node))).collect()
    }
}

/// Link, content and number of names of what is at a path.
type Shown = (Option<PathBuf>, String, u64);

fn on_disk(directory: &Path) -> BTreeMap<PathBuf, Shown> {
    let show = |seen: Seen| {
        let names = if seen.link.is_some() { 0 } else { seen.names };
        (seen.link, String::from_utf8_lossy(&seen.content).into_owned(), names)
    };
    tree(directory).into_iter().map(|(path, seen)| (path, show(seen))).collect()
}

fn names(path: &str) -> Names {
    path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn content(layer: usize, entry: usize) -> String {
    format!("file {entry} of layer {layer}")
}

/// Packs a layer.
fn packed(number: usize, operations: &[Operation]) -> Vec<u8> {
    let parts: Vec<(EntryType, String, String, String)> = operations
        .iter()
        .enumerate()
        .map(|(at, operation)| {
            let (kind, name, link) = match operation {
                File(path) => (EntryType::Regular, path.clone(), ""),
                Directory(path) => (EntryType::Directory, format!("{path}/"), ""),
                Symlink(path, target) => (EntryType::Symlink, path.clone(), target.as_str()),
                HardLink(path, target) => (EntryType::Link, path.clone(), target.as_str()),
                Whiteout(path) => match path.rsplit_once('/') {
                    Some((above, name)) => (EntryType::Regular, format!("{above}/.wh.{name}"), ""),
                    None => (EntryType::Regular, format!(".wh.{path}"), ""),
                },
                Opaque(path) => (EntryType::Regular, format!("{path}/.wh..wh..opq"), ""),
            };
            let content = if matches!(operation, File(_)) { content(number, at) } else { String::new() };
            (kind, name, link.to_owned(), content)
        })
        .collect();
    let items: Vec<_> = parts
        .iter()
        .map(|(kind, name, link, content)| Item {
            link: link.as_bytes(),
            content: content.as_bytes(),
            ..item(*kind, name)
        })
        .collect();
    layer(&items)
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(500) })]

    #[test]
    fn layers_become_what_the_model_says(layers in vec(vec(operation(), 0..8), 1..4)) {
        let mut model = Model::default();
        let told = layers.iter().enumerate().try_for_each(|(number, layer)| model.apply(number, layer));
        let packed: Vec<_> = layers.iter().enumerate().map(|(number, layer)| packed(number, layer)).collect();
        let home = tempfile::tempdir()?;
        let done = unpacked(home.path(), &packed, &Rules::default());
        prop_assert!(done.is_ok() == told.is_ok(), "{done:?}, but the model says {told:?}");
        if told.is_ok() {
            prop_assert_eq!(on_disk(home.path()), model.shown());
        }
    }
}
