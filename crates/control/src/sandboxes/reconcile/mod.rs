//! The reconciler: compares what is wanted with what each host has, again and again, and finishes or undoes what was
//! interrupted. Level-triggered: it needs to know nothing of how a difference came about, and every step may be done twice.
//!
//! Each host has a task of its own, so that one that hangs delays no other; upkeep has one for what concerns no host.

mod host;
mod step;
mod strays;
mod upkeep;

use std::{collections::HashMap, time::Duration};

use tokio::task::{AbortHandle, JoinSet};
use uuid::Uuid;
use wrenn_api::HostId;

use crate::{db::hosts, error::ApiError, state::App};

/// Between two rounds of a host, and between two looks at the list of hosts.
const PERIOD: Duration = Duration::from_secs(1);

/// Reconciles until the server stops.
pub(crate) async fn run(app: App) {
    tokio::join!(run_hosts(&app), upkeep::run(&app));
}

/// Sees to it that each registered host has its task.
async fn run_hosts(app: &App) {
    let (mut tasks, mut running) = (JoinSet::new(), HashMap::new());
    let mut said = Said::default();
    loop {
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended.map_err(|error| error.to_string()) {
                tracing::error!(error, "the reconciler of a host died; it starts again");
            }
        }
        let started = start_missing(app, &mut tasks, &mut running).await;
        said.tell(&started, "the list of hosts cannot be read");
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn start_missing(
    app: &App,
    tasks: &mut JoinSet<()>,
    running: &mut HashMap<Uuid, AbortHandle>,
) -> Result<(), ApiError> {
    let all = hosts::all(&app.db).await?;
    app.agents.keep(|known| all.iter().any(|id| HostId::from(*id) == known));
    running.retain(|id, task| {
        let registered = all.contains(id);
        if !registered {
            task.abort();
        }
        registered && !task.is_finished()
    });
    for id in all {
        running.entry(id).or_insert_with(|| tasks.spawn(host::run(app.clone(), id)));
    }
    Ok(())
}

/// What was last said of something that is done again and again: a failure is told when it changes, not each time.
#[derive(Debug, Default)]
struct Said(Option<String>);

impl Said {
    fn tell(&mut self, result: &Result<(), ApiError>, what: &str) {
        let now = result.as_ref().err().map(|error| format!("{}: {}", error.code, error.message));
        if now == self.0 {
            return;
        }
        match &now {
            Some(error) => tracing::warn!(error, "{what}"),
            None => tracing::info!("over: {what}"),
        }
        self.0 = now;
    }
}
