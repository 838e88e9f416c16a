// SPDX-License-Identifier: Apache-2.0
//! Everything that the servers of all cases log, scanned for secrets that cases name: for some at once, and at the end for
//! all, also for those that a case got to know only after they could have been logged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result, ensure};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// What is logged: all of ours, and of the libraries what an operator may ask for.
const FILTER: &str = "debug,wrenn_control=trace,wrenn_api=trace,wrenn_context=trace,enterprise=trace,h2=info,hyper=info,\
    hyper_util=info,reqwest=info,tungstenite=info,tokio_tungstenite=info";
/// Beginnings of the secrets that are looked for at once: a line without these is passed over quickly.
const MARKS: [&str; 2] = ["hush", "wrn_"];
/// Length of the shortest secret that is looked for: a shorter one may be part of any word.
const SHORTEST: usize = 8;
/// What is logged first: if the end does not find it, it finds nothing.
const PROBE: &str = "probe-of-the-whole-log";

/// Secrets with a mark, each with the first line that has it.
static SECRETS: Mutex<Vec<(String, Option<String>)>> = Mutex::new(Vec::new());
/// All secrets, which are searched for at the end.
static ALL: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// All that was logged, in a file without a name; `None` if it cannot be kept.
static LOG: Mutex<Option<BufWriter<File>>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to scan.
pub(crate) fn install() {
    *lock(&LOG) = tempfile::tempfile().map(BufWriter::new).ok();
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(EnvFilter::new(FILTER));
    log.with_writer(Scan).init();
    tracing::trace!(target: "wrenn_control::probe", "a line with {PROBE}");
}

/// Looks for a secret at the end, in all that was and will be logged; for one that begins with a mark also at once. One
/// that is too short is left out.
pub(crate) fn look_for(secret: &str) {
    if secret.len() < SHORTEST {
        return;
    }
    lock(&ALL).insert(secret.to_owned());
    if !MARKS.iter().any(|mark| secret.starts_with(mark)) {
        return;
    }
    let mut secrets = lock(&SECRETS);
    if secrets.iter().all(|(known, _)| known != secret) {
        secrets.push((secret.to_owned(), None));
    }
}

/// Returns the first line that had a secret with a mark.
pub(crate) fn found(secret: &str) -> Option<String> {
    lock(&SECRETS).iter().find(|(known, _)| known == secret).and_then(|(_, line)| line.clone())
}

/// Looks for a secret no more.
pub(crate) fn forget(secret: &str) {
    lock(&ALL).remove(secret);
    lock(&SECRETS).retain(|(known, _)| known != secret);
}

/// Returns all lines that had a secret with a mark until now.
pub(crate) fn all_found() -> Vec<String> {
    lock(&SECRETS).iter().filter_map(|(_, line)| line.clone()).collect()
}

/// Searches all that was logged for all secrets, and returns each that is there with the first line that has it. Nothing
/// is kept from then on.
pub(crate) fn search() -> Result<Vec<String>> {
    let written = lock(&LOG).take().context("the log could not be kept in a file")?;
    let mut file = written.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    let mut secrets = lock(&ALL).clone();
    secrets.insert(PROBE.to_owned());
    let secrets: Vec<_> = secrets.iter().map(String::as_str).collect();
    let needles = AhoCorasick::new(&secrets)?;
    let (mut log, mut line, mut found) = (BufReader::new(file), Vec::new(), BTreeMap::new());
    while log.read_until(b'\n', &mut line)? > 0 {
        for secret in needles.find_overlapping_iter(&line) {
            let first = || String::from_utf8_lossy(&line).trim_end().to_owned();
            found.entry(secrets[secret.pattern().as_usize()]).or_insert_with(first);
        }
        line.clear();
    }
    ensure!(found.remove(PROBE).is_some(), "the first line of the log was not found");
    Ok(found.into_iter().map(|(secret, line)| format!("{secret:?} in: {line}")).collect())
}

/// Keeps a line until the end. If that fails, nothing is kept any more, and the end says so.
fn keep(line: &[u8]) {
    let mut log = lock(&LOG);
    if log.as_mut().is_some_and(|log| log.write_all(line).is_err()) {
        *log = None;
    }
}

/// Writer of lines, which scans them.
struct Scan;

impl MakeWriter<'_> for Scan {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl io::Write for Scan {
    /// A line comes as one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        keep(line);
        let text = String::from_utf8_lossy(line);
        if !MARKS.iter().any(|mark| text.contains(mark)) {
            return Ok(line.len());
        }
        for (secret, first) in lock(&SECRETS).iter_mut().filter(|(_, first)| first.is_none()) {
            if text.contains(secret.as_str()) {
                *first = Some(text.trim_end().to_owned());
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
