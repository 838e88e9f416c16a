// SPDX-License-Identifier: Apache-2.0
//! `wrenn down`: stops the processes of `wrenn up`, also of one that has died, and pauses the sandboxes.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Serialize;
use wrenn_host::Keep;

use crate::{
    config::Config,
    layout::Layout,
    memory_limits,
    output::{Format, note},
    process::Record,
    serve,
    signals::Ending,
};

/// Time limit for `wrenn up` to stop its parts.
const UP_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for `wrenn up` to pause its sandboxes as well, whose memory is written to a disk.
const PAUSE_LIMIT: Duration = Duration::from_secs(1800);
/// Time limit for a part that lost its `wrenn up`; the kernel has already signalled it.
const PART_LIMIT: Duration = Duration::from_secs(15);
/// Names of the parts, in the order in which they are stopped.
pub(crate) const PARTS: &[&str] = &["server", "agent", "redis", "postgres"];

/// Options of `wrenn down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove all sandboxes, with their disks, instead of pausing them
    #[arg(long)]
    destroy: bool,
}

/// Runs `wrenn down`.
pub(crate) async fn run(config: &Config, args: &Args, format: Format) -> Result<u8> {
    let ending = if args.destroy { Ending::Destroy } else { Ending::Pause };
    let value = stop(config, ending).await?;
    let state =
        if value.was_running || value.left_over_processes > 0 { "stopped" } else { "nothing was running" };
    format.print(&value, || format!("Wrenn: {state}."))?;
    Ok(0)
}

/// What was stopped.
#[derive(Debug, Serialize)]
pub(crate) struct Stopped {
    was_running: bool,
    left_over_processes: usize,
}

/// Stops everything that runs. The sandboxes have this ending.
pub(crate) async fn stop(config: &Config, ending: Ending) -> Result<Stopped> {
    let layout = Layout::new(&config.machine().state_dir);
    let running = Record::running(&layout.pid_file("up"))?;
    if layout.state().exists() {
        ensure!(rustix::process::geteuid().is_root(), "wrenn down needs root: run it with sudo");
    }
    if let Some(up) = &running {
        note("stopping ...");
        let limit = if ending == Ending::Pause { PAUSE_LIMIT } else { UP_LIMIT };
        up.stop(ending.signal(), limit).await.context("wrenn up does not stop")?;
        let _ = fs::remove_file(layout.pid_file("up"));
    }
    let mut left = 0;
    if layout.run().exists() {
        left = stop_leftovers(&layout).await?;
    }
    if layout.agent().exists() {
        end_sandboxes(config, &layout, ending).await?;
    }
    if layout.host_id_file().exists() {
        memory_limits::remove(&layout).await?;
    }
    Ok(Stopped { was_running: running.is_some(), left_over_processes: left })
}

/// Brings the sandboxes to their ending, and removes the agent's kernel resources unless they run on. The agent must
/// have ended.
pub(crate) async fn end_sandboxes(config: &Config, layout: &Layout, ending: Ending) -> Result<()> {
    let keep = match ending {
        Ending::Leave => return Ok(()),
        Ending::Destroy => Keep::Nothing,
        Ending::Pause => {
            pause(config).await;
            Keep::Sandboxes
        }
    };
    let dir = layout.agent();
    let work = tokio::task::spawn_blocking(move || wrenn_host::cleanup(&dir, keep));
    let done = work.await.context("the clean-up broke off")?;
    done.with_context(|| format!("cannot remove all that the agent made; see {}", layout.agent().display()))
}

/// Pauses all sandboxes. One that cannot be paused loses its memory, and keeps its disk.
async fn pause(config: &Config) {
    let paused = async {
        let told = |count| note(&format!("pausing {count} sandboxes ..."));
        wrenn_host::pause_all(serve::agent_config(config)?, told).await
    };
    match paused.await {
        Ok(paused) => {
            for (id, why) in paused.failed {
                note(&format!("sandbox {id} was not paused and loses its memory: {why}"));
            }
        }
        Err(error) => note(&format!("sandboxes could not be paused and lose their memory: {error:#}")),
    }
}

/// Stops the parts of a `wrenn up` that has died, and returns their number.
pub(crate) async fn stop_leftovers(layout: &Layout) -> Result<usize> {
    let mut count = 0;
    for &name in PARTS {
        let path = layout.pid_file(name);
        if let Some(record) = Record::running(&path)? {
            note(&format!("ending {name} (process {}) of a wrenn up that died", record.pid));
            let signal = if name == "postgres" { Signal::INT } else { Signal::TERM };
            record.stop(signal, PART_LIMIT).await?;
            count += 1;
        }
        let _ = fs::remove_file(path);
    }
    Ok(count)
}
