// SPDX-License-Identifier: Apache-2.0
//! `RUN`: a command in the sandbox of a build, whose output goes to the log as it comes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};
use wrenn_api::{BuildSecrets, BuildStream, ErrorCode, ExecStart};
use wrenn_recipe::{Command, Context, Run};

use super::{
    guest::Guest,
    log::Log,
    mask::{Masked, Masks},
    output::Output,
    plan::Place,
    secrets,
    stop::{Failure, Stop},
};
use crate::{
    agents::deadline::EXEC_EXTRA,
    error::Fault,
    sandboxes::{Exit, ProcessEvent, ProcessEvents},
};

/// Time limit of a command that has none of its own.
const LIMIT: Duration = Duration::from_secs(600);
/// Maximum number of bytes that are kept of the output of a step, and of all steps.
const KEPT: usize = 4 << 20;
const KEPT_OF_ALL: usize = 64 << 20;
/// Maximum number of times that the output of a step changes between its streams: each change is an entry of the log.
const TURNS: usize = 1 << 16;
/// Where the script of a step is while it runs.
const SCRIPT: &str = "/run/wrenn-script";
/// Time limit for a command to start.
const START: Duration = Duration::from_secs(60);

/// How much of the output of all steps is kept yet, and what of it is not shown.
pub(super) struct Room {
    left: usize,
    masks: Masks,
}

impl Room {
    /// Room for the output of a build that has these secrets.
    pub(super) fn new(secrets: &BuildSecrets) -> Self {
        Self { left: KEPT_OF_ALL, masks: Masks::of(secrets.0.values().map(String::as_str)) }
    }

    /// Replaces the secrets of the build in a text.
    pub(super) fn hide(&self, text: &str) -> String {
        self.masks.hide(text)
    }
}

/// Runs the command of a step, with its secrets. Fails if it does not end with 0.
pub(super) async fn run(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    run: &Run,
    context: &Context,
    room: &mut Room,
    values: &BuildSecrets,
) -> Result<i32, Stop> {
    if run.secrets.is_empty() {
        return run_alone(guest, log, place, run, context, room).await;
    }
    let done = match secrets::put(guest, place, run, context, values).await {
        Ok(()) => run_alone(guest, log, place, run, context, room).await,
        Err(stop) => Err(stop),
    };
    secrets::remove(guest, log, place, done).await
}

/// Runs the command of a step whose secrets are there.
async fn run_alone(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    run: &Run,
    context: &Context,
    room: &mut Room,
) -> Result<i32, Stop> {
    let in_step = |fault| Stop::in_step(place, fault);
    if let Command::Script(text) = &run.command {
        guest.write_program(SCRIPT, text).await.map_err(in_step)?;
    }
    let limit = run.timeout.map_or(LIMIT, wrenn_recipe::Period::get);
    let start = command(&run.command, SCRIPT, context, context.variables(), Some(limit));
    let exit = follow(guest, log, place, start, limit, room).await?;
    if let Command::Script(_) = &run.command {
        guest.remove_file(SCRIPT).await.map_err(in_step)?;
    }
    judge(place, &exit, limit)
}

/// Makes a request of a command; a script was written to `script`.
pub(super) fn command(
    command: &Command,
    script: &str,
    context: &Context,
    envs: BTreeMap<String, String>,
    limit: Option<Duration>,
) -> ExecStart {
    let (cmd, args) = match command {
        Command::Shell(text) => ("/bin/sh".to_owned(), vec!["-c".to_owned(), text.clone()]),
        Command::Exec(words) => {
            (words.first().cloned().unwrap_or_default(), words.iter().skip(1).cloned().collect())
        }
        Command::Script(_) => (script.to_owned(), Vec::new()),
    };
    ExecStart {
        cmd,
        args,
        envs,
        cwd: Some(context.workdir.clone()),
        user: Some(context.user.to_string()),
        timeout_sec: limit.map(|limit| limit.as_secs_f64().ceil() as u32),
        stdin: false,
        tag: None,
    }
}

