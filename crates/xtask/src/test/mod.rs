// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: runs all tests of the workspace, what waits beside what computes. See
//! `docs/testing.md`.

mod plan;
mod report;
mod run;

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::{plan::Row, run::Ended};
use crate::programs::{self, repository};

/// Maximum length of a failed row's log that is printed, in bytes from its end.
const SHOWN: u64 = 256 << 10;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only rows whose name contains this
    filter: Option<String>,
    /// What is long by nature: more rounds, more sandboxes, more requests
    #[arg(long)]
    long: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let cpus = thread::available_parallelism().map_or(2, usize::from);
    let mut rows = plan::rows(&programs::build()?, cpus)?;
    if let Some(filter) = &options.filter {
        rows.retain(|row| row.name.contains(filter.as_str()));
        ensure!(!rows.is_empty(), "no row has {filter:?} in its name");
    }
    let dir = repository().join("target/test");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (begin, speed) = (Instant::now(), report::speed());
    let ended = run_all(&rows, cpus, &dir, options.long)?;
    let over = report::print(&ended, speed);
    println!("\ntests: {:.0} s in all; logs: target/test", begin.elapsed().as_secs_f64());
    let failed: Vec<_> = ended.iter().filter(|(_, ended)| !ended.passed).map(|(row, _)| row.name).collect();
    if !failed.is_empty() {
        eprintln!("tests: FAILED: {}", failed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    // A longer run takes what it takes.
    if !options.long && !over.is_empty() {
        eprintln!("tests: too expensive, make them cheaper or raise the budget: {}", over.join("; "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs all rows, each as soon as what runs leaves room for it; returns them in the order in which they ended.
fn run_all<'a>(rows: &'a [Row], cpus: usize, dir: &Path, long: bool) -> Result<Vec<(&'a Row, Ended)>> {
    let mut waiting: VecDeque<&Row> = rows.iter().collect();
    let (mut running, mut ended) = (Vec::<&Row>::new(), Vec::new());
    let (done, ends) = mpsc::channel();
    thread::scope(|scope| {
        loop {
            let classes =
                |rows: &mut dyn Iterator<Item = &&Row>| rows.map(|row| row.class).collect::<Vec<_>>();
            while let Some(index) =
                plan::next(&classes(&mut waiting.iter()), &classes(&mut running.iter()), cpus)
                && let Some(row) = waiting.remove(index)
            {
                eprintln!("tests: {}", row.name);
                running.push(row);
                let done = done.clone();
                // The receiver waits for every row.
                scope.spawn(move || done.send((row, run::run(row, dir, long))));
            }
            if running.is_empty() {
                return Ok(ended);
            }
            let (row, result): (&Row, Result<Ended>) = ends.recv().context("a row's thread died")?;
            running.retain(|other| !std::ptr::eq(*other, row));
            let result = result?;
            tell(row, &result)?;
            ended.push((row, result));
        }
    })
}

/// Says how a row ended; with the end of its log if it failed.
fn tell(row: &Row, ended: &Ended) -> Result<()> {
    let seconds = ended.took.as_secs_f64();
    if ended.passed {
        eprintln!("tests: {}: passed after {seconds:.0} s", row.name);
        return Ok(());
    }
    eprintln!("tests: {}: FAILED after {seconds:.0} s; its output:", row.name);
    let mut log = fs::File::open(&ended.log).context("its log is gone")?;
    let size = log.metadata()?.len();
    log.seek(SeekFrom::Start(size.saturating_sub(SHOWN)))?;
    let mut text = Vec::new();
    log.take(SHOWN).read_to_end(&mut text)?;
    let mut out = std::io::stderr().lock();
    out.write_all(&text)?;
    eprintln!("tests: {}: FAILED; this was its output", row.name);
    Ok(())
}
