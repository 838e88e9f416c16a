// SPDX-License-Identifier: Apache-2.0
//! Runs of the lab: which cases of which test programs run there, and in which order.

use Elsewhere::{WithKvm, WithQemu};

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
    /// Where else its cases run, so that not every `make test` runs them here.
    pub(super) elsewhere: Option<Elsewhere>,
}

/// Another place where the cases of a run are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// On the machine itself with the same VMM, if it has a usable `/dev/kvm`.
    WithKvm,
    /// On the machine itself with QEMU: here they run in `make test-long`.
    WithQemu,
}

/// End-to-end cases. Their state directories are on a disk, because the lab's temporary directory is in
/// memory.
const E2E: Target = Target {
    package: "testkit",
    test: "e2e",
    env: &["WRENN_BIN=/usr/local/bin/wrenn", "TMPDIR=/var/lib/wrenn"],
};
/// The same with packed memory and page servers. The lab's store shares extents, so they are not chosen by themselves.
const E2E_PACKED: Target = Target {
    env: &["WRENN_BIN=/usr/local/bin/wrenn", "TMPDIR=/var/lib/wrenn", "WRENN_AGENT_MEMORY_LAYOUT=packed"],
    ..E2E
};
/// The same in its long form.
const E2E_LONG: Target = Target {
    env: &[
        "WRENN_BIN=/usr/local/bin/wrenn",
        "TMPDIR=/var/lib/wrenn",
        "WRENN_AGENT_MEMORY_LAYOUT=packed",
        "LONG_TESTS=1",
    ],
    ..E2E
};
const VMM: Target = Target { package: "vmm", test: "conformance", env: &[] };
const DISK: Target = Target { package: "disk", test: "conformance", env: &[] };

const fn run(target: &'static Target, cases: &'static [&'static str]) -> Run {
    Run { target, cases, elsewhere: None }
}

/// Runs of the lab, the longest first, so that concurrent labs end at about the same time. With `IN_LAB=1`
/// the targets select what only a lab has. Cases that share a Wrenn are one run, because starting it takes
/// longer than most cases.
pub(super) const RUNS: &[Run] = &[
    run(&VMM, &["firecracker_jailed_linux::linux::"]),
    // With test guests these cases run outside, too. What a VMM refuses does not depend on its guest.
    Run { elsewhere: Some(WithQemu), ..run(&VMM, &["firecracker_jailed_linux::life::"]) },
    run(
        &E2E_PACKED,
        &[
            "--skip=hosts::",
            "--skip=network::",
            "--skip=faults::",
            "--skip=pause::many",
            "--skip=pause::a_paused",
            "--skip=pause::files",
            // What concerns no driver and takes long there.
            "--skip=transfers::",
            "--skip=ports::",
            "--skip=terminals::input",
            "--skip=fleet::",
            "--skip=template_snapshots::",
            "--skip=builds::",
        ],
    ),
    Run { elsewhere: Some(WithQemu), ..run(&E2E_PACKED, &["builds::"]) },
    Run { elsewhere: Some(WithQemu), ..run(&E2E_PACKED, &["fleet::"]) },
    Run { elsewhere: Some(WithQemu), ..run(&E2E_PACKED, &["template_snapshots::"]) },
    // The short form of the first is in the run above.
    Run { elsewhere: Some(WithQemu), ..run(&E2E_LONG, &["pause::what_ran"]) },
    Run { elsewhere: Some(WithQemu), ..run(&E2E_LONG, &["pause::files"]) },
    // Each point costs a restart of the agent, or a boot.
    Run { elsewhere: Some(WithQemu), ..run(&E2E_PACKED, &["faults::amid_pauses"]) },
    Run { elsewhere: Some(WithQemu), ..run(&E2E_PACKED, &["faults::page_servers"]) },
    Run { elsewhere: Some(WithQemu), ..run(&E2E, &["network::"]) },
    Run {
        elsewhere: Some(WithQemu),
        ..run(&E2E_PACKED, &["pause::", "--skip=pause::what_ran", "--skip=pause::files"])
    },
    run(&DISK, &[]),
    Run { elsewhere: Some(WithQemu), ..run(&E2E, &["hosts::"]) },
    run(&E2E, &["faults::on_firecracker"]),
    Run { elsewhere: Some(WithKvm), ..run(&VMM, &["firecracker_jailed::"]) },
    Run { elsewhere: Some(WithKvm), ..run(&VMM, &["firecracker_unjailed::"]) },
];

impl Run {
    /// Returns why the run may be left out of this lab test, if it may.
    pub(super) fn left_out(&self, kvm: bool, long: bool) -> Option<&'static str> {
        match self.elsewhere? {
            WithKvm => kvm.then_some("it runs outside, on this machine's KVM"),
            WithQemu => (!long).then_some("it runs outside, with QEMU; here in `make test-long`"),
        }
    }
}

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
