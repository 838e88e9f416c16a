// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask lab test`: runs the test programs one after another in several concurrent labs.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read as _, Seek as _, Write as _},
    process::{ExitCode, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use wrenn_testkit::{Lab, LabConfig, short_or_long, test_guests};

use super::{
    build, collect_logs, interrupt,
    runs::{self, Run},
};
use crate::programs;

/// Number of labs that may hang during one run before the run counts as failed.
const LOST_MAX: u32 = 3;
/// Directory of the test programs in a lab.
const DIR: &str = "/usr/local/lib/wrenn-tests";

impl Run {
    fn name(&self) -> String {
        format!("{} {}", self.target.name(), self.cases.join(" ")).trim_end().to_owned()
    }

    fn command(&self) -> Vec<String> {
        let program = format!("{DIR}/{}", self.target.name());
        let words = ["env"].iter().chain(self.target.env).copied().chain([program.as_str()]);
        words.chain(self.cases.iter().copied()).map(str::to_owned).collect()
    }
}

/// State shared by the labs.
struct Work {
    config: LabConfig,
    /// Time when everything is stopped, even if tests still run.
    deadline: Instant,
    waiting: Mutex<VecDeque<Run>>,
    failed: Mutex<Vec<String>>,
    lost: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the runs whose name contains `filter` in `labs` concurrent labs. Each has one CPU and keeps one CPU of this
/// machine busy.
pub(super) fn run(mut config: LabConfig, labs: usize, filter: Option<&str>) -> Result<ExitCode> {
    let chosen = |run: &&Run| filter.is_none_or(|filter| run.name().contains(filter));
    let mut runs: VecDeque<Run> = runs::RUNS.iter().filter(chosen).copied().collect();
    ensure!(!runs.is_empty(), "no run of the lab has {:?} in its name", filter.unwrap_or_default());
    if filter.is_none() {
        let (kvm, long) = (test_guests::available(), short_or_long(false, true));
        runs.retain(|run| {
            let left_out = run.left_out(kvm, long);
            if let Some(reason) = left_out {
                eprintln!("lab: {}: NOT RUN HERE: {reason}", run.name());
            }
            left_out.is_none()
        });
    }
    build()?;
    interrupt::outlive()?;
    let built = programs::build()?;
    // Several runs are of the same program.
    let targets: BTreeMap<_, _> = runs.iter().map(|run| (run.target.name(), run.target)).collect();
    for (name, target) in targets {
        let program = built.iter().find(|program| target.is(program));
        let program = program.with_context(|| format!("cargo names no program for {name}"))?;
        config = config.with_file(&program.path, format!("{DIR}/{name}"));
    }
    let begin = Instant::now();
    let work = Work {
        deadline: begin + config.time_limit,
        config,
        waiting: Mutex::new(runs),
        failed: Mutex::default(),
        lost: AtomicU32::new(0),
    };
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let work = &work;
        let labs: Vec<_> = (1..=labs).map(|number| scope.spawn(move || work.take_part(number))).collect();
        labs.into_iter().map(|lab| lab.join().unwrap_or_else(|_| bail!("a lab's thread died"))).collect()
    });
    let lost = work.lost.into_inner();
    eprintln!("lab: {:.0} s in all; {lost} labs hung", begin.elapsed().as_secs_f64());
    ended.into_iter().collect::<Result<()>>()?;
    let failed = lock(&work.failed);
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("lab: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

impl Work {
    /// Runs one run after another in the lab `number` until none is left.
    fn take_part(&self, number: usize) -> Result<()> {
        let name = format!("{}-{number}", self.config.name);
        let config = LabConfig { name, ..self.config.clone() };
        let mut lab: Option<Lab> = None;
        loop {
            let Some(run) = lock(&self.waiting).pop_front() else { break };
            self.see_through(&config, &mut lab, run)?;
        }
        lab.into_iter().for_each(Lab::stop);
        Ok(())
    }

    /// Executes a run, in a new lab if the lab hangs.
    fn see_through(&self, config: &LabConfig, lab: &mut Option<Lab>, run: Run) -> Result<()> {
        for _ in 0..=LOST_MAX {
            let here = match lab.take() {
                Some(running) => running,
                None => self.start(config)?,
            };
            let outcome = run_one(&here, run);
            let good = *outcome.as_ref().unwrap_or(&false);
            if !good && here.check(&["true"]).is_err() {
                eprintln!("lab: {} exited or hangs; its console ends: {}", config.name, here.console_end());
                here.stop();
                self.check_time().with_context(|| format!("in {}", run.name()))?;
                // The lab hangs, which nested emulation sometimes does; this is not a failed test. Start a
                // new lab and repeat the run.
                self.lost.fetch_add(1, Ordering::Relaxed);
                eprintln!("lab: starting another one for {}", run.name());
                continue;
            }
            if !good {
                if let Err(error) = outcome {
                    eprintln!("lab: {}: {error:#}", run.name());
                }
                collect_logs(&here);
                lock(&self.failed).push(run.name());
            }
            *lab = Some(here);
            return Ok(());
        }
        bail!("several labs hung in {}: this machine cannot run it", run.name())
    }

    fn check_time(&self) -> Result<()> {
        let limit = self.config.time_limit;
        ensure!(Instant::now() < self.deadline, "the time of {limit:?} for all tests is over");
        Ok(())
    }

    /// Starts a lab with the remaining time as its limit.
    fn start(&self, config: &LabConfig) -> Result<Lab> {
        self.check_time()?;
        let time_limit = self.deadline.saturating_duration_since(Instant::now());
        let lab = Lab::start(&LabConfig { time_limit, ..config.clone() })?;
        eprintln!("lab: {} started in {:.1} s", config.name, lab.started_in().as_secs_f64());
        Ok(lab)
    }
}

/// Executes a run; returns whether all of its cases passed. Fails if there are none. Prints the output at the
/// end, because the output of two labs would be mixed up.
fn run_one(lab: &Lab, run: Run) -> Result<bool> {
    let begin = Instant::now();
    eprintln!("lab: {}: {}", lab.name(), run.name());
    let mut output = tempfile::tempfile().context("no file for a program's output")?;
    let mut command = lab.command(&run.command())?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let status = command.status().context("cannot run ssh")?;
    let mut text = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut text)).context("a program's output is lost")?;
    let mut out = io::stdout().lock();
    out.write_all(&text).and_then(|()| out.flush())?;
    eprintln!("lab: {}: {}: {status}, {:.1} s", lab.name(), run.name(), begin.elapsed().as_secs_f64());
    let passed = passed(&String::from_utf8_lossy(&text));
    ensure!(!status.success() || passed > 0, "no case matches: the run would always pass");
    Ok(status.success())
}

/// Counts the passed cases in the summaries of a test program.
fn passed(output: &str) -> u32 {
    let summaries = output.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    summaries.filter_map(|summary| summary.split_once(" passed")?.0.parse::<u32>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn cases_that_passed_are_counted_over_all_summaries() {
        let summary = |count| format!("test result: ok. {count} passed; 0 failed; 3 filtered out\n");
        assert_eq!(passed(&["running 2 tests\n", &summary(2), &summary(0), &summary(11)].concat()), 13);
        assert_eq!(passed(&summary(0)), 0);
        assert_eq!(passed("test result: FAILED. 1 passed; 1 failed\n"), 0);
    }
}
