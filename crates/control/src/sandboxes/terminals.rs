// SPDX-License-Identifier: Apache-2.0
//! Terminals in sandboxes: checks of a request, and what a terminal shows.

use wrenn_api::{SandboxId, TerminalConnect, TerminalCursor, TerminalScreen, TerminalSize, TerminalStart};
use wrenn_rpc::host::v1::{
    Command, ProcessSelector, ReadScreenRequest, Terminal, TerminalSize as SizeMessage,
};

use super::{command::check, processes::Selector};
use crate::{
    agents::{AgentClient, deadline, within},
    error::Fault,
};

/// Default time in seconds after which a terminal hangs up without clients, input and output: a day.
const IDLE_SECS: u32 = 86_400;

/// Checks the start of a terminal; returns its timeout in milliseconds, 0 for none, too.
pub(super) fn command(start: TerminalStart) -> Result<(Command, u32), Fault> {
    let TerminalStart { cmd, args, envs, cwd, user, tag, cols, rows, timeout_sec, idle_timeout_sec } = start;
    let tag = tag.unwrap_or_else(|| format!("pty-{:08x}", rand::random::<u32>()));
    let size = checked(TerminalSize { cols, rows })?;
    let millis = |seconds: Option<u32>, default| seconds.unwrap_or(default).saturating_mul(1000);
    let size = SizeMessage { cols: size.cols, rows: size.rows, ..Default::default() };
    let idle_timeout_ms = millis(idle_timeout_sec, IDLE_SECS);
    let terminal = Terminal { size: size.into(), idle_timeout_ms, ..Default::default() };
    let command = check(cmd, args, envs, cwd, user, Some(tag), true)?;
    Ok((Command { terminal: terminal.into(), ..command }, millis(timeout_sec, 0)))
}

/// Checks a connection to a terminal; returns the size that it gets, too.
pub(super) fn connection(connect: TerminalConnect) -> Result<(Selector, Option<TerminalSize>), Fault> {
    let TerminalConnect { tag, cols, rows } = connect;
    let size = match (cols, rows) {
        (Some(cols), Some(rows)) => Some(checked(TerminalSize { cols, rows })?),
        (None, None) => None,
        _ => return Err(Fault::invalid("cols and rows: give both, or none to leave the size as it is")),
    };
    Ok((tag.parse()?, size))
}

fn checked(size: TerminalSize) -> Result<TerminalSize, Fault> {
    if size.is_possible() {
        return Ok(size);
    }
    let max = TerminalSize::MAX;
    Err(Fault::invalid(format!("cols is 1 to {}, and rows 1 to {}", max.cols, max.rows)))
}

/// Reads what a terminal shows.
pub(super) async fn screen(
    agent: &AgentClient,
    id: SandboxId,
    process: Selector,
) -> Result<TerminalScreen, Fault> {
    let process = ProcessSelector::from(process);
    let request =
        ReadScreenRequest { sandbox_id: id.to_string(), process: process.into(), ..Default::default() };
    let read = agent.read_screen_with_options(request, within(deadline::EXEC_EXTRA)).await?.into_owned();
    let size = read.size.into_option().unwrap_or_default();
    let cursor = TerminalCursor { row: read.cursor_row, col: read.cursor_col, visible: read.cursor_visible };
    Ok(TerminalScreen {
        cols: size.cols,
        rows: size.rows,
        text: read.rows.join("\n").trim_end_matches('\n').to_owned(),
        scrollback: read.scrollback.join("\n"),
        cursor,
        alternate: read.alternate,
        offset: read.offset,
        ended: read.ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(json: &str) -> Result<(Command, u32), Fault> {
        command(serde_json::from_str(json).expect("a start"))
    }

    #[test]
    fn a_terminal_has_a_name_a_size_and_an_end() {
        let (command, timeout) = start("{}").expect("all defaults");
        assert_eq!((command.cmd.as_str(), timeout), ("/bin/bash", 0));
        assert!(command.tag.starts_with("pty-") && command.tag.len() == 12, "{}", command.tag);
        let terminal = command.terminal.into_option().expect("a terminal");
        let size = terminal.size.into_option().expect("a size");
        assert_eq!((size.cols, size.rows, terminal.idle_timeout_ms), (80, 24, 86_400_000));
        for wrong in
            [r#"{"cols":0}"#, r#"{"rows":501}"#, r#"{"cols":1001}"#, r#"{"tag":"7"}"#, r#"{"cmd":""}"#]
        {
            assert!(start(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_size_has_two_numbers() {
        let connect = |cols, rows| connection(TerminalConnect { tag: "pty-1".into(), cols, rows });
        assert!(matches!(connect(None, None), Ok((Selector::Tag(_), None))));
        assert!(matches!(connect(Some(10), Some(5)), Ok((_, Some(TerminalSize { cols: 10, rows: 5 })))));
        assert!(connect(Some(10), None).is_err() && connect(Some(0), Some(5)).is_err());
    }
}
