// SPDX-License-Identifier: Apache-2.0
//! Terminals: the same screen after a lost connection and after a pause, input and size, several clients, and how they end.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use avt::Terminal as Model;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time::timeout};
use wrenn_api::{SandboxId, Signal, TerminalConnect, TerminalSize, TerminalStart};
use wrenn_client::{Client, Terminal, TerminalEvent};
use wrenn_testkit::{Stack, wait_until};

use super::support::{delete_wholly, pause, resume, sh};

const COLS: u32 = 60;
const ROWS: u32 = 12;
/// Time limit for what a guest shows.
const SHOWN: Duration = Duration::from_secs(60);

fn client(stack: &Stack) -> Result<Client> {
    Ok(Client::new(&stack.url(), Some(stack.api.key()))?)
}

/// A program in a terminal of [`COLS`] and [`ROWS`].
fn start(tag: &str, script: &str) -> TerminalStart {
    let start = json!({"cmd": "bash", "args": ["-c", script], "tag": tag, "cols": COLS, "rows": ROWS});
    serde_json::from_value(start).unwrap_or_else(|error| panic!("{error}"))
}

fn connect(tag: &str) -> TerminalConnect {
    TerminalConnect { tag: tag.to_owned(), cols: None, rows: None }
}

/// A client's terminal.
struct Viewer {
    terminal: Terminal,
    model: Model,
    bytes: Vec<u8>,
    pid: u32,
}

impl Viewer {
    async fn of(terminal: Terminal) -> Result<Self> {
        let mut terminal = terminal;
        let Some(TerminalEvent::Started(started)) = terminal.next().await? else {
            anyhow::bail!("the first event is another one");
        };
        ensure!((started.cols, started.rows) == (COLS, ROWS), "{started:?}");
        let model = Model::with_scrollback(COLS as usize, ROWS as usize, Some(500)).context("a size")?;
        Ok(Self { terminal, model, bytes: Vec::new(), pid: started.pid })
    }

    fn text(&self) -> String {
        let rows: Vec<String> =
            self.model.screen().visible_lines().map(|line| line.text().trim_end().to_owned()).collect();
        rows.join("\n").trim_end().to_owned()
    }

    /// Reads until the screen is as wanted.
    async fn until(&mut self, what: &str, shown: impl Fn(&Self) -> bool) -> Result<()> {
        let reading = async {
            while !shown(self) {
                match self.terminal.next().await? {
                    Some(TerminalEvent::Output(bytes)) => {
                        self.bytes.extend_from_slice(&bytes);
                        // Whole characters: the guest writes them so, and pieces of the stream keep them.
                        self.model.feed(String::from_utf8_lossy(&bytes).into_owned());
                    }
                    Some(TerminalEvent::Resized(_)) => {}
                    other => anyhow::bail!("{other:?}"),
                }
            }
            Ok(())
        };
        let read = timeout(SHOWN, reading).await;
        read.map_err(|_| anyhow::anyhow!("time is over"))
            .flatten()
            .with_context(|| format!("waiting for {what}; the screen is\n{}", self.text()))
    }

    /// Reads until the screen has this text.
    async fn sees(&mut self, text: &str) -> Result<()> {
        self.until(text, |viewer| viewer.text().contains(text)).await
    }

    /// Reads up to the error that ends the connection.
    async fn told(&mut self) -> Result<wrenn_client::Error> {
        let reading = async {
            loop {
                match self.terminal.next().await {
                    Ok(Some(TerminalEvent::Output(_) | TerminalEvent::Resized(_))) => {}
                    Ok(other) => anyhow::bail!("{other:?} instead of an error"),
                    Err(error) => return Ok(error),
                }
            }
        };
        timeout(SHOWN, reading).await.context("the connection does not end")?
    }

    /// Reads up to the exit of the program.
    async fn exit(&mut self) -> Result<i32> {
        let reading = async {
            loop {
                match self.terminal.next().await?.context("no exit")? {
                    TerminalEvent::Exit { exit_code, .. } => return Ok(exit_code),
                    TerminalEvent::Output(bytes) => self.bytes.extend_from_slice(&bytes),
                    _ => {}
                }
            }
        };
        timeout(SHOWN, reading).await.context("it does not end")?
    }
}

/// Text on the screen, as the API gives it.
async fn screen(stack: &Stack, id: &str, tag: &str) -> Result<Value> {
    Ok(stack.api.get(&format!("/v1/sandboxes/{id}/pty/{tag}/screen")).await?.expect(200)?.json())
}

