// SPDX-License-Identifier: Apache-2.0
//! Terminals of sandboxes on the user's own one: keys, output, size, and coming back after a lost connection.

mod escape;
mod raw;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use wrenn_api::{ExecRequest, SandboxId, TerminalConnect, TerminalSize, TerminalStart};
use wrenn_client::{Client, Error, Terminal, TerminalEvent, TerminalInput};

use self::escape::{Escape, Typed};
pub(crate) use self::raw::Raw;
use crate::{failure::TIMED_OUT, output::note, stdin};

/// Size if standard output is no terminal.
const SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };
/// Waits between attempts to connect again.
const AGAIN: [u64; 7] = [1, 1, 2, 4, 8, 15, 30];
/// End of transmission, which ends the input of most programs.
const CTRL_D: &[u8] = b"\x04";
/// Undoes what a program may have set on the user's terminal, when its terminal is left.
const LEAVE: &str =
    "\x1b[?1049l\x1b[!p\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b>\x1b[0m\x1b[?25h\r\n";
/// A user's own shell.
const SHELL: &str = r#"exec "${SHELL:-/bin/sh}" -l"#;

/// What becomes of a terminal when the user leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It goes on.
    Stays,
    /// It ends with its sandbox.
    Ends,
}

/// How a terminal was left.
enum Left {
    /// Its program ended with this status.
    Ended(u8),
    /// By the user.
    Detached,
    /// The connection broke.
    Lost(Error),
}

/// Runs a command in a terminal; returns its exit status, or 0 if the user leaves it.
pub(crate) async fn start(
    client: &Client,
    id: SandboxId,
    request: &ExecRequest,
    leaving: Leaving,
) -> Result<u8> {
    let ExecRequest { cmd, args, envs, cwd, user, timeout_sec, tag, .. } = request.clone();
    let TerminalSize { cols, rows } = size();
    let idle_timeout_sec = None;
    let start = TerminalStart { cmd, args, envs, cwd, user, tag, cols, rows, timeout_sec, idle_timeout_sec };
    interact(client, id, client.start_terminal(id, &start).await?, leaving).await
}

/// Opens a user's shell in a terminal.
pub(crate) async fn shell(client: &Client, id: SandboxId, user: Option<String>) -> Result<u8> {
    let (cmd, args) = ("/bin/sh".to_owned(), vec!["-c".to_owned(), SHELL.to_owned()]);
    let request = ExecRequest { cmd, args, user, ..ExecRequest::default() };
    start(client, id, &request, Leaving::Stays).await
}

/// Connects to a terminal; returns the exit status of its program, or 0 if the user leaves it.
pub(crate) async fn connect(client: &Client, id: SandboxId, tag: &str) -> Result<u8> {
    interact(client, id, client.connect_terminal(id, &connection(tag)).await?, Leaving::Stays).await
}

/// Returns whether a process has a terminal.
pub(crate) async fn is_one(client: &Client, id: SandboxId, process: &str) -> Result<bool> {
    let all = client.processes(id).await?;
    let named = |pid: u32, tag: Option<&str>| tag == Some(process) || pid.to_string() == process;
    Ok(all.iter().any(|one| one.terminal && named(one.pid, one.tag.as_deref())))
}

/// A connection gets the size of the user's terminal, if there is one.
fn connection(tag: &str) -> TerminalConnect {
    let own = raw::size();
    TerminalConnect { tag: tag.to_owned(), cols: own.map(|own| own.cols), rows: own.map(|own| own.rows) }
}

/// Returns the size of the user's terminal, or the usual one.
pub(crate) fn size() -> TerminalSize {
    raw::size().unwrap_or(SIZE)
}

/// Passes keys and output through, and connects again if the connection breaks.
async fn interact(client: &Client, id: SandboxId, mut terminal: Terminal, leaving: Leaving) -> Result<u8> {
    let Some(TerminalEvent::Started(started)) = terminal.next().await? else {
        bail!("the terminal did not start");
    };
    let tag = started.tag;
    let raw = Raw::enter()?;
    let mut keys = Keys::new()?;
    loop {
        match follow(&mut terminal, &mut keys).await? {
            Left::Ended(status) => return Ok(status),
            Left::Detached => {
                restore(raw);
                if leaving == Leaving::Stays {
                    note(&format!("wrenn: left; come back by `wrenn sandbox attach {id} {tag}`"));
                }
                return Ok(0);
            }
            Left::Lost(error) => {
                note(&format!("\r\nwrenn: {error}; connecting again\r"));
                match again(client, id, &tag).await {
                    Ok(back) => terminal = back,
                    Err(error) => {
                        restore(raw);
                        let what = format!("cannot come back to terminal {tag} of sandbox {id}");
                        return Err(error).context(what);
                    }
                }
            }
        }
    }
}