/// Runs a command to its end, and writes its output to the log.
async fn follow(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    start: ExecStart,
    limit: Duration,
    room: &mut Room,
) -> Result<Exit, Stop> {
    let in_step = |fault| Stop::in_step(place, fault);
    let late = |_| Fault::new(ErrorCode::Timeout, "the sandbox did not start the command in time");
    let started = timeout(START, guest.start(start)).await.map_err(late).and_then(|started| started);
    // The command is killed when this is dropped.
    let (_input, mut events) = started.map_err(in_step)?;
    let mut output = Kept::new(place, room);
    let silence = guest.settings().silence;
    let (end, mut heard, mut silent) = (Instant::now() + limit + EXEC_EXTRA, Instant::now(), silence);
    loop {
        let event = tokio::select! {
            event = events.next() => event.map_err(in_step)?,
            () = at(log.due()) => {
                log.flush().await?;
                continue;
            }
            () = sleep_until(heard + silent) => {
                log.say(place.number, format!("no output for {} s, still running", silent.as_secs()));
                silent += silence;
                continue;
            }
            () = sleep_until(end) => {
                let message = "the sandbox did not end the command in time: its host or its guest hangs";
                return Err(in_step(Fault::new(ErrorCode::Timeout, message)));
            }
        };
        match event {
            ProcessEvent::Stdout(bytes) => output.take(log, BuildStream::Stdout, &bytes),
            ProcessEvent::Stderr(bytes) => output.take(log, BuildStream::Stderr, &bytes),
            ProcessEvent::Lost(bytes) => {
                log.say(place.number, format!("{bytes} bytes of output are missing here"));
            }
            ProcessEvent::Ended(exit) => {
                output.finish(log);
                log.flush().await?;
                return Ok(exit);
            }
            _ => continue,
        }
        (heard, silent) = (Instant::now(), silence);
    }
}

/// Waits until a time; for ever if there is none.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Output of a step, as far as it is kept.
pub(super) struct Kept<'a> {
    place: Place,
    output: Output,
    /// Maximum that is kept, as the log says it.
    most: &'static str,
    room: &'a mut Room,
    last: Option<BuildStream>,
    /// How often the other stream wrote: each time makes an entry.
    turns: usize,
    /// Standard output and standard error without secrets.
    masked: [Masked; 2],
}

impl<'a> Kept<'a> {
    pub(super) fn new(place: Place, room: &'a mut Room) -> Self {
        let most = if room.left < KEPT { "64 MiB of all steps" } else { "4 MiB" };
        let output = Output::of_at_most(KEPT.min(room.left));
        let masked = [room.masks.begin(), room.masks.begin()];
        Self { place, output, most, room, last: None, turns: 0, masked }
    }

    /// Adds what the command has written to the log. Of what is not kept the log says once that there is some.
    pub(super) fn take(&mut self, log: &mut Log, stream: BuildStream, bytes: &[u8]) {
        if self.output.is_cut() || self.turns > TURNS {
            return;
        }
        if self.last.replace(stream) != Some(stream) {
            self.turns += 1;
            self.room.left = self.room.left.saturating_sub(KEPT / TURNS);
            if self.turns > TURNS {
                log.say(
                    self.place.number,
                    format!("output beyond {TURNS} turns of both streams is not kept"),
                );
                return;
            }
        }
        let shown = self.masked_of(stream).take(bytes);
        self.keep(log, stream, &shown);
    }

    fn masked_of(&mut self, stream: BuildStream) -> &mut Masked {
        &mut self.masked[usize::from(stream == BuildStream::Stderr)]
    }

    fn keep(&mut self, log: &mut Log, stream: BuildStream, shown: &[u8]) {
        let before = self.output.left();
        let text = self.output.take(stream, shown);
        self.room.left = self.room.left.saturating_sub(before - self.output.left());
        log.output(self.place.number, stream, &text);
        if self.output.is_cut() {
            log.say(self.place.number, format!("output beyond {} is not kept", self.most));
        }
    }

