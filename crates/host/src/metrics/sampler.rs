// SPDX-License-Identifier: Apache-2.0
//! Sampler: one task that measures all sandboxes of the agent.
//!
//! CPU time and memory of a VMM are in one line of `/proc/PID/stat`, together with the start of the process, so that another process with
//! the same id is never taken for it; the file is not kept open, for which a host would need as many descriptors as sandboxes. Disks
//! and networks are looked at less often. All files are read on one blocking thread.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use wrenn_disk::Volumes;
use wrenn_network::{Plan, Traffic};
use wrenn_os::process::{self, ProcessId, Stat};

use super::{
    Metrics, SAVE, file,
    rings::Rings,
    sample::{self, Sample},
};

/// Interval between samples.
const PERIOD: Duration = Duration::from_millis(500);
/// Number of rounds between two looks at a sandbox's disk, and at the network: 5 seconds.
const SLOW: u64 = 10;
/// Maximum number of files that are written one after another.
const SAVES: usize = 8;

/// A sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its id.
    pub(crate) id: String,
    /// Number of its virtual CPUs.
    pub(crate) vcpus: u32,
    /// Its VMM.
    pub(crate) process: ProcessId,
    /// Number of its network slot.
    pub(crate) slot: u16,
}

/// Measures the sandboxes of an agent.
pub(crate) struct Sampler {
    metrics: Arc<Metrics>,
    volumes: Arc<dyn Volumes>,
    plan: Plan,
    watched: BTreeMap<String, Watched>,
    /// Number of rounds.
    rounds: u64,
    /// Files that are being written.
    saving: Option<JoinHandle<()>>,
}

/// A sandbox between two samples.
struct Watched {
    target: Target,
    /// Round in which it was seen first.
    since: u64,
    /// CPU time of its VMM in clock ticks, and when it was read.
    ticks: Option<(u64, Instant)>,
    disk_bytes: u64,
    traffic: Traffic,
}

/// What is to be read in a round.
struct Wanted {
    /// VMMs, in the order of what is watched.
    processes: Vec<ProcessId>,
    /// Whether the counters of slots are wanted.
    traffic: Option<Plan>,
    /// Sandboxes whose files are wanted, and their directories.
    files: Vec<(String, PathBuf)>,
}

/// What was read.
struct Found {
    /// Of each process, and when it was read; none if it could not be.
    stats: Vec<(Option<Stat>, Instant)>,
    traffic: Option<HashMap<u16, Traffic>>,
    files: Vec<(String, Rings)>,
}

impl Sampler {
    /// Sampler of sandboxes with these disks and this network.
    pub(crate) fn new(metrics: Arc<Metrics>, volumes: Arc<dyn Volumes>, plan: Plan) -> Self {
        Self { metrics, volumes, plan, watched: BTreeMap::new(), rounds: 0, saving: None }
    }

