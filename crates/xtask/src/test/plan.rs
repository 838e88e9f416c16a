// SPDX-License-Identifier: Apache-2.0
//! Plan of `make test`: its rows, which of them run side by side, and the processor time that each may take.

use anyhow::{Result, ensure};

use crate::programs::{Program, TESTED};

/// What a row needs of the machine, which decides what runs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Keeps one or two CPUs busy, as emulated guests do. One row for every two CPUs, and one more once no row is left that
    /// waits.
    Compute,
    /// Waits most of the time, for timeouts, leases and restarts. A few rows, beside whatever else runs.
    Wait,
    /// Labs, one for every two CPUs, which keep a CPU busy each and take longest. One row, beside all others.
    Lab,
}

/// A row: commands that run one after another, in namespaces of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) class: Class,
    /// Processor time in seconds on the machine of `docs/testing.md`.
    pub(super) budget: u32,
    pub(super) work: Vec<Work>,
}

/// A command of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// A test program with its arguments.
    Program(Program, Vec<String>),
    /// A command in the root of the repository. `$XTASK` is this program.
    Command(Vec<String>),
}

/// Maximum number of rows that wait, at a time: each has a Wrenn or several of its own.
const WAITING: usize = 2;

/// Test programs with rows of their own: program, cases (all, those whose names begin so, or all others),
/// class and budget.
struct Own(&'static str, Class, u32, &'static [(&'static str, Cases)]);

enum Cases {
    All,
    Only(&'static [&'static str]),
    /// All but those that other rows name.
    Rest,
}

const E2E: &str = "testkit/e2e";

/// Rows in the order in which they start: those that take longest first.
const OWN: &[Own] = &[
    Own("end to end", Class::Compute, 460, &[(E2E, Cases::Rest)]),
    Own("end to end: pauses", Class::Compute, 300, &[(E2E, Cases::Only(&["pause::"]))]),
    Own("end to end: builds", Class::Compute, 220, &[(E2E, Cases::Only(&["builds::", "images::"]))]),
    Own("end to end: faults", Class::Wait, 180, &[(E2E, Cases::Only(&["faults::"]))]),
    Own("end to end: outages", Class::Wait, 60, &[(E2E, Cases::Only(&["outages::"]))]),
    Own("end to end: networks", Class::Wait, 110, &[(E2E, Cases::Only(&["network::", "slots::"]))]),
    Own("end to end: hosts", Class::Compute, 130, &[(E2E, Cases::Only(&["hosts::"]))]),
    Own("end to end: crashes", Class::Wait, 140, &[(E2E, Cases::Only(&["fleet::", "crashes::"]))]),
    Own("end to end: churn", Class::Compute, 70, &[(E2E, Cases::Only(&["churn::"]))]),
    Own("guest agent", Class::Wait, 90, &[("envd/api", Cases::All)]),
    Own("drivers", Class::Wait, 70, &[("vmm/conformance", Cases::All), ("disk/conformance", Cases::All)]),
    Own("control plane", Class::Wait, 430, &[("control/state", Cases::All)]),
    Own(
        "control plane of labs",
        Class::Compute,
        300,
        &[("testkit/lab", Cases::All), ("testkit/outside", Cases::All)],
    ),
];

/// Plans a run on a machine with this number of CPUs.
pub(super) fn rows(programs: &[Program], cpus: usize) -> Result<Vec<Row>> {
    let find = |name: &str| programs.iter().find(|program| program.name() == name);
    let mut rows = vec![labs(cpus)];
    for Own(name, class, budget, work) in OWN {
        let mut all = Vec::new();
        for (program, cases) in *work {
            let Some(found) = find(program) else { anyhow::bail!("there is no test program {program}") };
            all.extend(
                invocations(program, cases).into_iter().map(|args| Work::Program(found.clone(), args)),
            );
        }
        rows.push(Row { name, class: *class, budget: *budget, work: all });
    }
    let own = |program: &&Program| {
        let name = program.name();
        OWN.iter().any(|own| own.3.iter().any(|(other, _)| *other == name))
    };
    let others: Vec<_> = programs.iter().filter(|program| !own(program)).cloned().collect();
    ensure!(!others.is_empty(), "cargo named no unit tests");
    let mut units: Vec<_> = others.into_iter().map(|program| Work::Program(program, Vec::new())).collect();
    units.push(command(&[&["cargo", "test", "--doc"], TESTED].concat()));
    rows.push(Row { name: "unit tests", class: Class::Compute, budget: 90, work: units });
    rows.push(Row {
        name: "API check",
        class: Class::Compute,
        budget: 280,
        work: vec![command(&["scripts/api-check"])],
    });
    Ok(rows)
}

fn command(words: &[&str]) -> Work {
    Work::Command(words.iter().map(|&word| word.to_owned()).collect())
}

fn labs(cpus: usize) -> Row {
    let labs = (cpus / 2).clamp(1, 4).to_string();
    let work = vec![command(&["$XTASK", "lab", "test", "--labs", &labs])];
    Row { name: "labs", class: Class::Lab, budget: 700, work }
}

/// Arguments of each invocation of a program for `cases`.
fn invocations(program: &str, cases: &Cases) -> Vec<Vec<String>> {
    match cases {
        Cases::All => vec![Vec::new()],
        Cases::Only(names) => names.iter().map(|&name| vec![name.to_owned()]).collect(),
        Cases::Rest => {
            let named = OWN.iter().flat_map(|own| own.3).filter(|(other, _)| *other == program);
            let named =
                named.flat_map(|(_, cases)| if let Cases::Only(names) = cases { *names } else { &[] });
            vec![named.map(|name| format!("--skip={name}")).collect()]
        }
    }
}

/// Returns which of the waiting rows, by its index, may start beside the running ones.
pub(super) fn next(waiting: &[Class], running: &[Class], cpus: usize) -> Option<usize> {
    let count = |class| running.iter().filter(|&&other| other == class).count();
    let none_waits = [waiting, running].iter().all(|rows| !rows.contains(&Class::Wait));
    let limit = |class| match class {
        Class::Compute => (cpus / 2).max(1) + usize::from(none_waits),
        Class::Wait => WAITING,
        Class::Lab => 1,
    };
    waiting.iter().position(|&class| count(class) < limit(class))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn programs() -> Vec<Program> {
        let names = [
            "control/wrenn_control",
            "control/state",
            "envd/api",
            "disk/conformance",
            "testkit/e2e",
            "testkit/lab",
            "testkit/outside",
            "vmm/conformance",
        ];
        let program = |name: &str| {
            let (package, target) = name.split_once('/').unwrap_or_default();
            Program {
                package: package.to_owned(),
                directory: PathBuf::from("crates").join(package),
                target: target.to_owned(),
                path: name.into(),
                harness: true,
            }
        };
        names.into_iter().map(program).collect()
    }

    #[test]
    fn every_program_is_in_the_plan() {
        let mut programs = programs();
        programs.push(Program {
            package: "new".into(),
            directory: "examples/new".into(),
            target: "new".into(),
            path: "new".into(),
            harness: true,
        });
        let rows = rows(&programs, 2).expect("a plan");
        for program in &programs {
            let runs = rows.iter().flat_map(|row| &row.work);
            let found =
                runs.filter(|work| matches!(work, Work::Program(other, _) if other == program)).count();
            assert!(found > 0, "{} is not run", program.name());
        }
    }

    #[test]
    fn no_case_is_run_twice_or_never() {
        let rows = rows(&programs(), 2).expect("a plan");
        let runs = rows.iter().flat_map(|row| &row.work).filter_map(|work| match work {
            Work::Program(program, args) if program.target == "e2e" => Some(args.clone()),
            _ => None,
        });
        let (skips, only): (Vec<_>, Vec<_>) = runs.flatten().partition(|arg| arg.starts_with("--skip="));
        let skipped: Vec<_> = skips.iter().map(|skip| skip.trim_start_matches("--skip=")).collect();
        let mut only: Vec<_> = only.iter().map(String::as_str).collect();
        only.sort_by_key(|name| skipped.iter().position(|skip| skip == name));
        assert_eq!(skipped, only);
    }

    #[test]
    fn what_waits_runs_beside_what_computes() {
        use Class::{Compute, Lab, Wait};
        assert_eq!(next(&[Lab, Compute, Wait], &[], 2), Some(0));
        assert_eq!(next(&[Compute, Compute, Wait], &[Lab], 2), Some(0));
        assert_eq!(next(&[Compute, Wait], &[Lab, Compute], 2), Some(1));
        assert_eq!(next(&[Compute], &[Lab, Compute, Wait], 2), None);
        assert_eq!(next(&[Compute], &[Lab, Compute], 2), Some(0));
        assert_eq!(next(&[Compute], &[Lab, Compute, Compute], 2), None);
        assert_eq!(next(&[Compute], &[Lab, Compute, Wait], 4), Some(0));
        assert_eq!(next(&[Wait], &[Wait, Wait], 2), None);
        assert_eq!(next(&[], &[], 2), None);
    }
}
