// SPDX-License-Identifier: Apache-2.0
//! Conformance tests of all backends of volumes that work on this machine. Needs root to mount file systems.
//!
//! Without device-mapper, its tests are not listed and a line says so. In the lab, device-mapper must work
//! and only its tests run; the others run outside.
#![allow(clippy::unwrap_used)]

mod cases;
mod fixture;

use std::env;

use libtest_mimic::{Arguments, Trial};

use fixture::{Kind, Place};

fn kinds() -> Vec<Kind> {
    let in_lab = env::var_os("IN_LAB").is_some();
    let mut kinds = if in_lab { Vec::new() } else { vec![Kind::Copy, Kind::Reflink] };
    match fixture::dm_works() {
        Ok(()) => kinds.push(Kind::Dm),
        Err(reason) if in_lab => panic!("the lab must have device-mapper: {reason}"),
        Err(reason) => eprintln!("dm-snapshot: NOT RUN HERE: {reason}; `cargo xtask lab run` runs it"),
    }
    kinds
}

fn main() {
    let mut arguments = Arguments::from_args();
    // One at a time, because devices, mounts and descriptors are counted.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for kind in kinds() {
        for (name, case) in cases::all(kind) {
            trials.push(Trial::test(format!("{}::{name}", kind.name()), move || {
                let place = Place::new(kind, case.small)?;
                let run = tokio::runtime::Runtime::new()?.block_on((case.run)(place.share()));
                // Print the causes too.
                run.map_err(|error| format!("{error:?}"))?;
                place.end()?;
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
