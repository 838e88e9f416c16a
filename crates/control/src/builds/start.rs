// SPDX-License-Identifier: Apache-2.0
//! `START` and `HEALTHCHECK`: a process that goes on running in sandboxes of the template, and how it is known to be ready.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use wrenn_api::BuildStream;
use wrenn_recipe::{Command, Context, Healthcheck, Start};
use wrenn_rpc::host::v1::Command as AgentCommand;

use super::{
    guest::Guest,
    log::Log,
    plan::Place,
    run::{Kept, Room, at, command, tail},
    stop::{Failure, Stop},
};
use crate::{
    error::Fault,
    sandboxes::{Exit, ProcessEvent, ProcessEvents, ProcessInput},
};

/// Tag of the process.
const TAG: &str = "start";
/// Where the scripts of both are. That of the process stays, because its interpreter may read it later.
const SCRIPT: &str = "/run/wrenn-start";
const CHECK_SCRIPT: &str = "/run/wrenn-check";
/// Time after which a process that nothing checks must still run.
const ALIVE: Duration = Duration::from_secs(1);
/// Time between two checks, and how long one may take, unless the recipe says so.
const INTERVAL: Duration = Duration::from_secs(3);
const CHECK: Duration = Duration::from_secs(10);

/// The process that was started, and its output.
pub(super) struct Started {
    /// The step that starts it.
    place: Place,
    /// `None` once it has ended, or cannot be followed any more.
    events: Option<(ProcessInput, ProcessEvents)>,
}

/// Starts the process of a step. If nothing will check it, it must still run after a second.
pub(super) async fn start(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    start: &Start,
    context: &Context,
    is_checked: bool,
    room: &mut Room,
) -> Result<Started, Stop> {
    let in_step = |fault| Stop::in_step(place, fault);
    if let Command::Script(text) = &start.command {
        guest.write_program(SCRIPT, text).await.map_err(in_step)?;
    }
    let request = command(&start.command, SCRIPT, context, context.env.clone(), None);
    let request = AgentCommand {
        cmd: request.cmd,
        args: request.args,
        envs: request.envs.into_iter().collect(),
        cwd: request.cwd.unwrap_or_default(),
        user: request.user.unwrap_or_default(),
        tag: TAG.to_owned(),
        ..Default::default()
    };
    guest.start_process(request).await.map_err(in_step)?;
    let mut started = Started::follow(guest, place).await?;
    if !is_checked {
        let begun = Instant::now();
        started.run_until(log, sleep_until(begun + ALIVE), room, true).await?;
    }
    Ok(started)
}

/// Waits until the check of a step succeeds, and meanwhile writes the output of the process to the log. Fails if it does not
/// succeed in time.
pub(super) async fn check(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    check: &Healthcheck,
    context: &Context,
    mut started: Started,
    room: &mut Room,
) -> Result<(), Stop> {
    if let Command::Script(text) = &check.command {
        guest.write_program(CHECK_SCRIPT, text).await.map_err(|fault| Stop::in_step(place, fault))?;
    }
    let begun = Instant::now();
    let checking = try_until_it_succeeds(guest, check, context, guest.settings().start);
    let tries = started.run_until(log, checking, room, false).await?.map_err(|last| {
        // A step before may have left a secret where it finds it.
        let shown = room.hide(&last.output);
        let output = if shown.is_empty() { String::new() } else { format!(": {shown}") };
        Failure::of_step(place, &format!("{}{output}", last.what))
    })?;
    log.say(
        place.number,
        format!("it succeeded at try {tries} after {:.1} s", begun.elapsed().as_secs_f64()),
    );
    if let Command::Script(_) = &check.command {
        guest.remove_file(CHECK_SCRIPT).await.map_err(|fault| Stop::in_step(place, fault))?;
    }
    Ok(())
}

impl Started {
    /// Follows the process that a step has started, also one that a sandbox had which this one goes on from.
    pub(super) async fn follow(guest: &Guest, place: Place) -> Result<Self, Stop> {
        let events = guest.follow(TAG).await.map_err(|fault| Stop::in_step(place, fault))?;
        Ok(Self { place, events: Some(events) })
    }

