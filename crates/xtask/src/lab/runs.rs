// SPDX-License-Identifier: Apache-2.0
//! Runs of the lab: which cases of which test programs run there, and in which order.

use crate::programs::Program;

/// Test target of a package.
#[derive(Debug)]
pub(super) struct Target {
    /// Directory of the package below `crates`.
    package: &'static str,
    /// Target name.
    test: &'static str,
    /// Additional environment variables.
    pub(super) env: &'static [&'static str],
}

/// Cases of a test program that run together. If the lab hangs, all cases of the run are repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) target: &'static Target,
    /// Arguments of the program that select the cases; empty for all.
    pub(super) cases: &'static [&'static str],
    /// Whether the cases also run outside of a lab on machines with a usable `/dev/kvm`.
    pub(super) outside_too: bool,
}

/// End-to-end cases. Their state directories are on a disk, because the lab's temporary directory is in
/// memory.
const E2E: Target = Target {
    package: "testkit",
    test: "e2e",
    env: &["WRENN_BIN=/usr/local/bin/wrenn", "TMPDIR=/var/lib/wrenn"],
};
const VMM: Target = Target { package: "vmm", test: "conformance", env: &[] };
const DISK: Target = Target { package: "disk", test: "conformance", env: &[] };

const fn run(target: &'static Target, cases: &'static [&'static str]) -> Run {
    Run { target, cases, outside_too: false }
}

/// Runs of the lab, the longest first, so that concurrent labs end at about the same time. With `IN_LAB=1`
/// the targets select what only a lab has. Cases that share a Wrenn are one run, because starting it takes
/// longer than most cases.
pub(super) const RUNS: &[Run] = &[
    run(&VMM, &["firecracker_jailed_linux::"]),
    run(&E2E, &["--skip=hosts::", "--skip=network::", "--skip=faults::"]),
    run(&E2E, &["network::"]),
    run(&DISK, &[]),
    run(&E2E, &["hosts::"]),
    run(&E2E, &["faults::"]),
    Run { outside_too: true, ..run(&VMM, &["firecracker_jailed::"]) },
    Run { outside_too: true, ..run(&VMM, &["firecracker_unjailed::"]) },
];

impl Target {
    /// File name of the program in the lab.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.package, self.test)
    }

    /// Returns whether it is this program.
    pub(super) fn is(&self, program: &Program) -> bool {
        program.package == self.package && program.target == self.test
    }
}
