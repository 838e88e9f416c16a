// SPDX-License-Identifier: Apache-2.0
//! Runs a command in a sandbox, or attaches to a process, and passes input, output and exit status on.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::json;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    task::JoinHandle,
};
use wrenn_api::{Encoding, ExecRequest, KilledProcess, SandboxId, SandboxStatus};
use wrenn_client::{Client, ProcessEvent, ProcessStream};

use crate::{
    creation::seconds,
    failure::TIMED_OUT,
    output::{Format, note},
    stdin,
    terminal::{self, Leaving},
};

/// Exit status of a command that the kernel killed.
const KILLED: i32 = 137;
/// Exit status if the reader of the output has closed it.
const READER_GONE: u8 = 141;
/// Maximum number of bytes kept of each output with `--json`.
const KEPT_MAX: usize = 16 << 20;
/// Interval between looks whether a paused sandbox was resumed.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum value of `--timeout` in seconds: a day.
const TIMEOUT_MAX: u32 = 86_400;

/// Help text about the exit status of `run` and `exec`.
pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  the command's own, 128 + N when signal N ended it, or
  124  the command was killed because the time of --timeout was over
  125  Wrenn failed: no such sandbox, no connection, a wrong key, ...
  126  the program is not executable, or the user or the directory does not exist in the sandbox
  127  the program does not exist in the sandbox
  2    the command line is wrong
  130, 143, 129  interrupted by SIGINT, SIGTERM, SIGHUP; the command is killed

Standard input is passed on if it is no terminal, as in a pipeline, or with -i. In a loop that reads from standard input itself,
use --no-stdin.

A terminal (-t) outlives its client. Enter ~ . leaves it, Enter ~ ~ sends a tilde; `wrenn sandbox ps` lists it, and `wrenn
sandbox attach` shows the same screen again.";

/// Command and how to run it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Program {
    /// Run as this user of the sandbox instead of the template's default one: NAME, UID, NAME:GROUP
    #[arg(long, short = 'u', value_name = "NAME")]
    user: Option<String>,
    /// Start in this directory of the sandbox instead of the user's home
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// Kill the command after this time: seconds, or with a unit, such as 10m; default: no limit
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    timeout: Option<u32>,
    /// Pass standard input on even if it is a terminal
    #[arg(long, short = 'i', conflicts_with = "no_stdin")]
    interactive: bool,
    /// Give the command a terminal, connected to this one: for shells and editors. Enter ~ . leaves it, and it goes on
    #[arg(long, short = 't', conflicts_with = "no_stdin")]
    tty: bool,
    /// Pass no standard input on: the command reads an empty one
    #[arg(long, short = 'n')]
    no_stdin: bool,
    /// The program, found in the sandbox's PATH, and its arguments; for a shell write sh -c '...'
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Program {
    /// Returns the same with this command, if it has none.
    pub(crate) fn or(mut self, command: &[String]) -> Self {
        if self.command.is_empty() {
            self.command = command.to_vec();
        }
        self
    }

    /// Whether there is a command.
    pub(crate) fn is_given(&self) -> bool {
        !self.command.is_empty()
    }

    /// Builds the request with these variables in addition to the sandbox's.
    fn request(&self, envs: BTreeMap<String, String>) -> Result<ExecRequest> {
        let (cmd, args) = self.command.split_first().context("no command")?;
        let (cwd, user) = (self.cwd.clone(), self.user.clone());
        Ok(ExecRequest {
            cmd: cmd.clone(),
            args: args.to_vec(),
            envs,
            cwd,
            user,
            timeout_sec: self.timeout,
            stdin: stdin::is_passed_on(self.interactive, self.no_stdin),
            ..ExecRequest::default()
        })
    }

    /// Builds the command. `after` says what becomes of its terminal when the user leaves that.
    pub(crate) fn command(&self, envs: BTreeMap<String, String>, after: Leaving) -> Result<Command> {
        Ok(Command { request: self.request(envs)?, tty: self.tty, after })
    }

    /// Builds the request of a command that runs in the background. It has standard input, for `attach`, with `-i`.
    pub(crate) fn background(
        &self,
        envs: BTreeMap<String, String>,
        tag: Option<&str>,
    ) -> Result<ExecRequest> {
        let request = self.request(envs)?;
        Ok(ExecRequest { stdin: self.interactive, tag: tag.map(str::to_owned), background: true, ..request })
    }
}

