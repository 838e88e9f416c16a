// SPDX-License-Identifier: Apache-2.0
//! Errors of reading files are not taken for absence: where a missing file decides what is created or removed, in the
//! agent and its drivers, `.ok()` on such a result is only in the places listed here.

use std::{fs, path::Path};

/// Crates in which it matters.
const CRATES: &[&str] = &["disk", "host", "network", "os", "vmm"];

/// Files with such a place, and why an error and absence are the same there.
const ALLOWED: &[(&str, &str)] = &[
    ("disk/src/loopfs.rs", "two devices that cannot be read are not told to differ"),
    ("disk/src/confined.rs", "a test"),
    ("network/src/conntrack.rs", "a limit that cannot be read is set"),
    ("network/src/resolvers.rs", "the next file, then fixed resolvers"),
    ("host/src/cgroup.rs", "a controller without groups of ours, in a report of what is left"),
    ("host/src/cleanup.rs", "a device of another kind, in a report of what is left"),
    ("host/src/driver.rs", "a result of a probe that cannot be read is probed again"),
    ("vmm/src/launch.rs", "without /dev/kvm there is no group of it"),
];

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).expect("a source")));
        }
    }
}

/// Returns whether a line turns the result of reading a file into an option.
fn hides_an_error(line: &str) -> bool {
    let reads = ["fs::", "File::", "metadata(", "read_dir(", "read_to_string("];
    line.split(".ok()")
        .next()
        .is_some_and(|before| before.len() < line.len() && reads.iter().any(|read| before.contains(read)))
}

#[test]
fn no_error_of_a_file_is_taken_for_absence() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crates");
    let mut found = Vec::new();
    for name in CRATES {
        sources(&crates.join(name).join("src"), &mut found);
    }
    let hits: Vec<_> =
        found.iter().filter(|(_, text)| text.lines().any(hides_an_error)).map(|(path, _)| path).collect();
    let new: Vec<_> =
        hits.iter().filter(|path| !ALLOWED.iter().any(|(allowed, _)| path.ends_with(allowed))).collect();
    assert!(
        new.is_empty(),
        "is an error the same as absence there? handle it, or say why in ALLOWED: {new:#?}"
    );
    let old: Vec<_> =
        ALLOWED.iter().filter(|(allowed, _)| !hits.iter().any(|path| path.ends_with(allowed))).collect();
    assert!(old.is_empty(), "remove these from ALLOWED: {old:#?}");
}
