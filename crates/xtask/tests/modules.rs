// SPDX-License-Identifier: Apache-2.0
//! No circles of modules: of the modules beside each other, none may use another that uses it, directly or over
//! others. What a module and its own parts use of each other does not count, nor do tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

type Name = Vec<String>;
/// Modules that each module uses, among those beside it.
type Uses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_modules_use_each_other() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crates");
    let mut found = Vec::new();
    for dir in fs::read_dir(crates).expect("the crates").flatten() {
        let modules = modules(&dir.path().join("src"));
        assert!(!modules.is_empty(), "{} has no modules", dir.path().display());
        for (parent, uses) in uses(&modules) {
            let circles = circles(&uses);
            found.extend(
                circles
                    .iter()
                    .map(|circle| format!("{}: {} {circle:?}", dir.file_name().display(), parent.join("::"))),
            );
        }
    }
    assert!(found.is_empty(), "circles of modules:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str, text: &str| (name.split("::").map(str::to_owned).collect(), text.to_owned());
    let modules: BTreeMap<Name, String> = BTreeMap::from([
        module("a", "use crate::{x::Y, b::{C, d}};"),
        module("b", "mod d;"),
        module("b::d", "fn f() { super::super::c::g() }"),
        module("c", "use super::a;"),
        module("x", "use std::fmt;"),
    ]);
    let found: Vec<_> = uses(&modules).into_values().flat_map(|uses| circles(&uses)).collect();
    let expected = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(found, [expected]);
}

/// Reads the modules below `src` without their comments and tests.
fn modules(src: &Path) -> BTreeMap<Name, String> {
    let (mut found, mut of_tests) = (BTreeMap::new(), BTreeSet::new());
    let mut waiting = vec![(src.to_owned(), Name::new())];
    while let Some((dir, parent)) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let child = [parent.clone(), vec![stem.clone()]].concat();
            if path.is_dir() {
                waiting.push((path, child));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let root = ["mod", "lib", "main"].contains(&stem.as_str());
                let name = if root { parent.clone() } else { child };
                let text = fs::read_to_string(&path).expect("a source");
                let code: Vec<_> =
                    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
                let code = code.join("\n");
                of_tests.extend(test_modules(&code).map(|test| [name.clone(), vec![test]].concat()));
                let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
                found.insert(name, code[..end].to_owned());
            }
        }
    }
    found.retain(|name: &Name, _| !of_tests.iter().any(|test| name.starts_with(test)));
    found
}

/// Names of the modules in other files that are compiled for tests only.
fn test_modules(code: &str) -> impl Iterator<Item = String> {
    code.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let item = rest.trim_start().lines().next()?;
        let name = item.trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')?;
        Some(name.to_owned())
    })
}

/// Uses between modules beside each other, by their parent.
fn uses(modules: &BTreeMap<Name, String>) -> BTreeMap<Name, Uses> {
    let mut all: BTreeMap<Name, Uses> = BTreeMap::new();
    for (name, code) in modules {
        for mut used in paths(name, code) {
            while !modules.contains_key(&used) && used.pop().is_some() {}
            let same = name.iter().zip(&used).take_while(|(one, other)| one == other).count();
            if let (Some(own), Some(other)) = (name.get(same), used.get(same)) {
                let uses = all.entry(name[..same].to_vec()).or_default();
                uses.entry(own.clone()).or_default().insert(other.clone());
            }
        }
    }
    all
}

/// Absolute paths of everything that a module's code names from `crate` or `super`.
fn paths(name: &Name, code: &str) -> Vec<Name> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        read(&code[at + "crate::".len()..], Name::new(), &mut found);
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut base = name.clone();
        while let Some(next) = rest.strip_prefix("super::") {
            base.pop();
            rest = next;
        }
        read(rest, base, &mut found);
    }
    found
}

/// Reads a path, or the paths of a group in braces; returns the rest of the code.
fn read<'a>(code: &'a str, base: Name, found: &mut Vec<Name>) -> &'a str {
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches([' ', '\n', ',']);
            if rest.is_empty() || rest.starts_with('}') {
                return rest.get(1..).unwrap_or_default();
            }
            let after = read(rest, base.clone(), found);
            // Something else than a path, such as `*`.
            rest = if after.len() == rest.len() { after.get(1..).unwrap_or_default() } else { after };
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (word, rest) = code.split_at(end);
    let path = if word.is_empty() { base } else { [base, vec![word.to_owned()]].concat() };
    if let Some(rest) = rest.strip_prefix("::").filter(|_| !word.is_empty()) {
        return read(rest, path, found);
    }
    found.push(path);
    rest
}

/// Groups of modules each of which uses itself over the others.
fn circles(uses: &Uses) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let (mut reached, mut waiting) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(next) = waiting.pop() {
            for used in uses.get(&next).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    waiting.push(used.clone());
                }
            }
        }
        reached
    };
    let all: BTreeMap<_, _> = uses.keys().map(|name| (name.clone(), reached(name))).collect();
    let of = |name: &String| {
        all.keys().filter(|other| all[name].contains(*other) && all[*other].contains(name)).cloned().collect()
    };
    let circles: BTreeSet<Vec<String>> =
        all.keys().filter(|name| all[*name].contains(*name)).map(of).collect();
    circles.into_iter().collect()
}