    /// Measures the sandboxes that run, twice a second, until it is cancelled; then writes what is not written yet.
    pub(crate) async fn run(mut self, running: impl Fn() -> Vec<Target> + Send, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let begin = Instant::now();
            self.round(running()).await;
            let took = begin.elapsed().as_micros() as u64;
            self.metrics.round_micros.store(took, Ordering::Relaxed);
        }
        self.finish().await;
    }

    /// Takes one sample of each of these sandboxes.
    async fn round(&mut self, running: Vec<Target>) {
        self.watch(running);
        let mut cpu_milli = 0;
        if !self.watched.is_empty() {
            self.look_at_disks().await;
            let wanted = self.wanted();
            if let Ok(found) = spawn_blocking(move || read(wanted)).await {
                cpu_milli = self.note(found);
            }
        }
        self.metrics.cpu_milli.store(cpu_milli, Ordering::Relaxed);
        self.save();
        self.rounds += 1;
    }

    /// Watches these sandboxes and no others. One whose VMM is another one begins anew.
    fn watch(&mut self, running: Vec<Target>) {
        let mut before = std::mem::take(&mut self.watched);
        for target in running {
            let id = target.id.clone();
            let known = before.remove(&id).filter(|watched| watched.target == target);
            self.watched.insert(id, known.unwrap_or_else(|| Watched::new(target, self.rounds)));
        }
    }

    /// Measures the disks of sandboxes whose turn it is. One that cannot be measured keeps its former size.
    async fn look_at_disks(&mut self) {
        for (id, watched) in &mut self.watched {
            if !(self.rounds - watched.since).is_multiple_of(SLOW) {
                continue;
            }
            match self.volumes.usage(id).await {
                Ok(bytes) => watched.disk_bytes = bytes,
                Err(error) => tracing::debug!(id, %error, "a disk cannot be measured"),
            }
        }
    }

    fn wanted(&self) -> Wanted {
        let some_are_new = self.watched.values().any(|watched| watched.since == self.rounds);
        let traffic = self.rounds.is_multiple_of(SLOW) || some_are_new;
        let lacking = self.watched.keys().filter(|id| self.metrics.lacks(id));
        Wanted {
            processes: self.watched.values().map(|watched| watched.target.process.clone()).collect(),
            traffic: traffic.then(|| self.plan.clone()),
            files: lacking.map(|id| (id.clone(), self.metrics.directory(id))).collect(),
        }
    }

    /// Makes samples of what was read; returns how many CPUs were used, in thousandths.
    fn note(&mut self, found: Found) -> u64 {
        for (id, rings) in found.files {
            self.metrics.take_up(id, rings);
        }
        let time_ms = chrono::Utc::now().timestamp_millis().max(0) as u64;
        let mut cpu_milli = 0;
        for ((id, watched), (stat, at)) in self.watched.iter_mut().zip(found.stats) {
            if let Some(traffic) = &found.traffic {
                watched.traffic = traffic.get(&watched.target.slot).copied().unwrap_or_default();
            }
            let sample = stat.and_then(|stat| watched.sample(&stat, at, time_ms));
            if let Some(sample) = sample {
                cpu_milli += sample.cpu_milli(watched.target.vcpus);
                self.metrics.add(id, Sample { guest: self.metrics.figures(id), ..sample });
            }
        }
        cpu_milli
    }

    /// Begins to write what is due, unless what was due before is still being written.
    fn save(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        let due = self.metrics.take_due(|id| self.watched.contains_key(id), SAVE, SAVES);
        if !due.is_empty() {
            self.saving = Some(spawn_blocking(move || write(&due)));
        }
    }

    /// Writes everything that is not written yet.
    async fn finish(self) {
        if let Some(saving) = self.saving {
            drop(saving.await);
        }
        let due = self.metrics.take_due(|_| true, Duration::ZERO, usize::MAX);
        drop(spawn_blocking(move || write(&due)).await);
    }
}

impl Watched {
    fn new(target: Target, since: u64) -> Self {
        Self { target, since, ticks: None, disk_bytes: 0, traffic: Traffic::default() }
    }

    /// Makes a sample of what was read of the VMM at this time. The first time there is none: there is no earlier CPU time.
    fn sample(&mut self, stat: &Stat, at: Instant, time_ms: u64) -> Option<Sample> {
        if stat.start_time != self.target.process.start_time {
            return None;
        }
        let (before, since) = self.ticks.replace((stat.ticks, at))?;
        let ticks = stat.ticks.saturating_sub(before);
        let used = Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second().max(1) as u32;
        Some(Sample {
            time_ms,
            cpu: sample::cpu(used, at.duration_since(since), self.target.vcpus),
            mem_bytes: stat.pages * rustix::param::page_size() as u64,
            disk_bytes: self.disk_bytes,
            net_rx_bytes: self.traffic.received,
            net_tx_bytes: self.traffic.sent,
            ..Sample::default()
        })
    }
}

