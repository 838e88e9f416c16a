//! What every kind of volume must do, on every kind that works here. Needs root: file systems are mounted.
//!
//! Device-mapper is part of it where this machine has it. Where it has not, a line says so and the list holds
//! no test of it; in the lab it must be there, and is all that runs: the others run outside.
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
    // Devices, mounts and descriptors are counted, so nothing else may make any meanwhile.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for kind in kinds() {
        for (name, case) in cases::all(kind) {
            trials.push(Trial::test(format!("{}::{name}", kind.name()), move || {
                let place = Place::new(kind, case.small)?;
                let run = tokio::runtime::Runtime::new()?.block_on((case.run)(place.share()));
                // With the causes.
                run.map_err(|error| format!("{error:?}"))?;
                place.end()?;
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
