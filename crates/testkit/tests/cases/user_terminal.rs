// SPDX-License-Identifier: Apache-2.0
//! The user's own terminal, on which `wrenn` shows that of a sandbox: its modes, its size, its keys, and how it is left.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};
use wrenn_testkit::{Stack, processes, wait_until};

/// Time limit for what a guest shows.
const SHOWN: Duration = Duration::from_secs(60);

/// A terminal of a user, in which a command of `wrenn` runs.
pub(crate) struct UserTerminal {
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    own: OwnedFd,
    before: Termios,
    /// Shell that runs the command. It stays, because the kernel resets a terminal when its session ends.
    shell: Child,
}

/// Runs a command, says its exit status, and stays.
const SHELL: &str = r#""$0" "$@"; echo "ended with $?."; exec sleep 1000"#;

impl UserTerminal {
    fn run(stack: &Stack, args: &[&str]) -> Result<Self> {
        Self::of(&stack.command(args)?)
    }

    /// Runs a command of `wrenn` in a terminal.
    pub(crate) fn of(wrenn: &Command) -> Result<Self> {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keys)?;
        unlockpt(&keys)?;
        let name = ptsname(&keys, Vec::new())?;
        let own = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetwinsize(&own, size(100, 30))?;
        let before = tcgetattr(&own)?;
        // The terminal is that of its session, so that it is told of changes of the size.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "sh", "-c", SHELL]).arg(wrenn.get_program()).args(wrenn.get_args());
        for (name, value) in wrenn.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(own.try_clone()?).stdout(own.try_clone()?).stderr(own.try_clone()?);
        let shell = command.spawn().context("setsid")?;
        let keys = File::from(keys);
        let (shown, mut from) = (Arc::new(Mutex::new(Vec::new())), keys.try_clone()?);
        let sink = shown.clone();
        // It ends when the terminal is closed.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut piece) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..read]);
            }
        });
        Ok(Self { keys, shown, own, before, shell })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Types keys; Return is `\r`.
    pub(crate) fn type_keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// Waits until the terminal shows a text.
    pub(crate) async fn shows(&self, text: &str) -> Result<()> {
        let shown = wait_until(text, SHOWN, async || self.text().contains(text).then_some(())).await;
        shown.with_context(|| format!("it shows {:?}", self.text()))
    }

    /// Waits until the terminal does not show what is typed.
    pub(crate) async fn hides_keys(&self) -> Result<()> {
        let hides = async || {
            let modes = tcgetattr(&self.own).ok()?.local_modes;
            (!modes.contains(LocalModes::ECHO)).then_some(())
        };
        let hidden = wait_until("what is typed is not shown", SHOWN, hides).await;
        hidden.with_context(|| format!("it shows {:?}", self.text()))
    }

    /// Tells the command to end.
    fn terminate(&self) -> Result<()> {
        let shell = Pid::from_child(&self.shell).as_raw_pid();
        let command = processes().into_iter().find(|process| process.parent == shell);
        Ok(kill_process(command.context("no command runs")?.pid, Signal::TERM)?)
    }

    /// Waits for the end of the command with this status, after which the terminal must be as it was.
    pub(crate) async fn ends(self, status: u8) -> Result<String> {
        self.shows(&format!("ended with {status}.")).await?;
        let now = tcgetattr(&self.own)?;
        let modes = |of: &Termios| (of.local_modes, of.input_modes, of.output_modes, of.control_modes);
        ensure!(modes(&now) == modes(&self.before), "{now:?} and not {:?}", self.before);
        Ok(self.text())
    }
}

impl Drop for UserTerminal {
    fn drop(&mut self) {
        let _ = self.shell.kill().and_then(|()| self.shell.wait());
    }
}