/// Command that is waited for.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: ExecRequest,
    /// Whether it gets a terminal.
    tty: bool,
    /// What becomes of it when the user leaves.
    after: Leaving,
}

/// Parses the time limit of a command.
fn time_limit(text: &str) -> Result<u32, String> {
    let seconds = seconds(text)?;
    if (1..=TIMEOUT_MAX).contains(&seconds) {
        return Ok(seconds);
    }
    Err("a command may run for 1 s to a day".to_owned())
}

/// Destination and statistics of the output.
struct Sink {
    format: Format,
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
    kept: [Vec<u8>; 2],
    silent: bool,
    lost_bytes: u64,
}

/// Place in the output of a process.
#[derive(Debug, Clone, Copy)]
struct Place {
    pid: u32,
    /// Number of bytes that were read, and of those before.
    offset: u64,
    begin: Instant,
}

/// Exit of a command.
#[derive(Debug, Clone)]
struct End {
    exit_code: i32,
    timed_out: bool,
    /// Whether the kernel killed it or a descendant for want of memory, and which one, if that is known.
    out_of_memory: bool,
    killed: Option<KilledProcess>,
    duration: Duration,
}

impl End {
    /// Exit status of this program. One above 255 cannot be passed on, but must not become success.
    fn status(&self) -> u8 {
        u8::try_from(self.exit_code).unwrap_or(u8::MAX)
    }

    /// Says that something was killed for want of memory, in a sandbox with so many MiB.
    fn of_memory(&self, memory_mb: Option<u32>) -> String {
        let what = match &self.killed {
            _ if self.exit_code == KILLED => "the command".to_owned(),
            Some(killed) => format!("{} (process {}) of the command", killed.command, killed.pid),
            None => "a process of the command".to_owned(),
        };
        let size = memory_mb.map(|size| format!(" ({size} MiB)")).unwrap_or_default();
        format!("wrenn: {what} was killed: the sandbox is out of memory{size}")
    }
}

/// Runs a command to its end, or in a terminal until that is left, and returns its exit status.
pub(crate) async fn run(client: &Client, id: SandboxId, command: &Command, format: Format) -> Result<u8> {
    let Command { request, tty, after } = command;
    if *tty {
        anyhow::ensure!(format == Format::Text, "a terminal has no JSON form: leave out --json or -t");
        return terminal::start(client, id, request, *after).await;
    }
    let stream = client.exec_stream(id, request).await?;
    // One that ends with its sandbox is not left behind by a stream that only attaches.
    let comes_back = (*after == Leaving::Ends).then_some((client, id));
    let ran = pass_through(stream, request.stdin, format, comes_back).await?;
    let Some((sink, end)) = ran else { return Ok(READER_GONE) };
    if sink.silent && end.exit_code == 0 && !request.stdin && request.args.is_empty() && stdin::is_terminal()
    {
        // Probably an interactive interpreter; most other commands print something or have arguments.
        note("wrenn: the command got no input; for a terminal use -it, for the input alone -i");
    }
    sink.finish(id, &request.cmd, &end)?;
    tell_of_memory(client, id, &end).await;
    if end.timed_out {
        note(&format!("wrenn: the command was killed after {} s", request.timeout_sec.unwrap_or_default()));
        return Ok(TIMED_OUT);
    }
    Ok(end.status())
}

/// Attaches to a process until it ends, and returns its exit status.
pub(crate) async fn attach(
    client: &Client,
    id: SandboxId,
    process: &str,
    from: &str,
    input: bool,
    format: Format,
) -> Result<u8> {
    let stream = client.process_stream(id, process, from).await?;
    let ran = pass_through(stream, input, format, Some((client, id))).await?;
    let Some((sink, end)) = ran else { return Ok(READER_GONE) };
    sink.finish(id, process, &end)?;
    tell_of_memory(client, id, &end).await;
    Ok(end.status())
}

