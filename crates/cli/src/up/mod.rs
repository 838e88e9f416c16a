// SPDX-License-Identifier: Apache-2.0
//! `wrenn up`: runs all parts of Wrenn on one machine, in the foreground or in the background.

pub(crate) mod child;
mod detach;
mod first_admin;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod supervisor;

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use tracing::{info, warn};
use wrenn_os::inherit;

use crate::{
    config::Config,
    down,
    layout::Layout,
    logging, memory_limits,
    output::{Format, note},
    process::Record,
    signals::{Ending, UpStop},
    status, users,
};

/// Name of the pid file that exists while all parts run.
pub(crate) const READY: &str = "ready";

/// OOM score adjustment of `wrenn up` and the agent: they are killed last.
pub(crate) const OOM_SCORE: i32 = -900;

/// Options of `wrenn up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go to the background once everything runs
    #[arg(long)]
    detach: bool,
    /// Started by `--detach`: what it tells goes to a log
    #[arg(long, hide = true)]
    background: bool,
}

/// Runs `wrenn up`.
pub(crate) async fn run(config: &Config, args: &Args, format: Format) -> Result<u8> {
    ensure!(rustix::process::geteuid().is_root(), "wrenn up needs root: run it with sudo");
    let users = users::Services::find()?;
    let layout = Layout::new(&config.machine().state_dir);
    layout.create(&users)?;
    let Some(lock) = lock(&layout)? else {
        note("Wrenn already runs.");
        status::print(config, format).await?;
        first_admin::tell(config, &layout).await;
        return Ok(0);
    };
    if args.detach {
        // The background process takes the lock.
        drop(lock);
        detach::start(config, &layout).await?;
        // The key may be new.
        status::print(&config.reload()?, format).await?;
        first_admin::tell(config, &layout).await;
        return Ok(0);
    }
    logging::start(config);
    let result = foreground(config, args, &layout, &users).await;
    let _ = fs::remove_file(layout.pid_file("up"));
    drop(lock);
    result.map(|()| 0)
}

/// Takes the lock; `None` if another process has it. The kernel releases it when the process ends.
fn lock(layout: &Layout) -> Result<Option<fs::File>> {
    let path = layout.lock_file();
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

async fn foreground(config: &Config, args: &Args, layout: &Layout, users: &users::Services) -> Result<()> {
    let mut signal = UpStop::new()?;
    // A service must not keep its first working directory busy.
    std::env::set_current_dir("/").context("cannot go to /")?;
    Record::of(std::process::id())?.write(&layout.pid_file("up"))?;
    down::stop_leftovers(layout).await?;
    // All parts end with this process.
    inherit::set_oom_score(OOM_SCORE);
    if let Some((detail, remedy)) = users.lack() {
        warn!("{detail}; {remedy}");
    }
    let mut supervisor = supervisor::Supervisor::default();
    let result = tokio::select! {
        result = supervisor.start(config, layout, users) => result.map(|()| None),
        (name, ending) = signal.received() => {
            info!("{name} while starting");
            Ok(Some(ending))
        }
    };
    let started = matches!(result, Ok(None));
    let mut ending = result.as_ref().ok().copied().flatten().unwrap_or(Ending::Pause);
    if started {
        // Written only now, so that no one waiting takes an incomplete start for a complete one.
        Record::of(std::process::id())?.write(&layout.pid_file(READY))?;
        announce(config, layout);
        if !args.background {
            first_admin::tell(config, layout).await;
        }
        tokio::select! {
            (name, asked) = signal.received() => {
                info!("{name}: stopping");
                ending = asked;
            }
            // Its own log, when it runs in the background.
            () = child::keep_log_short(layout.log("up")) => {}
            () = supervisor.renew_certificates(layout, &users.server) => {}
        }
    }
    let _ = fs::remove_file(layout.pid_file(READY));
    supervisor.stop_services().await;
    // After a failure the sandboxes stay for the next start: a database that was away for a moment must not
    // end them.
    let result = match result {
        Ok(_) => {
            let ended = down::end_sandboxes(config, layout, ending).await;
            if ended.is_ok() && started && ending == Ending::Destroy {
                supervisor::note_gone(config, layout).await
            } else {
                ended
            }
        }
        Err(error) => Err(error.context("Wrenn did not start; earlier sandboxes run until `wrenn down`")),
    };
    supervisor.stop().await;
    if let Err(error) = &result
        && let Some(part) = error.downcast_ref::<child::NotReady>()
    {
        note(&part.quote());
    }
    result?;
    memory_limits::remove(layout).await?;
    info!("stopped");
    Ok(())
}

fn announce(config: &Config, layout: &Layout) {
    let (url, key, database) =
        (config.local_url(), config.file().display(), status::database(config, layout));
    note(&format!(
        "Wrenn runs.\n  API       {url}\n  docs      {url}/docs\n  key       in {key}\n  database  {database}"
    ));
    note("Stop it by Ctrl-C or `wrenn down`.");
}