/// A client that comes back, also after a pause, sees the same screen and the lines above it, and the program is the same. One that
/// is connected during the pause is told of it.
pub(crate) async fn a_client_that_comes_back_sees_the_same_screen(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    // Lines that leave the screen, then an editor's: alternate screen, colours, scroll region, hidden cursor, wide characters.
    let script = r"for i in $(seq 1 40); do printf '\033[3%dmline %d\033[0m\r\n' $((i % 8)) $i; done
        read -rsn1 key
        printf '\033[?1049h\033[2J\033[H\033[1;44m title \033[0m\033[3;5H漢字 é\033[2;10r\033[12;1H\033[7mstatus\033[0m'
        printf '\033[?25l\033[6;7Hdrawn'
        read -rsn1 key
        printf '\033[?1049l\033[rback\r\n'; read -rsn1 key; exit 7";
    let mut first = Viewer::of(client.start_terminal(sandbox, &start("editor", script)).await?).await?;
    // With the end of the last line, which may come later.
    let shown = (30..=40).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
    first.until("all lines", |viewer| viewer.text() == shown).await?;
    let mut second = Viewer::of(client.connect_terminal(sandbox, &connect("editor")).await?).await?;
    second.until("the same lines", |viewer| viewer.text() == shown).await?;
    ensure!(second.pid == first.pid, "process {}, and not {}", second.pid, first.pid);
    let above: Vec<String> = second.model.primary_screen().text();
    ensure!(above.windows(2).any(|two| two == ["line 1", "line 2"]), "{above:?}");
    drop(second);

    first.terminal.input().write(b"x").await?;
    first.sees("drawn").await?;
    let expected = first.model.dump();
    let pid = first.pid;
    drop(first);
    let mut open: Option<Viewer> = None;
    for paused in [false, true] {
        if paused {
            pause(&stack, &id).await?;
            let told = open.take().context("no client")?.told().await?;
            let cause = told.to_string();
            ensure!(
                told.code() == Some("invalid_state") && cause.contains("paused"),
                "the cause is {cause:?}"
            );
            resume(&stack, &id).await?;
        }
        let told = screen(&stack, &id, "editor").await?;
        let text = told["text"].as_str().unwrap_or_default();
        ensure!(text.starts_with(" title\n\n    漢字 é") && text.ends_with("\nstatus"), "{told}");
        ensure!(told["alternate"] == true && told["cursor"]["visible"] == false, "{told}");
        ensure!(
            told["scrollback"].as_str().is_some_and(|lines| lines.starts_with("line 1\nline 2\n")),
            "{told}"
        );
        let mut back = Viewer::of(client.connect_terminal(sandbox, &connect("editor")).await?).await?;
        back.sees("drawn").await?;
        ensure!(back.pid == pid, "another program");
        ensure!(back.model.dump() == expected, "{:?} instead of {expected:?}", back.model.dump());
        open = Some(back);
    }
    drop(open);
    let mut back = Viewer::of(client.connect_terminal(sandbox, &connect(&pid.to_string())).await?).await?;
    back.sees("drawn").await?;
    back.terminal.input().write(b"x").await?;
    back.sees("back").await?;
    ensure!(back.text().contains("line 40"), "{}", back.text());
    back.terminal.input().write(b"x").await?;
    ensure!(back.exit().await? == 7);
    // What it showed last can still be read.
    let last = screen(&stack, &id, "editor").await?;
    ensure!(
        last["ended"] == true && last["text"].as_str().is_some_and(|text| text.starts_with("back")),
        "{last}"
    );
    delete_wholly(&stack, &id).await
}