/// Tells the user if something was killed for want of memory, and how much the sandbox has, if it is still there.
async fn tell_of_memory(client: &Client, id: SandboxId, end: &End) {
    if end.out_of_memory {
        let memory_mb = client.get(id).await.ok().map(|sandbox| sandbox.memory_mb);
        note(&end.of_memory(memory_mb));
    }
}

/// Passes input and output through, up to the end of the process; `None` if the reader of the output is gone. With a sandbox,
/// its output comes back after a pause; its input does not.
async fn pass_through(
    mut stream: ProcessStream,
    input: bool,
    format: Format,
    comes_back: Option<(&Client, SandboxId)>,
) -> Result<Option<(Sink, End)>> {
    let mut sink = Sink {
        format,
        stdout: tokio::io::stdout(),
        stderr: tokio::io::stderr(),
        kept: [Vec::new(), Vec::new()],
        silent: true,
        lost_bytes: 0,
    };
    let feeding = input.then(|| stdin::pass_on(stream.input()));
    let mut place = None;
    let followed = loop {
        let followed = follow(&mut stream, &mut sink, feeding.as_ref(), &mut place).await;
        match (followed, comes_back, place) {
            (Err(error), Some((client, id)), Some(place)) if breaks_at_pause(&error) => {
                stream = after_pause(client, id, place, error).await?;
            }
            (followed, ..) => break followed,
        }
    };
    feeding.inspect(JoinHandle::abort);
    match followed {
        Ok(end) => Ok(Some((sink, end))),
        Err(error) if crate::output::reader_gone(&error) => {
            let _ = stream.stop().await;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether a stream has ended because its sandbox was paused, or is gone.
fn breaks_at_pause(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<wrenn_client::Error>();
    cause.and_then(wrenn_client::Error::code) == Some("invalid_state")
}

/// Waits until the sandbox was resumed, which this does not do itself, and reads the process on. Fails with the cause if the
/// sandbox is not paused.
async fn after_pause(
    client: &Client,
    id: SandboxId,
    place: Place,
    cause: anyhow::Error,
) -> Result<ProcessStream> {
    use SandboxStatus::{Missing, Paused, Pausing, Resuming, Running};
    let mut told = false;
    loop {
        match client.get(id).await.map(|sandbox| sandbox.status) {
            Ok(Running) => {
                let offset = place.offset.to_string();
                return Ok(client.process_stream(id, &place.pid.to_string(), &offset).await?);
            }
            Ok(Paused | Pausing | Resuming | Missing) if !told => {
                note("wrenn: the sandbox is paused: this goes on when it is resumed");
                told = true;
            }
            Ok(Paused | Pausing | Resuming | Missing) => {}
            _ => return Err(cause),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn follow(
    stream: &mut ProcessStream,
    sink: &mut Sink,
    feeding: Option<&JoinHandle<()>>,
    place: &mut Option<Place>,
) -> Result<End> {
    let passed = |place: &mut Option<Place>, bytes: u64| {
        if let Some(place) = place {
            place.offset += bytes;
        }
    };
    loop {
        match stream.next().await? {
            Some(ProcessEvent::Start { pid, offset, .. }) => {
                let begin = place.map_or_else(Instant::now, |place| place.begin);
                *place = Some(Place { pid, offset, begin });
            }
            Some(ProcessEvent::Stdout(bytes)) => {
                passed(place, bytes.len() as u64);
                sink.take(0, bytes).await?;
            }
            Some(ProcessEvent::Stderr(bytes)) => {
                passed(place, bytes.len() as u64);
                sink.take(1, bytes).await?;
            }
            Some(ProcessEvent::Lost { bytes }) => {
                passed(place, bytes);
                sink.lost(bytes);
            }
            // As in a pipeline whose next program has ended: what it does not read is of no use.
            Some(ProcessEvent::InputClosed { .. }) => feeding.into_iter().for_each(JoinHandle::abort),
            Some(ProcessEvent::Exit { exit_code, timed_out, out_of_memory, killed }) => {
                let duration = place.map_or(Duration::ZERO, |place| place.begin.elapsed());
                return Ok(End { exit_code, timed_out, out_of_memory, killed, duration });
            }
            None => anyhow::bail!("the command's stream ended without its exit status"),
        }
    }
}

impl Sink {
    async fn take(&mut self, which: usize, bytes: Bytes) -> Result<()> {
        self.silent &= bytes.is_empty();
        if self.format == Format::Json {
            let kept = bytes.len().min(KEPT_MAX - self.kept[which].len());
            self.lost_bytes += (bytes.len() - kept) as u64;
            self.kept[which].extend_from_slice(&bytes[..kept]);
            return Ok(());
        }
        let written = match which {
            0 => write(&mut self.stdout, &bytes).await,
            _ => write(&mut self.stderr, &bytes).await,
        };
        written.context("cannot pass the command's output on")
    }

    fn lost(&mut self, bytes: u64) {
        self.silent = false;
        self.lost_bytes += bytes;
        note(&format!("wrenn: {bytes} bytes of the command's output are missing here"));
    }

    fn finish(self, id: SandboxId, command: &str, end: &End) -> Result<()> {
        if self.format == Format::Text {
            return Ok(());
        }
        let (stdout, stderr, encoding) = encode(self.kept);
        let mut value = json!({
            "sandbox_id": id,
            "cmd": command,
            "exit_code": end.exit_code,
            "stdout": stdout,
            "stderr": stderr,
            "encoding": encoding,
            "timed_out": end.timed_out,
            "truncated": self.lost_bytes > 0,
            "lost_bytes": self.lost_bytes,
            "out_of_memory": end.out_of_memory,
            "duration_ms": u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
        });
        if let Some(killed) = &end.killed {
            value["killed"] = json!(killed);
        }
        self.format.print(&value, String::new)
    }
}

/// Encodes both outputs as text, or in base 64 if one of them is not UTF-8, as in the REST API.
fn encode(kept: [Vec<u8>; 2]) -> (String, String, Encoding) {
    let [stdout, stderr] = kept.map(String::from_utf8);
    match (stdout, stderr) {
        (Ok(stdout), Ok(stderr)) => (stdout, stderr, Encoding::Utf8),
        (stdout, stderr) => {
            let bytes = |text: Result<String, std::string::FromUtf8Error>| match text {
                Ok(text) => STANDARD.encode(text),
                Err(error) => STANDARD.encode(error.as_bytes()),
            };
            (bytes(stdout), bytes(stderr), Encoding::Base64)
        }
    }
}

async fn write(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes).await?;
    output.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_have_units_and_bounds() {
        for (text, time) in [("1", 1), ("10m", 600), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(time_limit(text), Ok(time), "{text}");
        }
        for text in ["0", "86401", "2d", "x", ""] {
            assert!(time_limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn it_is_told_what_was_killed_for_want_of_memory() {
        let python = KilledProcess { pid: 412, command: "python3".to_owned() };
        let told = |exit_code, killed: Option<&KilledProcess>, memory_mb| {
            let (killed, duration) = (killed.cloned(), Duration::ZERO);
            End { exit_code, timed_out: false, out_of_memory: true, killed, duration }.of_memory(memory_mb)
        };
        let whole = "wrenn: the command was killed: the sandbox is out of memory (512 MiB)";
        assert_eq!(told(137, Some(&python), Some(512)), whole);
        let part = "wrenn: python3 (process 412) of the command was killed: the sandbox is out of memory";
        assert_eq!(told(0, Some(&python), None), part);
        let unknown = "wrenn: a process of the command was killed: the sandbox is out of memory (128 MiB)";
        assert_eq!(told(1, None, Some(128)), unknown);
    }

    #[test]
    fn bytes_that_are_no_text_stay_exact() {
        let (stdout, stderr, encoding) = encode([b"\x89PNG\xff".to_vec(), b"e".to_vec()]);
        assert_eq!((stdout.as_str(), stderr.as_str(), encoding), ("iVBOR/8=", "ZQ==", Encoding::Base64));
        let (stdout, _, encoding) = encode(["ä".into(), Vec::new()]);
        assert_eq!((stdout.as_str(), encoding), ("ä", Encoding::Utf8));
    }
}
