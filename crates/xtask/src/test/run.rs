// SPDX-License-Identifier: Apache-2.0
//! Execution of a row: its commands in namespaces of their own, their output, and their processor time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::plan::{Row, Work};
use crate::programs::repository;

/// Result of a row.
#[derive(Debug)]
pub(super) struct Ended {
    /// Whether all its commands succeeded.
    pub(super) passed: bool,
    pub(super) took: Duration,
    /// Processor time of all its processes, in seconds.
    pub(super) processor: f64,
    /// Everything that it printed.
    pub(super) log: PathBuf,
}

/// Runs the commands of a row, with more rounds if `long`; stops at the first that fails.
pub(super) fn run(row: &Row, dir: &Path, long: bool) -> Result<Ended> {
    let name = row.name.replace([' ', ':'], "-");
    let (log, times) = (dir.join(format!("{name}.log")), dir.join(format!("{name}.times")));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let begin = Instant::now();
    let (mut passed, mut processor) = (true, 0.0);
    for work in &row.work {
        let mut command = isolated(work)?;
        command.env("ISOLATED_TIMES", &times);
        if long {
            command.env("LONG_TESTS", "1");
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        passed &= command.status().context("cannot run scripts/isolated")?.success();
        // Without the file, it was killed before it could write it.
        processor += fs::read_to_string(&times).ok().and_then(|text| seconds(&text)).unwrap_or_default();
        if !passed {
            break;
        }
    }
    Ok(Ended { passed, took: begin.elapsed(), processor, log })
}

/// Returns the command that runs `work` in namespaces of its own.
fn isolated(work: &Work) -> Result<Command> {
    let root = repository();
    let mut command = Command::new(root.join("scripts/isolated"));
    command.current_dir(root);
    command
        .env("WRENN_BIN", root.join("target/debug/wrenn"))
        .env("WRENN_SHARE_DIR", root.join("share/wrenn"));
    match work {
        Work::Program(program, args) => {
            command.arg(&program.path).args(args).current_dir(&program.directory);
            if program.harness {
                // An unstable option of Rust's test harness. Our own cases print their times themselves.
                command.args(["-Zunstable-options", "--report-time"]).env("RUSTC_BOOTSTRAP", "1");
            }
            command.env("CARGO_MANIFEST_DIR", &program.directory);
        }
        Work::Command(words) => {
            let this = std::env::current_exe().context("cannot find this program")?;
            let this = this.to_string_lossy();
            command.args(words.iter().map(|word| if word == "$XTASK" { &this } else { word.as_str() }));
        }
    }
    Ok(command)
}

/// Sums the times that bash's `times` printed, such as `0m1.5s`: of the shell, and of its children.
fn seconds(times: &str) -> Option<f64> {
    let one = |text: &str| {
        let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.replace(',', ".").parse::<f64>().ok()?)
    };
    times.split_whitespace().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_bash_are_summed() {
        assert_eq!(seconds("0m0.500s 0m0.250s\n1m2.000s 0m3.250s\n"), Some(66.0));
        assert_eq!(seconds("nonsense"), None);
    }
}