/// Restores the user's terminal while the program of the other one goes on.
fn restore(raw: Option<Raw>) {
    if raw.is_some() {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
    }
    drop(raw);
}

/// Connects again to a terminal after the connection was lost.
async fn again(client: &Client, id: SandboxId, tag: &str) -> Result<Terminal> {
    let mut waits = AGAIN.into_iter();
    loop {
        let attempt = async {
            let mut terminal = client.connect_terminal(id, &connection(tag)).await?;
            terminal.next().await.map(|_| terminal)
        };
        match (attempt.await, waits.next()) {
            (Ok(terminal), _) => return Ok(terminal),
            (Err(Error::Api { status: 503, .. } | Error::Lost(_) | Error::Connect { .. }), Some(wait)) => {
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
}

/// What the user types, and changes of the size.
struct Keys {
    typed: tokio::sync::mpsc::Receiver<Vec<u8>>,
    escape: Escape,
    resized: tokio::signal::unix::Signal,
    ended: bool,
}

impl Keys {
    fn new() -> Result<Self> {
        let resized = signal(SignalKind::window_change()).context("cannot listen for changes of the size")?;
        // In a script there is no user who could leave.
        let escape = if stdin::is_terminal() { Escape::watching() } else { Escape::none() };
        Ok(Self { typed: stdin::read(), escape, resized, ended: false })
    }
}

/// Passes through until the terminal is left. A write that waits for the program does not hold up its output.
async fn follow(terminal: &mut Terminal, keys: &mut Keys) -> Result<Left> {
    let input = terminal.input();
    let (given, mut taken) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    let writing = async {
        while let Some(bytes) = taken.recv().await {
            input.write(&bytes).await?;
        }
        std::future::pending::<Result<(), Error>>().await
    };
    tokio::select! {
        left = show(terminal) => left,
        // That the connection is lost is told by the reader.
        error = writing => Ok(error.map_or_else(Left::Lost, |()| Left::Detached)),
        left = listen(keys, &input, given) => left,
    }
}

/// Shows the output, until the program ends or the connection is lost.
async fn show(terminal: &mut Terminal) -> Result<Left> {
    loop {
        match terminal.next().await {
            Ok(Some(TerminalEvent::Output(bytes))) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("cannot show the output")?;
            }
            Ok(Some(TerminalEvent::Lost(bytes))) => {
                note(&format!("\r\nwrenn: {bytes} bytes of output are missing here\r"));
            }
            Ok(Some(TerminalEvent::Exit { timed_out: true, .. })) => return Ok(Left::Ended(TIMED_OUT)),
            Ok(Some(TerminalEvent::Exit { exit_code, out_of_memory, killed, .. })) => {
                if out_of_memory {
                    let what = killed.map_or_else(
                        || "a process of the terminal".to_owned(),
                        |killed| format!("{} (process {})", killed.command, killed.pid),
                    );
                    note(&format!("\r\nwrenn: {what} was killed: the sandbox is out of memory\r"));
                }
                return Ok(Left::Ended(u8::try_from(exit_code).unwrap_or(u8::MAX)));
            }
            Ok(Some(_)) => {}
            Ok(None) => bail!("the terminal's stream ended without its exit status"),
            Err(error @ (Error::Lost(_) | Error::Api { status: 503, .. })) => return Ok(Left::Lost(error)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Passes on what the user types, until the user leaves.
async fn listen(
    keys: &mut Keys,
    input: &TerminalInput,
    given: tokio::sync::mpsc::Sender<Vec<u8>>,
) -> Result<Left> {
    loop {
        tokio::select! {
            typed = keys.typed.recv(), if !keys.ended => {
                let Some(typed) = typed else {
                    keys.ended = true;
                    let _ = given.send(CTRL_D.to_vec()).await;
                    continue;
                };
                let Typed { keys, leave } = keys.escape.filter(&typed);
                if !keys.is_empty() {
                    let _ = given.send(keys).await;
                }
                if leave {
                    return Ok(Left::Detached);
                }
            }
            _ = keys.resized.recv() => {
                if let Some(size) = raw::size()
                    && let Err(error) = input.resize(size).await
                {
                    return Ok(Left::Lost(error));
                }
            }
        }
    }
}
