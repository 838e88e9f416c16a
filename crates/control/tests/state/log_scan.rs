// SPDX-License-Identifier: Apache-2.0
//! Everything that the servers of all cases log, scanned for secrets that cases name. Nothing is kept but lines that have one.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// What is logged: all of ours, and of the libraries what an operator may ask for.
const FILTER: &str = "debug,wrenn_control=trace,wrenn_api=trace,wrenn_context=trace,enterprise=trace,h2=info,hyper=info,\
    hyper_util=info,reqwest=info,tungstenite=info,tokio_tungstenite=info";
/// Beginnings of all secrets that are looked for: a line without these is passed over quickly.
const MARKS: [&str; 2] = ["hush", "wrn_"];

/// Secrets, each with the first line that has it.
static SECRETS: Mutex<Vec<(String, Option<String>)>> = Mutex::new(Vec::new());

fn secrets() -> MutexGuard<'static, Vec<(String, Option<String>)>> {
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to scan.
pub(crate) fn install() {
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(EnvFilter::new(FILTER));
    log.with_writer(Scan).init();
}

/// Looks for a secret from now on, which begins with one of the marks.
pub(crate) fn look_for(secret: &str) {
    assert!(MARKS.iter().any(|mark| secret.starts_with(mark)), "a secret that would not be found");
    let mut secrets = secrets();
    if secrets.iter().all(|(known, _)| known != secret) {
        secrets.push((secret.to_owned(), None));
    }
}

/// Returns the first line that had a secret.
pub(crate) fn found(secret: &str) -> Option<String> {
    secrets().iter().find(|(known, _)| known == secret).and_then(|(_, line)| line.clone())
}

/// Looks for a secret no more.
pub(crate) fn forget(secret: &str) {
    secrets().retain(|(known, _)| known != secret);
}

/// Returns all lines that had a secret.
pub(crate) fn all_found() -> Vec<String> {
    secrets().iter().filter_map(|(_, line)| line.clone()).collect()
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
        let text = String::from_utf8_lossy(line);
        if !MARKS.iter().any(|mark| text.contains(mark)) {
            return Ok(line.len());
        }
        for (secret, first) in secrets().iter_mut().filter(|(_, first)| first.is_none()) {
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
