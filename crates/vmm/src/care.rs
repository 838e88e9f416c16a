// SPDX-License-Identifier: Apache-2.0
//! Care of VMMs: their logs are kept short, and one that has no reason to run any more, or fills its directory, is killed. One thread
//! looks after all, because most of a look is the wake-up of a thread.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use crate::{
    logs::{self, console_log, own_log, vmm_log},
    process::Watched,
};

/// Interval between two looks at a VMM.
const CHECK: Duration = Duration::from_secs(1);
/// Maximum size on disk of each log, in bytes. Between two looks a guest can exceed it by its output within
/// [`CHECK`].
const LOG_MAX: u64 = 1 << 20;

/// A VMM that is looked after as long as this is held.
pub(crate) struct Charge {
    care: Care,
    watched: Arc<Watched>,
    run_dir: PathBuf,
}

/// VMMs that are looked after, and whether the thread runs.
struct Charges {
    all: Vec<Weak<Charge>>,
    runs: bool,
}

static CHARGES: Mutex<Charges> = Mutex::new(Charges { all: Vec::new(), runs: false });

/// Looks after a VMM from now on.
pub(crate) fn begin(care: Care, watched: Arc<Watched>, run_dir: PathBuf) -> Arc<Charge> {
    let charge = Arc::new(Charge { care, watched, run_dir });
    let mut charges = charges();
    charges.all.push(Arc::downgrade(&charge));
    if !charges.runs {
        let started = thread::Builder::new().name("care".to_owned()).spawn(run);
        charges.runs = started.is_ok();
        if let Err(error) = started {
            tracing::error!(%error, "VMMs are not looked after until the next one starts");
        }
    }
    charge
}

fn charges() -> MutexGuard<'static, Charges> {
    CHARGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after all VMMs until there are none.
fn run() {
    loop {
        thread::sleep(CHECK);
        let mut charges = charges();
        charges.all.retain(|charge| charge.strong_count() > 0);
        charges.runs = !charges.all.is_empty();
        if !charges.runs {
            return;
        }
        let all: Vec<_> = charges.all.iter().filter_map(Weak::upgrade).collect();
        drop(charges);
        all.iter().for_each(|charge| charge.look());
    }
}

impl Charge {
    fn look(&self) {
        // If freeing the start of a log fails, the next look tries again.
        for log in [console_log(&self.run_dir), vmm_log(&self.run_dir), own_log(&self.run_dir)] {
            drop::<io::Result<()>>(logs::cap(&log, LOG_MAX));
        }
        if let Some(reason) = self.care.verdict(&self.run_dir) {
            tracing::warn!(process = self.watched.id().pid, reason, "killing a VMM");
            // If this fails, the next look tries again.
            let _ = self.watched.kill();
        }
    }
}

/// Reasons to kill a VMM's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Care {
    /// Last console line of a guest that has shut down, for a VMM that does not end then.
    pub(crate) farewell: Option<&'static str>,
    /// Length of the console log before this guest started: a former guest of the directory may have written
    /// the same line.
    pub(crate) before: u64,
    /// Memory of the guest in MiB: a snapshot in the run directory may have this size, and little more.
    pub(crate) memory_mb: u32,
}

/// Additional size of a run directory, for logs and a snapshot's state, in bytes.
const RUN_DIR_EXTRA: u64 = 64 << 20;
/// Maximum number of files in a run directory; a VMM creates a handful.
const RUN_DIR_FILES: usize = 64;

/// Returns whether the run directory contains more than a VMM writes.
fn overfull(run_dir: &Path, memory_mb: u32) -> bool {
    let Ok(entries) = fs::read_dir(run_dir) else { return false };
    let (mut files, mut bytes) = (0, 0);
    for entry in entries.flatten().take(RUN_DIR_FILES + 1) {
        files += 1;
        bytes += fs::symlink_metadata(entry.path()).map_or(0, |meta| meta.blocks() * 512);
    }
    files > RUN_DIR_FILES || bytes > (u64::from(memory_mb) << 20) + RUN_DIR_EXTRA
}

impl Care {
    /// Returns the reason to kill the VMM of this directory, if any.
    fn verdict(self, run_dir: &Path) -> Option<&'static str> {
        let console = console_log(run_dir);
        let said = logs::length(&console) > self.before;
        if said && self.farewell.is_some_and(|line| logs::ends_with(&console, line)) {
            return Some("its guest has shut down");
        }
        overfull(run_dir, self.memory_mb).then_some("it fills its directory with what no VMM writes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_thread_looks_after_all() {
        let care = Care { farewell: None, before: 0, memory_mb: 0 };
        let start = || {
            let mut command = std::process::Command::new("sleep");
            command.arg("60");
            let watched = crate::process::watch_child(command.spawn().unwrap().id()).unwrap();
            (Arc::new(watched.unwrap()), tempfile::tempdir().unwrap())
        };
        // Also after the thread has ended, because there was nobody any more.
        for _ in 0..2 {
            let ((good, kept), (bad, filled)) = (start(), start());
            let charges = [(&good, &kept), (&bad, &filled)]
                .map(|(watched, dir)| begin(care, watched.clone(), dir.path().to_owned()));
            for number in 0..=RUN_DIR_FILES {
                fs::write(filled.path().join(number.to_string()), "").unwrap();
            }
            bad.exited().await;
            assert!(wrenn_os::process::is_alive(good.id()).unwrap(), "it was ended, too");
            assert!(super::charges().runs);
            drop(charges);
            good.kill().unwrap();
            while super::charges().runs {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[test]
    fn a_vmm_that_fills_its_directory_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let care = Care { farewell: None, before: 0, memory_mb: 0 };
        let file = fs::File::create(dir.path().join("memory.new")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(care.verdict(dir.path()), None, "holes take no room");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RUN_DIR_EXTRA + 4096).unwrap();
        assert!(care.verdict(dir.path()).is_some());
        assert_eq!(Care { memory_mb: 1, ..care }.verdict(dir.path()), None);
        drop(file);
        fs::remove_file(dir.path().join("memory.new")).unwrap();
        (0..=RUN_DIR_FILES).for_each(|n| drop(fs::File::create(dir.path().join(n.to_string())).unwrap()));
        assert!(care.verdict(dir.path()).is_some());
    }

    #[test]
    fn a_former_guests_farewell_is_not_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let farewell = "reboot: System halted";
        let care = Care { farewell: Some(farewell), before: 0, memory_mb: 0 };
        assert_eq!(care.verdict(dir.path()), None);
        fs::write(console_log(dir.path()), format!("[ 1.0] {farewell}\n")).unwrap();
        assert!(care.verdict(dir.path()).is_some());
        let next = Care { before: logs::length(&console_log(dir.path())), ..care };
        assert_eq!(next.verdict(dir.path()), None);
        fs::write(console_log(dir.path()), format!("[ 1.0] {farewell}\n").repeat(2)).unwrap();
        assert!(next.verdict(dir.path()).is_some());
    }
}
