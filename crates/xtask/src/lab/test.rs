//! `cargo xtask lab test`: one lab, and in it one test program after another.

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, ensure};
use wrenn_testkit::{Lab, LabConfig};

use super::{
    collect_logs,
    programs::{self, Target},
    start,
};

/// How many labs may stand still in one run before it is the tests' fault after all.
const LOST_MAX: u32 = 3;
/// Where test programs are in a lab.
const DIR: &str = "/usr/local/lib/wrenn-tests";

pub(super) fn run(mut config: LabConfig, filter: Option<&str>) -> Result<ExitCode> {
    let targets: Vec<_> = programs::TARGETS
        .iter()
        .filter(|target| filter.is_none_or(|filter| target.name().contains(filter)))
        .collect();
    ensure!(
        !targets.is_empty(),
        "no test program of the lab has {:?} in its name",
        filter.unwrap_or_default()
    );
    for target in &targets {
        config = config.with_file(target.build()?, format!("{DIR}/{}", target.name()));
    }
    let begin = Instant::now();
    let mut lab = start(&config)?;
    let (mut failed, mut lost) = (Vec::new(), 0);
    let mut waiting = targets.iter().flat_map(|target| target.runs.iter().map(move |run| (target, *run)));
    let mut next = waiting.next();
    while let Some((target, cases)) = next {
        let name = format!("{} {cases}", target.name());
        let good = run_one(&lab, target, cases).unwrap_or_else(|error| {
            eprintln!("lab: {name}: {error:#}");
            false
        });
        if !good && lab.check(&["true"]).is_err() {
            // Not a test that failed: its host stands still. Emulated processors that emulate processors do that at
            // times; another one takes its place, and the run begins anew.
            lost += 1;
            ensure!(
                lost <= LOST_MAX,
                "{lost} labs stood still in {name}, one after the other: this machine cannot run it"
            );
            eprintln!("lab: it stands still in {name}; another one is started");
            lab.stop();
            lab = start(&config)?;
            continue;
        }
        if !good {
            failed.push(name);
        }
        lost = 0;
        next = waiting.next();
    }
    if !failed.is_empty() {
        collect_logs(&lab);
    }
    lab.stop();
    eprintln!("lab: {:.0} s in all", begin.elapsed().as_secs_f64());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("lab: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn run_one(lab: &Lab, target: &Target, cases: &str) -> Result<bool> {
    let (begin, name) = (Instant::now(), target.name());
    eprintln!("lab: {name} {cases}");
    let program = format!("{DIR}/{name}");
    let command = ["env"].iter().chain(target.env).copied().chain([program.as_str()]);
    let command: Vec<_> = command.chain(Some(cases).filter(|cases| !cases.is_empty())).collect();
    let status = lab.run_live(&command)?;
    eprintln!("lab: {name} {cases}: {status}, {:.1} s", begin.elapsed().as_secs_f64());
    Ok(status.success())
}
