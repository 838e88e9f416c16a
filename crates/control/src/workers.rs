// SPDX-License-Identifier: Apache-2.0
//! Background tasks of a server, which are restarted when they fail.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    relay,
    sandboxes::{idle, reconcile},
    snapshots,
    state::App,
};

/// Delay before a restart: the first one, which doubles, and the maximum.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Interval between compactions of the metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// Background task of a server. It runs until the server stops, and is started again when it ends before.
pub struct Worker {
    name: &'static str,
    run: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Worker {
    /// Creates a worker. `run` is called at each start. The task should end when the server stops
    /// ([`crate::Services::shutdown`]); else it is dropped.
    pub fn new<F>(name: &'static str, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { name, run: Box::new(move || run().boxed()) }
    }
}

/// Returns the workers that every server has.
pub(crate) fn of_server(app: &App) -> Vec<Worker> {
    let [of_relay, of_reconciler, of_idle, of_snapshots, of_upkeep] = [(); 5].map(|()| app.clone());
    vec![
        Worker::new("relay", move || relay::run(of_relay.clone())),
        Worker::new("reconciler", move || reconcile::run(of_reconciler.clone())),
        Worker::new("idle sandboxes", move || idle::run(of_idle.clone())),
        Worker::new("snapshots", move || snapshots::upkeep(of_snapshots.clone())),
        Worker::new("upkeep", move || upkeep(of_upkeep.clone())),
    ]
}

/// Starts all workers; they end when the result is dropped.
pub(crate) fn start(workers: Vec<Worker>, stop: &CancellationToken) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for Worker { name, run } in workers {
        let stop = stop.clone();
        tasks.spawn(async move { keep_running(name, run, || stop.is_cancelled()).await });
    }
    tasks
}

/// Compacts the metrics from time to time.
async fn upkeep(app: App) {
    while !app.shutdown.is_cancelled() {
        tokio::time::sleep(UPKEEP).await;
        app.telemetry.upkeep();
    }
}

/// Runs a task until the server stops, and restarts it when it ends.
async fn keep_running<F: Future<Output = ()>>(
    worker: &'static str,
    run: impl Fn() -> F,
    stopped: impl Fn() -> bool,
) {
    let mut pause = PAUSES.0;
    loop {
        let begun = tokio::time::Instant::now();
        let ended = AssertUnwindSafe(run()).catch_unwind().await;
        if stopped() {
            return;
        }
        if begun.elapsed() > PAUSES.1 {
            pause = PAUSES.0;
        }
        metrics::counter!("wrenn_worker_restarts_total", "worker" => worker).increment(1);
        let how = if ended.is_err() { "panicked" } else { "ended" };
        tracing::error!(worker, "a background task {how}; it starts again in {} s", pause.as_secs());
        tokio::time::sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_ends_is_started_again_ever_more_slowly() {
        let runs = AtomicU32::new(0);
        let begun = tokio::time::Instant::now();
        let run = async || assert!(!runs.fetch_add(1, Ordering::Relaxed).is_multiple_of(2), "it fails");
        keep_running("test", run, || runs.load(Ordering::Relaxed) == 10).await;
        assert_eq!(runs.load(Ordering::Relaxed), 10);
        // 1, 2, 4, 8, 16, 32 and three times 60.
        assert_eq!(begun.elapsed().as_secs(), 243);
    }
}
