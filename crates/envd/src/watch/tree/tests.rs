// SPDX-License-Identifier: Apache-2.0
//! Tests in which many changes come before any of them is handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn open(dir: &TempDir) -> Tree {
    let asked = Asked { path: dir.path().into(), recursive: true, entries: false, network: false };
    Tree::open(asked, Places::new(10_000)).unwrap()
}

/// Handles all there is; returns names and kinds. An overflow has no name.
fn drain(tree: &mut Tree) -> Vec<(String, EventType)> {
    let mut all = Vec::new();
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < LONG, "{} events", all.len());
        match tree.step() {
            Step::Happened(happened) => all.extend(happened.into_iter().map(|one| match one {
                Happened::Change(change) => (change.name, change.kind),
                Happened::Overflow => (String::new(), EventType::EVENT_TYPE_UNSPECIFIED),
            })),
            Step::Idle(None) => return all,
            Step::Idle(Some(rest)) => std::thread::sleep(rest),
            Step::Ended(error) => panic!("{error}"),
        }
    }
}

/// All that is in a directory, with whether it is a directory.
fn real(dir: &Path) -> BTreeMap<String, bool> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for item in fs::read_dir(at).unwrap() {
            let path = item.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            all.insert(name, path.is_dir());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    all
}

/// What a client knows that follows the events; it lists anew after an overflow.
fn follow(known: &mut BTreeSet<String>, events: &[(String, EventType)], dir: &Path) {
    for (name, kind) in events {
        match kind {
            EventType::EVENT_TYPE_UNSPECIFIED => *known = real(dir).into_keys().collect(),
            EventType::EVENT_TYPE_CREATE => drop(known.insert(name.clone())),
            EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME => {
                known.retain(|k| k != name && !k.starts_with(&format!("{name}/")));
            }
            _ => {}
        }
    }
}

#[test]
fn a_change_right_after_a_move_has_the_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("a/sub")).unwrap();
    fs::write(path("a/sub/file"), "").unwrap();
    let mut tree = open(&dir);
    fs::rename(path("a"), path("b")).unwrap();
    let file = fs::File::open(path("b/sub/file")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    file.set_permissions(mode).unwrap();
    let events = drain(&mut tree);
    let wanted = [
        ("a", EventType::EVENT_TYPE_RENAME),
        ("b", EventType::EVENT_TYPE_CREATE),
        ("b/sub", EventType::EVENT_TYPE_CREATE),
        ("b/sub/file", EventType::EVENT_TYPE_CREATE),
        ("b/sub/file", EventType::EVENT_TYPE_CHMOD),
    ];
    assert_eq!(events, wanted.map(|(name, kind)| (name.to_owned(), kind)));
}

#[test]
fn directories_that_were_moved_into_each_other_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("x/y")).unwrap();
    let mut tree = open(&dir);
    let mut known: BTreeSet<String> = real(dir.path()).into_keys().collect();
    // Turned around, and in a new directory that is read before the events of the moves.
    fs::create_dir(path("new")).unwrap();
    fs::rename(path("x/y"), path("new/y")).unwrap();
    fs::rename(path("x"), path("new/y/x")).unwrap();
    fs::write(path("new/y/x/file"), "").unwrap();
    follow(&mut known, &drain(&mut tree), dir.path());
    assert_eq!(known, real(dir.path()).into_keys().collect());
    fs::write(path("new/y/x/later"), "").unwrap();
    follow(&mut known, &drain(&mut tree), dir.path());
    assert_eq!(known, real(dir.path()).into_keys().collect());
}

/// Whatever happens, and however late it is handled, a client that follows knows what is there.
#[test]
fn random_changes_are_followed() {
    let seeds = if std::env::var_os("LONG_TESTS").is_some() { 500 } else { 12 };
    for seed in 1..=seeds {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut tree = open(&dir);
        let mut known = BTreeSet::new();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) as usize % below
        };
        let mut overflows = 0;
        for round in 0..20 {
            for change in 0..=random(40) {
                let there = real(dir.path());
                let directories: Vec<_> = there.iter().filter(|(_, is)| **is).map(|(name, _)| name).collect();
                let mut some = |or: &str| match random(directories.len() + 1) {
                    0 => or.to_owned(),
                    index => directories[index - 1].clone(),
                };
                let (one, other) = (some(""), some(""));
                let new = format!("{round}.{change}");
                let (one, other) = (dir.path().join(one), dir.path().join(other));
                // Some cannot be done, such as a move of a directory into itself.
                let _ = match random(8) {
                    0..=2 => fs::create_dir(one.join(new)),
                    3 | 4 => fs::write(one.join(new), ""),
                    _ if one == dir.path() => continue,
                    5 => fs::rename(&one, other.join(new)),
                    6 => fs::remove_dir_all(&one),
                    _ => fs::rename(&one, outside.path().join(&new))
                        .and_then(|()| fs::rename(outside.path().join(&new), other.join(&new))),
                };
                assert!(dir.path().is_dir());
            }
            let events = drain(&mut tree);
            overflows += events.iter().filter(|(name, _)| name.is_empty()).count();
            follow(&mut known, &events, dir.path());
            let real: BTreeSet<String> = real(dir.path()).into_keys().collect();
            let difference: Vec<_> = known.symmetric_difference(&real).collect();
            assert!(difference.is_empty(), "seed {seed}, round {round}: {difference:?} after {events:?}");
        }
        assert!(overflows <= 20, "seed {seed}");
    }
}
