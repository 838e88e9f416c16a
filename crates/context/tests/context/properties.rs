// SPDX-License-Identifier: Apache-2.0
//! What holds for all trees of files.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use wrenn_context::SelectError;
use wrenn_recipe::{Copied, Source};
use wrenn_testkit::{fuzz, short_or_long};

use crate::support::{Thing, all, copied, gzip, taken, tar, unpacked, zip};

type Model = BTreeMap<String, Thing>;
type Entries = Vec<(String, Thing)>;

const NAMES: &[&str] = &["a", "b", "ab", "a.b", "é"];
/// Names and patterns of sources.
const SOURCES: &[&str] =
    &["a", "b", "ab", "a.b", "é", ".", "*", "?", "a*", "*b", "[ab]", "[^a]", "[a-b]*", "?.?", "none"];

/// Sources that mean something, to be damaged.
const WRITTEN: &[&str] =
    &["a/b", "./a//b/", "a/../b", "*/[ab]?", "[a-é]*/*", "[^]-]", "\\*/\\[", "**", "/", "é/a.b"];

fn thing() -> impl Strategy<Value = Thing> {
    let mode = 0..0o1000_u32;
    prop_oneof![
        3 => (mode.clone(), vec(any::<u8>(), 0..2000)).prop_map(|(mode, content)| Thing::File(mode, content)),
        1 => mode.prop_map(Thing::Directory),
        1 => select(&["a", "b/../a", "./é"][..]).prop_map(|target| Thing::Link(target.to_owned())),
    ]
}

/// Trees in which every directory has an entry.
fn model() -> impl Strategy<Value = Model> {
    vec((vec(select(NAMES), 1..4), thing()), 0..12).prop_map(|entries| {
        let mut model = Model::new();
        for (parts, thing) in entries {
            let path = |length: usize| parts[..length].join("/");
            let is_directory = |path: &str| matches!(model.get(path), None | Some(Thing::Directory(_)));
            let fits = (1..parts.len()).all(|length| is_directory(&path(length)));
            if !fits || model.contains_key(&path(parts.len())) {
                continue;
            }
            for length in 1..parts.len() {
                model.entry(path(length)).or_insert(Thing::Directory(0o755));
            }
            model.insert(path(parts.len()), thing);
        }
        model
    })
}

/// Trees with their entries in two orders.
fn shuffled() -> impl Strategy<Value = (Model, Entries, Entries)> {
    model().prop_flat_map(|model| {
        let entries: Entries = model.clone().into_iter().collect();
        (Just(model), Just(entries.clone()).prop_shuffle(), Just(entries).prop_shuffle())
    })
}

fn borrowed(entries: &[(String, Thing)]) -> Vec<(&str, Thing)> {
    entries.iter().map(|(name, thing)| (name.as_str(), thing.clone())).collect()
}

fn packed(model: &Model) -> Vec<u8> {
    let entries: Entries = model.clone().into_iter().collect();
    tar(&borrowed(&entries), 0)
}

/// Changes one entry in one way.
fn changed(model: &Model, at: Index, way: usize) -> Model {
    let mut model = model.clone();
    let path = model.keys().nth(at.index(model.len())).unwrap().clone();
    let thing = model.remove(&path).unwrap();
    let thing = match (thing, way) {
        (Thing::File(..) | Thing::Link(_), 0) => return model,
        (thing @ (Thing::File(..) | Thing::Link(_)), 1) => {
            model.insert(format!("{path}~"), thing);
            return model;
        }
        (Thing::File(mode, mut content), 2) => {
            content.push(0);
            Thing::File(mode, content)
        }
        (Thing::File(mode, content), _) => Thing::File(mode ^ 0o100, content),
        (Thing::Directory(mode), _) => Thing::Directory(mode ^ 0o001),
        (Thing::Link(target), _) => Thing::Link(target + "~"),
    };
    model.insert(path, thing);
    model
}

/// Tries every way to match a name.
fn matches(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', more @ ..], _) => (0..=name.len()).any(|taken| matches(more, &name[taken..])),
        (['?', more @ ..], [_, rest @ ..]) => matches(more, rest),
        (['[', '^', not, ']', more @ ..], [next, rest @ ..]) => next != not && matches(more, rest),
        (['[', low, '-', high, ']', more @ ..], [next, rest @ ..]) => {
            (low..=high).contains(&next) && matches(more, rest)
        }
        (['[', one, other, ']', more @ ..], [next, rest @ ..]) => {
            (next == one || next == other) && matches(more, rest)
        }
        ([own, more @ ..], [next, rest @ ..]) => own == next && matches(more, rest),
        _ => false,
    }
}