/// Reads what is wanted. Blocking.
fn read(wanted: Wanted) -> Found {
    let stat = |process: &ProcessId| {
        // For want of descriptors or memory there is a gap, as for a process that has ended.
        let stat = process::stat(&process::directory(process.pid)).unwrap_or_default();
        (stat, Instant::now())
    };
    let traffic = wanted.traffic.and_then(|plan| {
        let read = Traffic::of_slots(&plan);
        read.inspect_err(|error| tracing::debug!(%error, "the traffic of sandboxes cannot be measured")).ok()
    });
    Found {
        files: wanted.files.into_iter().map(|(id, dir)| (id, file::read(&dir))).collect(),
        traffic,
        stats: wanted.processes.iter().map(stat).collect(),
    }
}

/// Writes files. Blocking.
fn write(files: &[(PathBuf, Vec<u8>)]) {
    files.iter().for_each(|(dir, rings)| file::write(dir, rings));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use wrenn_disk::{Backend, StoreConfig};

    use super::*;

    const ID: &str = "sb03halx8fdhw2fu3txwbd0kdw0";

    /// This process as a sandbox.
    fn own() -> anyhow::Result<Target> {
        let process = process::identify(std::process::id() as i32)?;
        let process = process.ok_or_else(|| anyhow::anyhow!("this process does not run"))?;
        Ok(Target { id: ID.to_owned(), vcpus: 2, process, slot: 1 })
    }

    /// Takes samples until there are so many.
    async fn measure(sampler: &mut Sampler, target: &Target, samples: usize) -> Vec<Sample> {
        loop {
            let all = sampler.metrics.range(ID, 600).await;
            if all.len() >= samples {
                return all;
            }
            sampler.round(vec![target.clone()]).await;
        }
    }

    #[test]
    fn a_sample_is_of_the_time_since_the_one_before() -> anyhow::Result<()> {
        let target = own()?;
        let start_time = target.process.start_time;
        let traffic = Traffic { received: 8, sent: 9 };
        let mut watched = Watched { disk_bytes: 7, traffic, ..Watched::new(target, 0) };
        let per_second = rustix::param::clock_ticks_per_second();
        let stat = |seconds| Stat {
            ended: false,
            parent: 1,
            ticks: seconds * per_second,
            threads: 3,
            start_time,
            pages: 5,
        };
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(watched.sample(&stat(100), begin, 1), None, "there is none before");
        let expected = Sample {
            time_ms: 2,
            cpu: 2500,
            mem_bytes: 5 * rustix::param::page_size() as u64,
            disk_bytes: 7,
            net_rx_bytes: 8,
            net_tx_bytes: 9,
            ..Sample::default()
        };
        assert_eq!(watched.sample(&stat(101), begin + 2 * second, 2), Some(expected));
        let other = Stat { start_time: start_time + 1, ..stat(500) };
        assert_eq!(watched.sample(&other, begin + 3 * second, 3), None, "another process has its id");
        let idle = watched.sample(&stat(101), begin + 4 * second, 4);
        assert_eq!(idle.map(|sample| sample.cpu), Some(0), "that one's time is not counted");
        Ok(())
    }

    #[tokio::test]
    async fn who_runs_is_measured_and_what_was_measured_is_written_at_the_end() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join(ID))?;
        let metrics = Arc::new(Metrics::new(dir.path().to_owned()));
        let store = dir.path().join("store");
        std::fs::create_dir(&store)?;
        let volumes = wrenn_disk::open(StoreConfig::new(&store, Backend::Copy, "ab12")).await?;
        let plan = Plan::new("ab12", Path::new("/n"))?;
        let mut sampler = Sampler::new(metrics.clone(), volumes, plan);
        let target = own()?;
        let samples = measure(&mut sampler, &target, 2).await;
        assert!(samples.iter().all(|sample| sample.mem_bytes > 0) && metrics.memory_bytes() > 0);
        // While it is paused nothing is added.
        sampler.round(Vec::new()).await;
        sampler.round(Vec::new()).await;
        assert_eq!(metrics.range(ID, 600).await, samples);
        let resumed = measure(&mut sampler, &target, 3).await;
        // What is measured in the window of the last sample becomes part of that.
        assert_eq!(resumed[0], samples[0], "a resumed one goes on");
        sampler.finish().await;
        assert_eq!(file::read(&metrics.directory(ID)).range(600), resumed);
        Ok(())
    }
}
