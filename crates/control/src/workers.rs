// SPDX-License-Identifier: Apache-2.0
//! Background tasks of a server, which are restarted when they fail.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    access, accounts, artifacts, audit, builds, channels, mail, relay,
    sandboxes::{idle, reconcile},
    singleton, snapshots,
    state::App,
    teams, templates, usage,
};

/// Delay before a restart: the first one, which doubles, and the maximum.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Interval between compactions of the metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// Background task of a server. It runs until the server stops, and is started again when it ends before.
pub struct Worker {
    name: &'static str,
    is_singleton: bool,
    run: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Worker {
    /// Creates a worker. `run` is called at each start. The task should end when the server stops
    /// ([`crate::Services::shutdown`]); else it is dropped.
    pub fn new<F>(name: &'static str, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { name, is_singleton: false, run: Box::new(move || run().boxed()) }
    }

    /// Lets the worker run on one server at a time, of all that have one of this name. Another one takes over within seconds when
    /// that server stops or dies; the task is dropped when the server has lost its connection to PostgreSQL, of which it may learn
    /// after 8 s.
    #[must_use]
    pub fn singleton(self) -> Self {
        Self { is_singleton: true, ..self }
    }
}

/// Returns the workers that every server has.
pub(crate) fn of_server(app: &App) -> Vec<Worker> {
    let [
        of_relay,
        of_reconciler,
        of_idle,
        of_snapshots,
        of_images,
        of_builds,
        of_pushes,
        of_copies,
        of_upkeep,
    ] = [(); 9].map(|()| app.clone());
    let of_access = app.clone();
    let (of_mail, of_accounts) = (app.clone(), app.clone());
    let [of_audit, of_usage] = [(); 2].map(|()| app.clone());
    let [of_channels, of_channel_upkeep] = [(); 2].map(|()| app.clone());
    let of_teams = app.clone();
    let mut workers = vec![
        Worker::new("access", move || {
            let app = of_access.clone();
            async move { access::follow(&app.access, &app.shutdown).await }
        }),
        Worker::new("mail", move || {
            let app = of_mail.clone();
            async move { mail::run(&app.mailer, &app.db, &app.shutdown).await }
        }),
        Worker::new("accounts", move || accounts::upkeep(of_accounts.clone())),
        Worker::new("relay", move || relay::run(of_relay.clone())),
        Worker::new("reconciler", move || reconcile::run(of_reconciler.clone())),
        Worker::new("idle sandboxes", move || idle::run(of_idle.clone())),
        Worker::new("snapshots", move || snapshots::upkeep(of_snapshots.clone())),
        Worker::new("images", move || templates::upkeep(of_images.clone())),
        Worker::new("upkeep of builds", move || builds::upkeep(of_builds.clone())),
        Worker::new("pushes of templates", move || artifacts::push(of_pushes.clone())),
        Worker::new("copies of templates", move || artifacts::upkeep(of_copies.clone())),
        Worker::new("audit log", move || audit::run(of_audit.clone())),
        Worker::new("usage", move || usage::run(of_usage.clone())),
        Worker::new("channels", move || channels::worker(of_channels.clone())),
        Worker::new("upkeep of channels", move || channels::upkeep(of_channel_upkeep.clone())).singleton(),
        Worker::new("deleted teams", move || teams::cleanup(of_teams.clone())).singleton(),
        Worker::new("upkeep", move || upkeep(of_upkeep.clone())),
    ];
    workers.extend((0..app.builds.workers).map(|_| {
        let app = app.clone();
        Worker::new("builds", move || builds::worker(app.clone()))
    }));
    workers
}

/// Starts all workers; they end when the result is dropped.
pub(crate) fn start(workers: Vec<Worker>, db: &PgPool, stop: &CancellationToken) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for Worker { name, is_singleton, run } in workers {
        let (stop, db) = (stop.clone(), db.clone());
        tasks.spawn(async move {
            let stopped = || stop.is_cancelled();
            if is_singleton {
                keep_running(name, || singleton::run(&db, name, &run), stopped).await;
            } else {
                keep_running(name, run, stopped).await;
            }
        });
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
