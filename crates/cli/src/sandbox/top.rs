// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox top`: what sandboxes use, on a screen that is drawn again every second.

use std::{
    cmp::Reverse,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use wrenn_api::TerminalSize;
use wrenn_client::Client;

use super::stats::{self, Row};
use crate::{
    output::Format,
    signals::{Stop, exit_status},
    stdin,
    terminal::{self, Raw},
};

/// Text after the help.
pub(super) const EXAMPLES: &str = "\
q or Ctrl-C ends it. Without a terminal, and with --json, it prints what sandboxes use once.";

/// Interval between drawings.
const PERIOD: Duration = Duration::from_secs(1);
/// Enters the other screen of the terminal, and leaves it.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Goes to the first place, and clears what is left of a line and of the screen.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K\r\n";
const REST_OF_SCREEN: &str = "\x1b[J";
/// Keys that end it: q, Q, Ctrl-C and Ctrl-D.
const KEYS: &[u8] = b"qQ\x03\x04";

/// Arguments of `wrenn sandbox top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What decides the order; those that use most come first
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = Sort::Cpu)]
    sort: Sort,
}

/// What decides the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    Cpu,
    Memory,
    Disk,
    Name,
}

/// Runs `wrenn sandbox top`.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    if format == Format::Json || !stdin::is_terminal() || !io::stdout().is_terminal() {
        let rows = sorted(stats::all(client).await?, args.sort);
        format.print(&rows, || stats::table(&rows))?;
        return Ok(0);
    }
    let mut stop = Stop::new()?;
    let _screen = Screen::enter()?;
    tokio::select! {
        drawn = redraw(client, args.sort) => drawn.map(|()| 0),
        () = left(stdin::read()) => Ok(0),
        name = stop.received() => Ok(exit_status(name)),
    }
}

/// Draws until it fails.
async fn redraw(client: &Client, sort: Sort) -> Result<()> {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let rows = sorted(stats::all(client).await?, sort);
        write(&frame(&rows, terminal::size()))?;
    }
}

/// Waits until the user leaves.
async fn left(mut keys: mpsc::Receiver<Vec<u8>>) {
    while let Some(typed) = keys.recv().await {
        if typed.iter().any(|key| KEYS.contains(key)) {
            return;
        }
    }
}

fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to the terminal")
}

/// The other screen of the terminal, in raw mode, until this is dropped.
struct Screen {
    _raw: Option<Raw>,
}

impl Screen {
    fn enter() -> Result<Self> {
        let screen = Self { _raw: Raw::enter()? };
        write(ENTER)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = write(LEAVE);
    }
}

/// Returns what is written to show these sandboxes, as many as there is room for.
fn frame(rows: &[Row], size: TerminalSize) -> String {
    let title = format!("{} sandboxes; q ends", rows.len());
    let table = stats::table(rows);
    // The line after the last one must not move the others.
    let room = (size.rows as usize).saturating_sub(1);
    let lines = [title.as_str(), ""].into_iter().chain(table.lines()).take(room);
    let fitted = |line: &str| -> String {
        line.chars().take(size.cols as usize).chain(REST_OF_LINE.chars()).collect()
    };
    let lines: Vec<String> = lines.map(fitted).collect();
    [HOME, &lines.concat(), REST_OF_SCREEN].concat()
}

/// Sorts sandboxes. Those with equal figures stay in their order.
fn sorted(mut rows: Vec<Row>, by: Sort) -> Vec<Row> {
    let cpu = |row: &Row| row.now().map_or(0.0, |point| point.cpu_pct);
    match by {
        Sort::Cpu => rows.sort_by(|one, other| cpu(other).total_cmp(&cpu(one))),
        Sort::Memory => rows.sort_by_key(|row| Reverse(row.now().map(|point| point.mem_bytes))),
        Sort::Disk => rows.sort_by_key(|row| Reverse(row.latest.map(|point| point.disk_bytes))),
        Sort::Name => rows.sort_by_cached_key(|row| (row.name.is_none(), row.name.clone())),
    }
    rows
}

#[cfg(test)]
mod tests {
    use wrenn_api::SandboxStatus::{Paused, Running};

    use super::{super::stats::tests::used, *};

    fn names(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.name.as_deref().unwrap_or("-")).collect()
    }

    #[test]
    fn the_order_is_that_of_the_column() {
        let unnamed = Row { name: None, ..used("", Running, 1.0, 2) };
        let rows = vec![
            unnamed,
            used("b", Running, 50.0, 1),
            used("a", Paused, 99.0, 9),
            used("c", Running, 0.5, 4),
        ];
        for (by, expected) in [
            (Sort::Cpu, ["b", "-", "c", "a"]),
            (Sort::Memory, ["c", "-", "b", "a"]),
            (Sort::Disk, ["a", "c", "-", "b"]),
            (Sort::Name, ["a", "b", "c", "-"]),
        ] {
            assert_eq!(names(&sorted(rows.clone(), by)), expected, "{by:?}");
        }
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let rows: Vec<_> = (0..50).map(|number| used(&format!("s{number}"), Running, 1.0, 1)).collect();
        let drawn = frame(&rows, TerminalSize { cols: 40, rows: 10 });
        let text = drawn.strip_prefix(HOME).and_then(|rest| rest.strip_suffix(REST_OF_SCREEN));
        let lines: Vec<_> = text.unwrap_or_default().split_terminator(REST_OF_LINE).collect();
        assert_eq!(lines.len(), 9, "{drawn:?}");
        assert_eq!(lines[0], "50 sandboxes; q ends");
        assert!(lines[2].starts_with("ID ") && lines[3].contains(" s0 "), "{drawn:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{drawn:?}");
        assert_eq!(frame(&[], TerminalSize { cols: 0, rows: 0 }), [HOME, REST_OF_SCREEN].concat());
    }
}
