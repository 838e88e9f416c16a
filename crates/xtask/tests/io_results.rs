// SPDX-License-Identifier: Apache-2.0
//! Errors of files are not taken for absence: where a missing file decides what is created or removed, in the agent and
//! its drivers, `.ok()` on the result of reading a file, and `.exists()`, are only in the places listed here.

use std::{fs, path::Path};

/// Crates in which it matters.
const CRATES: &[&str] = &["disk", "host", "network", "os", "vmm"];

/// Files, and why an error and absence are the same there.
type Allowed = &'static [(&'static str, &'static str)];

/// Files with a result of reading that becomes an option.
const MAY_DROP: Allowed = &[
    ("network/src/conntrack.rs", "a limit that cannot be read is set"),
    ("network/src/resolvers.rs", "the next file, then fixed resolvers"),
    ("host/src/cgroup.rs", "a controller without groups of ours, in a report of what is left"),
    ("host/src/cleanup.rs", "a device of another kind, in a report of what is left"),
    ("host/src/driver.rs", "a result of a probe that cannot be read is probed again"),
    ("vmm/src/launch.rs", "without /dev/kvm there is no group of it"),
];

/// Files with a path that is asked whether it exists. `try_exists` tells absence and error apart.
const MAY_ASK: Allowed = &[
    ("disk/src/confined.rs", "a tool that cannot be looked at cannot be run"),
    (
        "host/src/cgroup.rs",
        "a controller that cannot be looked at is lacking, and no hostile code is run without it",
    ),
    ("host/src/driver.rs", "a hint in a reason"),
    ("host/src/oci/file_system.rs", "a tool that cannot be looked at cannot be run"),
    ("host/src/snapshots/mod.rs", "memory on a base that cannot be looked at is captured as a whole"),
    ("vmm/src/firecracker/vm.rs", "a socket is waited for, up to a limit"),
    ("vmm/src/probe.rs", "a /dev/kvm that cannot be looked at cannot be used"),
];

/// Reads the sources below a directory without their tests and comments.
fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("tests") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let code = text.split("mod tests {").next().unwrap_or_default();
            let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
            found.push((path.display().to_string(), lines.collect::<Vec<_>>().join("\n")));
        }
    }
}

/// Fails if another file than those allowed has such a line, or if one of them has none any more.
fn only_in(allowed: Allowed, is_one: fn(&str) -> bool) {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crates");
    let mut found = Vec::new();
    for name in CRATES {
        sources(&crates.join(name).join("src"), &mut found);
    }
    let hits: Vec<_> =
        found.iter().filter(|(_, code)| code.lines().any(is_one)).map(|(path, _)| path).collect();
    let new: Vec<_> =
        hits.iter().filter(|path| !allowed.iter().any(|(allowed, _)| path.ends_with(allowed))).collect();
    assert!(
        new.is_empty(),
        "is an error the same as absence there? handle it, or list it and say why: {new:#?}"
    );
    let old: Vec<_> =
        allowed.iter().filter(|(allowed, _)| !hits.iter().any(|path| path.ends_with(allowed))).collect();
    assert!(old.is_empty(), "remove these from the list: {old:#?}");
}

/// Returns whether a line turns the result of reading a file into an option.
fn drops_an_error(line: &str) -> bool {
    let reads = ["fs::", "File::", "metadata(", "read_dir(", "read_to_string("];
    line.split(".ok()")
        .next()
        .is_some_and(|before| before.len() < line.len() && reads.iter().any(|read| before.contains(read)))
}

#[test]
fn no_error_of_a_file_is_taken_for_absence() {
    only_in(MAY_DROP, drops_an_error);
}

#[test]
fn no_path_that_cannot_be_seen_is_taken_for_none() {
    only_in(MAY_ASK, |line| line.contains(".exists()"));
}