fn size(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

/// It is raw while a command runs in it, follows the user's size, passes Ctrl-C to the program, and is as it was afterwards.
pub(crate) async fn it_follows_and_is_as_it_was(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let mut terminal = UserTerminal::run(&stack, &["sandbox", "exec", "-it", "--tag", "own", &id, "bash"])?;
    terminal.type_keys("stty size; echo begun-$((1 + 1))\r")?;
    terminal.shows("begun-2").await?;
    ensure!(terminal.text().contains("30 100"), "another size: {:?}", terminal.text());
    let modes = tcgetattr(&terminal.own)?.local_modes;
    ensure!(!modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
    tcsetwinsize(&terminal.own, size(130, 40))?;
    terminal
        .type_keys("until [ \"$(stty size)\" = '40 130' ]; do sleep 0.1; done; echo larger-$((1 + 1))\r")?;
    terminal.shows("larger-2").await?;
    terminal.type_keys("echo sleeps-$((1 + 1)); sleep 1000\r")?;
    terminal.shows("sleeps-2").await?;
    terminal.type_keys("\x03")?;
    terminal.type_keys("echo status-$?\r")?;
    terminal.shows("status-130").await?;
    terminal.type_keys("X=kept; echo set-$((1 + 1))\r")?;
    terminal.shows("set-2").await?;
    // Left as in ssh, come back to, told to end, and come back to once more.
    terminal.type_keys("\r~.")?;
    let text = terminal.ends(0).await?;
    ensure!(text.contains("wrenn sandbox attach"), "{text:?}");
    let terminal = UserTerminal::run(&stack, &["sandbox", "attach", &id, "own"])?;
    terminal.shows("set-2").await?;
    terminal.terminate()?;
    terminal.ends(143).await?;
    let mut terminal = UserTerminal::run(&stack, &["sandbox", "attach", &id, "own"])?;
    terminal.shows("set-2").await?;
    terminal.type_keys("echo $X-again; exit 9\r")?;
    let text = terminal.ends(9).await?;
    ensure!(text.contains("kept-again"), "{text:?}");
    // A command that cannot be leaves the terminal alone.
    let terminal = UserTerminal::run(&stack, &["sandbox", "attach", &id, "no-such"])?;
    let text = terminal.ends(125).await?;
    ensure!(text.contains("no-such"), "{text:?}");
    stack.give_back(id);
    Ok(())
}

/// `top` draws again and again on a screen of its own, and the terminal is as it was afterwards.
pub(crate) async fn what_sandboxes_use_is_drawn_until_it_is_left(stack: Arc<Stack>) -> Result<()> {
    for key in ["q", "\x03"] {
        let mut terminal = UserTerminal::run(&stack, &["top", "--sort", "memory"])?;
        let drawn = async || (terminal.text().matches("q ends").count() > 1).then_some(());
        wait_until("two drawings", SHOWN, drawn).await.with_context(|| terminal.text())?;
        terminal.type_keys(key)?;
        let text = terminal.ends(0).await?;
        let parts = ["\x1b[?1049h", "STATUS", "\x1b[?1049l"];
        ensure!(parts.iter().all(|part| text.contains(part)), "{text:?}");
    }
    Ok(())
}

/// Waits until `top` has drawn what is right, and leaves it.
pub(super) async fn top_draws(stack: &Stack, is_right: impl Fn(&str) -> bool) -> Result<()> {
    let mut terminal = UserTerminal::run(stack, &["top"])?;
    let drawn = async || {
        let text = terminal.text();
        // The last drawing may lack its end.
        let whole = text.rsplit("\x1b[H").nth(1)?;
        is_right(whole).then_some(())
    };
    wait_until("a drawing that is right", SHOWN, drawn).await.with_context(|| terminal.text())?;
    terminal.type_keys("q")?;
    terminal.ends(0).await.map(drop)
}

/// A terminal is connected again by itself after control plane and agent were killed, and its shell goes on.
pub(crate) async fn it_comes_back_after_a_restart(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let mut terminal = UserTerminal::run(&stack, &["connect", &id])?;
    terminal.type_keys("X=kept; echo set-$((1 + 1))\r")?;
    terminal.shows("set-2").await?;
    for (number, part) in ["server", "agent"].into_iter().enumerate() {
        stack.kill_and_wait(part).await?;
        let told = async || (terminal.text().matches("connecting again").count() > number).then_some(());
        wait_until("the loss to be told", SHOWN, told).await.context(part)?;
        stack.wait_healthy().await?;
        terminal.type_keys(&format!("echo after-{part}-$((1 + 1))\r"))?;
        terminal.shows(&format!("after-{part}-2")).await?;
    }
    terminal.type_keys("echo $X-again; exit 3\r")?;
    let text = terminal.ends(3).await?;
    ensure!(text.contains("kept-again"), "{text:?}");
    stack.give_back(id);
    Ok(())
}