    /// Writes the output of the process to the log until something else has ended. Fails if the process ends in error, or with
    /// `must_run` if it ends at all.
    async fn run_until<T>(
        &mut self,
        log: &mut Log,
        until: impl Future<Output = T>,
        room: &mut Room,
        must_run: bool,
    ) -> Result<T, Stop> {
        let mut until = pin!(until);
        let mut output = Kept::new(self.place, room);
        let ended = loop {
            tokio::select! {
                ended = &mut until => break Ok(ended),
                event = self.next() => match event {
                    Ok(ProcessEvent::Stdout(bytes)) => output.take(log, BuildStream::Stdout, &bytes),
                    Ok(ProcessEvent::Stderr(bytes)) => output.take(log, BuildStream::Stderr, &bytes),
                    Ok(ProcessEvent::Ended(exit)) => {
                        self.events = None;
                        if must_run || exit.exit_code != 0 {
                            break Err(self.ended(&exit, must_run));
                        }
                    }
                    Ok(_) => {}
                    Err(fault) => {
                        self.events = None;
                        let why = format!("its process has ended, or cannot be followed: {}", fault.message);
                        if must_run {
                            break Err(Failure::of_step(self.place, &format!("failed, as {why}")));
                        }
                        log.say(self.place.number, why);
                    }
                },
                () = at(log.due()) => log.flush().await?,
            }
        };
        output.finish(log);
        log.flush().await?;
        ended.map_err(Stop::from)
    }

    /// Waits for the next event of the process, and for ever after its end.
    async fn next(&mut self) -> Result<ProcessEvent, Fault> {
        match &mut self.events {
            Some((_, events)) => events.next().await,
            None => std::future::pending().await,
        }
    }

    /// The failure of a process that has ended.
    fn ended(&self, exit: &Exit, must_run: bool) -> Failure {
        let remedy = match (must_run, exit.exit_code) {
            (true, 0) => " and is to go on running: if it leaves another one running, add a HEALTHCHECK",
            (_, _) if exit.out_of_memory => " for want of memory: give the build more memory_mb",
            _ => "",
        };
        let what = format!("has started a process that ended with {}{remedy}", exit.exit_code);
        Failure::of_command(self.place, &what, exit.exit_code)
    }
}

/// A check that did not succeed.
#[derive(Debug)]
struct LastTry {
    what: String,
    /// The end of what it wrote.
    output: String,
}

/// Checks again and again; returns the number of the try that succeeded.
async fn try_until_it_succeeds(
    guest: &Guest,
    check: &Healthcheck,
    context: &Context,
    limit: Duration,
) -> Result<u32, LastTry> {
    let period = |given: Option<wrenn_recipe::Period>, usual| given.map_or(usual, wrenn_recipe::Period::get);
    let (interval, start_period) =
        (period(check.interval, INTERVAL), period(check.start_period, Duration::ZERO));
    let one = period(check.timeout, CHECK);
    let (begun, mut number, mut failures) = (Instant::now(), 0, 0);
    loop {
        number += 1;
        let left = limit.saturating_sub(begun.elapsed()).max(Duration::from_secs(1));
        let last = match try_once(guest, check, context, one.min(left)).await {
            Ok(None) => return Ok(number),
            Ok(Some(last)) => last,
            Err(fault) => LastTry { what: "could not be run".to_owned(), output: fault.message },
        };
        if begun.elapsed() >= start_period {
            failures += 1;
        }
        if check.retries.is_some_and(|retries| retries > 0 && failures >= retries) {
            return Err(LastTry { what: format!("failed {failures} times: it {}", last.what), ..last });
        }
        if begun.elapsed() + interval >= limit {
            let what = format!(
                "did not succeed within {} s (server.build_start_secs): at last it {}",
                limit.as_secs(),
                last.what
            );
            return Err(LastTry { what, ..last });
        }
        sleep(interval).await;
    }
}

/// Runs a check; `None` if it succeeded.
async fn try_once(
    guest: &Guest,
    check: &Healthcheck,
    context: &Context,
    limit: Duration,
) -> Result<Option<LastTry>, Fault> {
    let request = command(&check.command, CHECK_SCRIPT, context, context.env.clone(), Some(limit));
    let (_input, mut events) = guest.start(request).await?;
    let (output, exit) = tail(&mut events, limit).await?;
    let what = match exit {
        Exit { timed_out: true, .. } => format!("took longer than {} s", limit.as_secs_f64()),
        Exit { exit_code: 0, .. } => return Ok(None),
        Exit { exit_code, .. } => format!("ended with {exit_code}"),
    };
    Ok(Some(LastTry { what, output: output.trim_end().to_owned() }))
}
