// SPDX-License-Identifier: Apache-2.0
//! Metrics: what each sandbox uses, measured twice a second, and kept for a day.
//!
//! Those of sandboxes that run are in memory; those of the others are in their files only, so that a host has any number of paused
//! sandboxes.

mod file;
mod guests;
mod rings;
mod sample;
mod sampler;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::{guests::Guests, rings::Rings};
use crate::{
    directory,
    sandbox::usage::{Figures, Kill},
};

pub(crate) use self::{
    guests::{Asked, ask_all},
    sample::Sample,
    sampler::{Sampler, Target},
};

/// Interval between writes of a sandbox's file. An agent that is killed loses what it measured since the last one.
const SAVE: Duration = Duration::from_secs(60);

/// Metrics of all sandboxes of an agent.
pub(crate) struct Metrics {
    /// Parent of the sandboxes' directories.
    sandboxes: PathBuf,
    kept: Mutex<HashMap<String, Kept>>,
    guests: Guests,
    /// CPUs that sandboxes used in the last round, in thousandths.
    cpu_milli: AtomicU64,
    /// Duration of the last round in microseconds.
    round_micros: AtomicU64,
}

/// Metrics of one sandbox.
struct Kept {
    rings: Rings,
    /// When they were written last, or read.
    saved: Instant,
    /// Whether there are some that were not written.
    is_new: bool,
}

impl Metrics {
    /// Metrics of sandboxes whose directories are here.
    pub(crate) fn new(sandboxes: PathBuf) -> Self {
        let (kept, guests) = (Mutex::default(), Guests::default());
        Self { sandboxes, kept, guests, cpu_milli: AtomicU64::new(0), round_micros: AtomicU64::new(0) }
    }

    /// Takes in what the guest of a sandbox says, from now on until [`Metrics::end`].
    pub(crate) fn begin(&self, id: &str) {
        self.guests.add(id);
    }

    /// Forgets what the guest of a sandbox that is gone has said.
    pub(crate) fn end(&self, id: &str) {
        self.guests.remove(id);
    }

    /// Returns what the kernel of a sandbox's guest killed last for want of memory, as far as this agent knows.
    pub(crate) fn last_kill(&self, id: &str) -> Option<Kill> {
        self.guests.last_kill(id)
    }

    /// Returns what the guest of a sandbox has said of itself lately; nothing is known if it did not.
    fn figures(&self, id: &str) -> Figures {
        self.guests.figures(id)
    }

    /// Returns the points of so many seconds up to the newest one, the oldest first.
    pub(crate) async fn range(&self, id: &str, seconds: u32) -> Vec<Sample> {
        let in_memory = self.kept().get(id).map(|kept| kept.rings.range(seconds));
        if let Some(points) = in_memory {
            return points;
        }
        let dir = self.directory(id);
        let read = tokio::task::spawn_blocking(move || file::read(&dir).range(seconds));
        read.await.unwrap_or_default()
    }