/// Returns all paths that a source names, in the order of their names: the empty one is the context itself.
fn named(model: &Model, source: &str) -> Vec<String> {
    let parts = |path: &str| -> Vec<Vec<char>> {
        path.split('/').filter(|part| !matches!(*part, "" | ".")).map(|part| part.chars().collect()).collect()
    };
    let patterns = parts(source);
    let all = model.keys().cloned().chain([String::new()]);
    let is_named = |path: &String| {
        let names = parts(path);
        names.len() == patterns.len()
            && patterns.iter().zip(&names).all(|(pattern, name)| matches(pattern, name))
    };
    let mut found: Vec<String> = all.filter(is_named).collect();
    found.sort_by_key(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
    found
}

/// Returns what is copied to `/x/y`, or into it.
fn naive(model: &Model, sources: &[String], into: bool) -> Result<(String, Model), SelectError> {
    let mut found = Vec::new();
    for source in sources {
        let named = named(model, source);
        if named.is_empty() {
            return Err(SelectError::Missing { source: source.clone() });
        }
        found.extend(named);
    }
    let is_directory = |path: &str| path.is_empty() || matches!(model[path], Thing::Directory(_));
    let as_file = !into && found.len() == 1 && !is_directory(&found[0]);
    let mut copied = Model::new();
    let mut put = |name: &str, thing: &Thing| {
        let former = copied.insert(name.to_owned(), thing.clone());
        let is_directory = |thing: &Thing| matches!(thing, Thing::Directory(_));
        if former.is_some_and(|former| is_directory(&former) != is_directory(thing)) {
            return Err(SelectError::Conflict { name: name.to_owned() });
        }
        Ok(())
    };
    for path in &found {
        if is_directory(path) {
            let before = if path.is_empty() { String::new() } else { format!("{path}/") };
            for (inner, thing) in model {
                inner.strip_prefix(&before).map_or(Ok(()), |name| put(name, thing))?;
            }
        } else {
            let name = if as_file { "y" } else { path.rsplit('/').next().unwrap() };
            put(name, &model[path])?;
        }
    }
    Ok((if as_file { "/x" } else { "/x/y" }.to_owned(), copied))
}

/// Each case writes to the disk.
fn few() -> ProptestConfig {
    ProptestConfig { cases: short_or_long(64, 2_000), ..fuzz::config() }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn a_digest_is_of_what_is_in_a_context_and_nothing_else((model, one, two) in shuffled(), time in 1..1_u64 << 32) {
        let (one, two) = (borrowed(&one), borrowed(&two));
        let plain = taken(&tar(&one, 0)).unwrap();
        prop_assert_eq!(all(&plain), model.clone());
        for archive in [gzip(&tar(&two, time)), zip(&one), zip(&two)] {
            let context = taken(&archive).unwrap();
            prop_assert_eq!(all(&context), model.clone());
            prop_assert_eq!(&context.digest, &plain.digest);
        }
    }

    #[test]
    fn whatever_changes_changes_the_digest(model in model(), at in any::<Index>(), way in 0_usize..4) {
        prop_assume!(!model.is_empty());
        let other = changed(&model, at, way);
        let (one, other) = (taken(&packed(&model)).unwrap(), taken(&packed(&other)).unwrap());
        prop_assert_ne!(&one.digest, &other.digest);
        let of = |context: &wrenn_context::Context| context.select(&copied(&["."], "/")).unwrap().digests();
        prop_assert_ne!(of(&one), of(&other));
    }

    #[test]
    fn a_selection_is_that_of_the_naive_one(
        model in model(),
        sources in vec(vec(select(SOURCES), 1..4), 1..4),
        into in any::<bool>(),
    ) {
        let context = taken(&packed(&model)).unwrap();
        let sources: Vec<String> = sources.iter().map(|parts| parts.join("/")).collect();
        let copied = Copied {
            sources: sources.iter().cloned().map(Source::Context).collect(),
            into_directory: into,
            ..copied(&[], "/x/y")
        };
        let selected = context.select(&copied);
        let selected = selected.map(|selection| (selection.directory.clone(), unpacked(&selection)));
        prop_assert_eq!(selected, naive(&model, &sources, into));
    }

    /// Whatever a recipe says, only what is in the context is taken, under names that stay in the destination.
    #[test]
    fn whatever_a_source_says_is_selected_or_refused(
        model in model(),
        sources in vec(fuzz::damaged(WRITTEN), 1..3),
        into in any::<bool>(),
    ) {
        let context = taken(&packed(&model)).unwrap();
        let text = |source: &Vec<u8>| Source::Context(String::from_utf8_lossy(source).into_owned());
        let sources: Vec<Source<String>> = sources.iter().map(text).collect();
        let copied = Copied { sources, into_directory: into, ..copied(&[], "/x/y") };
        match context.select(&copied) {
            Ok(selection) => {
                prop_assert!(matches!(selection.directory.as_str(), "/x" | "/x/y"), "{}", selection.directory);
                for (name, thing) in unpacked(&selection) {
                    let is_plain = !name.split('/').any(|part| matches!(part, "" | "." | ".."));
                    prop_assert!(is_plain, "{}", name);
                    prop_assert!(model.values().any(|own| *own == thing), "{} is not of the context", name);
                }
            }
            Err(error) => {
                let is_of_source = !matches!(error, SelectError::TooMuch { .. });
                prop_assert!(is_of_source && !error.to_string().is_empty(), "{}", error);
            }
        }
    }
}
