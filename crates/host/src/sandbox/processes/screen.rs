// SPDX-License-Identifier: Apache-2.0
//! Terminals of processes: what they show, and their size.

use std::time::Duration;

use wrenn_rpc::{
    host::v1::{ReadScreenResponse, TerminalSize},
    process::{self, ReadScreenRequest, UpdateRequest},
};

use super::{Selector, Size, why};
use crate::{
    error::AgentError,
    sandbox::guest::{Guest, Processes},
};

/// Time limit for a screen, and for a new size.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of a screen with its scrollback in bytes.
const SCREEN_MAX: usize = 4 << 20;

/// Reads what the terminal of a process shows.
pub(crate) async fn screen(guest: &Guest, process: &Selector) -> Result<ReadScreenResponse, AgentError> {
    let options = guest.options("").with_max_message_size(SCREEN_MAX).with_timeout(LIMIT);
    let request = ReadScreenRequest { process: process.message().into(), ..Default::default() };
    let read = guest.meanwhile(guest.processes.read_screen_with_options(request, options)).await?;
    let read: process::ReadScreenResponse = read.map_err(|error| why(&error))?.into_owned();
    let size = Size::from(read.size.into_option().unwrap_or_default());
    Ok(ReadScreenResponse {
        size: TerminalSize::from(size).into(),
        rows: read.rows,
        scrollback: read.scrollback,
        cursor_row: read.cursor_row,
        cursor_col: read.cursor_col,
        cursor_visible: read.cursor_visible,
        alternate: read.alternate,
        offset: read.offset,
        ended: read.ended,
        ..Default::default()
    })
}

/// Changes the size of a terminal.
pub(super) async fn resize(
    guest: &Guest,
    processes: &Processes,
    process: &Selector,
    size: Size,
) -> Result<(), AgentError> {
    let process = process.message().into();
    let request = UpdateRequest { process, pty: size.message().into(), ..Default::default() };
    let options = guest.options("").with_timeout(LIMIT);
    let resized = guest.meanwhile(processes.update_with_options(request, options)).await?;
    resized.map(drop).map_err(|error| why(&error))
}

impl From<Size> for TerminalSize {
    fn from(size: Size) -> Self {
        Self { cols: size.cols, rows: size.rows, ..Default::default() }
    }
}