    /// Memory of the sandboxes that run, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.kept().values().filter_map(|kept| kept.rings.newest()).map(|sample| sample.mem_bytes).sum()
    }

    /// CPUs that the sandboxes that run used in the last round, in thousandths.
    pub(crate) fn cpu_milli(&self) -> u64 {
        self.cpu_milli.load(Ordering::Relaxed)
    }

    /// Duration of the last round of measurements in microseconds.
    pub(crate) fn round_micros(&self) -> u64 {
        self.round_micros.load(Ordering::Relaxed)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, id: &str) -> PathBuf {
        directory::of(&self.sandboxes, id)
    }

    /// Returns whether those of a sandbox are not in memory.
    fn lacks(&self, id: &str) -> bool {
        !self.kept().contains_key(id)
    }

    /// Takes up metrics that were read from a file. Does nothing if the sandbox has some: a short pause is over.
    fn take_up(&self, id: String, rings: Rings) {
        let fresh = || Kept { rings, saved: Instant::now(), is_new: false };
        self.kept().entry(id).or_insert_with(fresh);
    }

    fn add(&self, id: &str, sample: Sample) {
        if let Some(kept) = self.kept().get_mut(id) {
            kept.rings.add(sample);
            kept.is_new = true;
        }
    }

    /// Returns at most `max` files that are to be written, as directories and contents: those of sandboxes that do not run at once, and
    /// others after this interval. Forgets those that do not run and were returned before: the caller has written them.
    fn take_due(
        &self,
        runs: impl Fn(&str) -> bool,
        interval: Duration,
        max: usize,
    ) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = self.kept();
        all.retain(|id, kept| kept.is_new || runs(id));
        let is_due = |id: &str, kept: &Kept| kept.is_new && (!runs(id) || kept.saved.elapsed() >= interval);
        let due = all.iter_mut().filter(|(id, kept)| is_due(id, kept)).take(max);
        let files = due.map(|(id, kept)| {
            (kept.saved, kept.is_new) = (Instant::now(), false);
            (self.directory(id), file::encode(&kept.rings))
        });
        files.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{collection::vec, prelude::*};
    use wrenn_testkit::fuzz;

    use super::{
        rings::tests::{BEGIN, Models, life},
        *,
    };

    const ID: &str = "sb03halx8fdhw2fu3txwbd0kdw0";

    fn sample(time_ms: u64, mem_bytes: u64) -> Sample {
        Sample { time_ms, mem_bytes, ..Sample::default() }
    }

    fn write(files: &[(PathBuf, Vec<u8>)]) -> usize {
        files.iter().for_each(|(dir, rings)| file::write(dir, rings));
        files.len()
    }

    #[tokio::test]
    async fn they_are_written_in_time_and_read_when_the_sandbox_does_not_run() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join(ID))?;
        let metrics = Metrics::new(dir.path().to_owned());
        assert!(metrics.lacks(ID) && metrics.range(ID, 600).await.is_empty(), "there is no file");
        metrics.add(ID, sample(1, 5));
        assert!(metrics.lacks(ID) && metrics.range(ID, 600).await.is_empty(), "it was not taken up");
        metrics.take_up(ID.to_owned(), Rings::default());
        metrics.add(ID, sample(1, 5));
        metrics.add(ID, sample(501, 7));
        assert_eq!(metrics.memory_bytes(), 7);
        let all = [sample(1, 5), sample(501, 7)];
        assert_eq!(metrics.range(ID, 600).await, all);
        assert_eq!(write(&metrics.take_due(|_| true, SAVE, 8)), 0, "a minute has not passed");
        assert_eq!(write(&metrics.take_due(|_| true, Duration::ZERO, 0)), 0, "not too many at a time");
        assert_eq!(write(&metrics.take_due(|_| true, Duration::ZERO, 8)), 1);
        assert_eq!(write(&metrics.take_due(|_| true, Duration::ZERO, 8)), 0, "nothing is new");
        assert_eq!(file::read(&metrics.directory(ID)).range(600), all);

        // It is paused after one more sample.
        metrics.add(ID, sample(1001, 9));
        assert_eq!(write(&metrics.take_due(|_| false, SAVE, 8)), 1);
        assert!(!metrics.lacks(ID), "until it is written it is in memory");
        assert_eq!(write(&metrics.take_due(|_| false, SAVE, 8)), 0);
        assert!(metrics.lacks(ID) && metrics.memory_bytes() == 0);
        assert_eq!(metrics.range(ID, 600).await, [all.as_slice(), &[sample(1001, 9)]].concat());

        // And goes on, with another agent.
        let metrics = Metrics::new(dir.path().to_owned());
        metrics.take_up(ID.to_owned(), file::read(&metrics.directory(ID)));
        metrics.add(ID, sample(400_001, 11));
        metrics.take_up(ID.to_owned(), Rings::default());
        assert_eq!(metrics.range(ID, 600).await.len(), 4, "what is there stays");
        Ok(())
    }

    /// What happens to a sandbox and to its agent.
    #[derive(Debug, Clone)]
    enum Step {
        /// It runs, and is measured: the milliseconds before each sample.
        Measure(Vec<(i64, Sample)>),
        /// Its file is written while it runs.
        Save,
        /// It is paused. Its file is written, but it runs again before it is forgotten.
        PauseShortly,
        Pause,
        /// Its agent is killed, and another one starts.
        KillAgent,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => life(0..500).prop_map(Step::Measure),
            2 => Just(Step::Save),
            1 => Just(Step::PauseShortly),
            1 => Just(Step::Pause),
            1 => Just(Step::KillAgent),
        ]
    }

    /// Metrics of a sandbox, with all samples that they are made of, and those of them whose points are in its file.
    struct Lived {
        metrics: Metrics,
        time_ms: u64,
        samples: Models,
        written: Models,
    }

    impl Lived {
        fn begin(sandboxes: &Path) -> Self {
            let (samples, written) = (Models::default(), Models::default());
            Self { metrics: Metrics::new(sandboxes.to_owned()), time_ms: BEGIN, samples, written }
        }

        fn go_on(&mut self, step: &Step) {
            match step {
                Step::Measure(samples) => self.measure(samples),
                Step::Save => self.write(true),
                Step::PauseShortly => self.write(false),
                Step::Pause => {
                    self.write(false);
                    self.write(false);
                    assert!(self.metrics.lacks(ID), "what is written is forgotten");
                }
                Step::KillAgent => {
                    self.metrics = Metrics::new(self.metrics.sandboxes.clone());
                    self.samples = self.written.clone();
                }
            }
        }

        /// Does what the sampler does.
        fn measure(&mut self, samples: &[(i64, Sample)]) {
            if self.metrics.lacks(ID) {
                self.metrics.take_up(ID.to_owned(), file::read(&self.metrics.directory(ID)));
            }
            for (passes, sample) in samples {
                self.time_ms = self.time_ms.saturating_add_signed(*passes);
                let sample = Sample { time_ms: self.time_ms, ..*sample };
                self.metrics.add(ID, sample);
                self.samples.add(sample);
            }
        }

        fn write(&mut self, runs: bool) {
            if write(&self.metrics.take_due(|_| runs, Duration::ZERO, 8)) > 0 {
                self.written = self.samples.clone();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..fuzz::config() })]

        /// Whatever is written, forgotten, read and lost: averages that were made as samples came are those of all samples.
        #[test]
        fn points_are_those_of_all_samples_after_any_operations(steps in vec(step(), 1..12)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir(dir.path().join(ID)).expect("made");
            let mut lived = Lived::begin(dir.path());
            for (number, step) in steps.iter().enumerate() {
                lived.go_on(step);
                for (seconds, expected) in lived.samples.ranges() {
                    let told = runtime.block_on(lived.metrics.range(ID, seconds));
                    prop_assert_eq!(told, expected, "{} seconds after step {}", seconds, number);
                }
            }
        }
    }
}