    /// Adds what is left at the end of the command.
    pub(super) fn finish(&mut self, log: &mut Log) {
        for stream in [BuildStream::Stdout, BuildStream::Stderr] {
            let held = self.masked_of(stream).finish();
            if !held.is_empty() && !self.output.is_cut() && self.turns <= TURNS {
                self.keep(log, stream, &held);
            }
            let text = self.output.finish(stream);
            log.output(self.place.number, stream, &text);
        }
    }
}

/// Fails if a command did not end with 0.
fn judge(place: Place, exit: &Exit, limit: Duration) -> Result<i32, Stop> {
    let code = exit.exit_code;
    let what = match exit {
        Exit { timed_out: true, .. } => {
            format!("did not end within {} s: give it more time with --timeout", limit.as_secs_f64())
        }
        Exit { exit_code: 0, .. } => return Ok(code),
        Exit { out_of_memory: true, .. } => {
            "was killed for want of memory: give the build more memory_mb".to_owned()
        }
        Exit { signal: Some(signal), .. } => format!("was ended by signal {signal}"),
        _ => format!("ended with {code}"),
    };
    Err(Failure::of_command(place, &what, code).into())
}

/// Reads the end of the output of a command, and its end. At most `limit` passes.
pub(super) async fn tail(events: &mut ProcessEvents, limit: Duration) -> Result<(String, Exit), Fault> {
    /// Number of bytes that are kept.
    const TAIL: usize = 4 << 10;
    let reading = async {
        let mut tail = Vec::new();
        loop {
            match events.next().await? {
                ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => {
                    tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
                    tail.drain(..tail.len().saturating_sub(TAIL));
                }
                ProcessEvent::Ended(exit) => {
                    return Ok::<_, Fault>((String::from_utf8_lossy(&tail).into_owned(), exit));
                }
                _ => {}
            }
        }
    };
    let late = |_| Fault::new(ErrorCode::Timeout, "the sandbox did not end the command in time");
    timeout(limit + EXEC_EXTRA, reading).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Place = Place { number: 2, line: 3 };

    fn told(exit: &Exit) -> String {
        match judge(STEP, exit, Duration::from_millis(1500)) {
            Ok(code) => format!("fine: {code}"),
            Err(Stop::Failed(failure)) => failure.message,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_that_does_not_end_with_0_fails_its_step() {
        assert_eq!(told(&Exit::default()), "fine: 0");
        let exit = Exit { exit_code: 100, ..Exit::default() };
        assert_eq!(told(&exit), "step 2 (line 3) ended with 100");
        let exit = Exit { exit_code: 137, signal: Some(9), ..Exit::default() };
        assert_eq!(told(&exit), "step 2 (line 3) was ended by signal 9");
        let of_memory = Exit { out_of_memory: true, ..exit.clone() };
        assert!(told(&of_memory).contains("more memory_mb"));
        let late = told(&Exit { timed_out: true, ..exit });
        assert!(late.contains("within 1.5 s: give it more time with --timeout"), "{late}");
        let survived = Exit { out_of_memory: true, ..Exit::default() };
        assert_eq!(told(&survived), "fine: 0", "one of its descendants was killed, and it did without");
    }

    #[test]
    fn commands_are_run_as_the_recipe_says() {
        let context = Context { workdir: "/app".to_owned(), ..Context::default() };
        let made = |of: Command, limit| command(&of, "/run/script", &context, BTreeMap::new(), limit);
        let shell = made(Command::Shell("a && b".to_owned()), Some(Duration::from_millis(1001)));
        assert_eq!((shell.cmd.as_str(), shell.args), ("/bin/sh", vec!["-c".to_owned(), "a && b".to_owned()]));
        assert_eq!(shell.timeout_sec, Some(2), "never less than it has");
        assert_eq!((shell.cwd.as_deref(), shell.user.as_deref()), (Some("/app"), Some("root")));
        let exec = made(Command::Exec(vec!["a".to_owned(), "b c".to_owned()]), None);
        assert_eq!((exec.cmd.as_str(), exec.args, exec.timeout_sec), ("a", vec!["b c".to_owned()], None));
        let script = made(Command::Script("#!/bin/a\n".to_owned()), None);
        assert_eq!((script.cmd.as_str(), script.args.len()), ("/run/script", 0));
    }
}