/// What is pasted arrives whole, characters are never torn, the size reaches the program and all clients, signals too.
pub(crate) async fn input_output_and_size_are_exact(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    let script = "stty raw -echo; echo ready; head -c 1000000 | cksum; stty sane; echo done; sleep 1000";
    let mut viewer = Viewer::of(client.start_terminal(sandbox, &start("paste", script)).await?).await?;
    viewer.sees("ready").await?;
    let pasted: Vec<u8> =
        (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let input = viewer.terminal.input();
    stack.api.write(&id, "/tmp/same", pasted.clone()).await?.expect(204)?;
    let (sent, seen) = tokio::join!(input.write(&pasted), viewer.sees("done"));
    sent.context("pasting")?;
    seen?;
    let sum = sh(&stack, &id, "cksum < /tmp/same").await?;
    ensure!(viewer.text().contains(&sum), "{} instead of {sum}", viewer.text());

    let mut other = Viewer::of(client.connect_terminal(sandbox, &connect("paste")).await?).await?;
    other.terminal.input().resize(TerminalSize { cols: 91, rows: 33 }).await?;
    let resized = async {
        loop {
            match viewer.terminal.next().await? {
                Some(TerminalEvent::Resized(size)) => return anyhow::Ok(size),
                Some(_) => {}
                None => anyhow::bail!("it has ended"),
            }
        }
    };
    ensure!(timeout(SHOWN, resized).await?? == TerminalSize { cols: 91, rows: 33 });
    let tty = sh(&stack, &id, &format!("stty size < /proc/{}/fd/0", viewer.pid)).await?;
    ensure!(tty == "33 91", "{tty}");
    other.terminal.input().signal(Signal::KILL).await?;
    ensure!(viewer.exit().await? == 137 && other.exit().await? == 137);

    // Odd pieces of characters, from a program that has ended when they are read.
    let script =
        "yes '漢é🤣' | head -c 300000 | dd bs=7 status=none > /tmp/out; stty raw; cat /tmp/out; sleep 1";
    let mut viewer = Viewer::of(client.start_terminal(sandbox, &start("text", script)).await?).await?;
    ensure!(viewer.exit().await? == 0);
    let all = "漢é🤣\n".repeat(30_000).into_bytes();
    let text = String::from_utf8_lossy(&viewer.bytes);
    ensure!(
        viewer.bytes == all[..300_000],
        "{} bytes, from {:?}",
        text.len(),
        text.chars().take(20).collect::<String>()
    );
    delete_wholly(&stack, &id).await
}

/// A terminal without clients hangs up after its time; what cannot be is refused; earlier clients are understood.
pub(crate) async fn they_end_and_are_refused(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let (sandbox, client): (SandboxId, _) = (id.parse()?, client(&stack)?);
    let idle = TerminalStart { idle_timeout_sec: Some(1), ..start("idle", "echo here; sleep 1000") };
    let mut viewer = Viewer::of(client.start_terminal(sandbox, &idle).await?).await?;
    viewer.sees("here").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let list = async || {
        anyhow::Ok(stack.api.get(&format!("/v1/sandboxes/{id}/processes")).await?.expect(200)?.json())
    };
    let terminal = |list: &Value| {
        list["processes"].as_array().is_some_and(|all| all.iter().any(|one| one["tag"] == "idle"))
    };
    ensure!(terminal(&list().await?), "it hung up while a client was connected");
    drop(viewer);
    let gone = async || list().await.ok().filter(|list| !terminal(list));
    wait_until("the idle terminal is gone", Duration::from_secs(20), gone).await?;

    for (connect, code) in [(connect("no-such"), "not_found"), (connect("idle"), "")] {
        let mut terminal = client.connect_terminal(sandbox, &connect).await?;
        // One that has ended shows its last screen and its end.
        let first = terminal.next().await;
        let told = first.as_ref().err().and_then(wrenn_client::Error::code).unwrap_or_default();
        ensure!(told == code, "{connect:?}: {first:?}");
    }
    for wrong in
        [json!({"cols": 0}), json!({"rows": 501}), json!({"tag": "12"}), json!({"cmd": "no-such-program"})]
    {
        let start: TerminalStart = serde_json::from_value(wrong.clone())?;
        let refused = client.start_terminal(sandbox, &start).await?.next().await;
        ensure!(refused.is_err(), "{wrong}: {refused:?}");
    }
    let body = json!({"cmd": "sleep", "args": ["1000"], "background": true, "tag": "plain"});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202)?;
    stack
        .api
        .get(&format!("/v1/sandboxes/{id}/pty/plain/screen"))
        .await?
        .expect_error(409, "invalid_state")?;
    let refused = client.connect_terminal(sandbox, &connect("plain")).await?.next().await;
    ensure!(refused.as_ref().is_err_and(|error| error.code() == Some("invalid_state")), "{refused:?}");
    client.signal_process(sandbox, "plain", Signal::KILL).await?;
    stack.give_back(id);
    Ok(())
}

/// `wrenn sandbox exec -t`: keys, the program's exit status, leaving by `~.`, and coming back by `attach`.
pub(crate) async fn the_program_gives_a_terminal(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let mut shell = tokio::process::Command::from(
        stack.command(&["sandbox", "exec", "-it", "--tag", "sh", &id, "bash"])?,
    );
    let mut shell = shell
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut keys = shell.stdin.take().context("keys")?;
    keys.write_all(b"tty; false; echo status $?; X=kept\n").await?;
    let shown = async || {
        screen(&stack, &id, "sh")
            .await
            .ok()
            .filter(|screen| screen["text"].as_str().is_some_and(|text| text.contains("status 1")))
    };
    let told = wait_until("the shell answers", SHOWN, shown).await?;
    ensure!(told["text"].as_str().is_some_and(|text| text.contains("/dev/pts/")), "{told}");
    // As when the window is closed.
    shell.kill().await?;
    let mut attached = tokio::process::Command::from(stack.command(&["sandbox", "attach", &id, "sh"])?);
    let mut attached = attached
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut keys = attached.stdin.take().context("keys")?;
    keys.write_all(b"echo $X again; sleep 1000\n").await?;
    let sleeping = async || sh(&stack, &id, "pgrep -x sleep").await.ok();
    wait_until("a program in the shell", SHOWN, sleeping).await?;
    keys.write_all(b"\x03exit 9\n").await?;
    let output = timeout(SHOWN, attached.wait_with_output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(9),
        "{:?} {text} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(text.contains("status 1") && text.contains("kept again"), "{text}");
    stack.give_back(id);
    Ok(())
}
