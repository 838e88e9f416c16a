// SPDX-License-Identifier: Apache-2.0
//! Reconciler: periodically compares the database with the sandboxes of each host, and completes or undoes
//! interrupted operations. Level-triggered: it does not depend on the cause of a difference, and every step
//! is idempotent.
//!
//! Each host has a task of its own, so that one that hangs delays no other; another task does the upkeep that
//! concerns no host.

mod host;
mod killed;
mod strays;
mod upkeep;

use std::{collections::HashMap, time::Duration};

use tokio::task::{AbortHandle, JoinSet};
use uuid::Uuid;
use wrenn_api::HostId;

use crate::{db::hosts, error::Fault, state::App};

/// Interval between rounds of a host, and between reads of the list of hosts.
const PERIOD: Duration = Duration::from_secs(1);

/// Reconciles until the server stops.
pub(crate) async fn run(app: App) {
    tokio::join!(run_hosts(&app), upkeep::run(&app));
}

/// Keeps a task running for each registered host.
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
) -> Result<(), Fault> {
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

/// Log of a repeated operation: a failure is logged when it changes, not each time.
#[derive(Debug, Default)]
struct Said(Option<String>);

impl Said {
    fn tell(&mut self, result: &Result<(), Fault>, what: &str) {
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
