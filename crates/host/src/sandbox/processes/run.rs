// SPDX-License-Identifier: Apache-2.0
//! Commands that are run to their end, and the beginning of their outputs, as far as there is memory for it.

use std::time::Duration;

use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::Victim;

use super::{
    Command,
    stream::{Event, begin},
};
use crate::{
    error::AgentError,
    memory::{COMMAND, FIRST, Held},
    sandbox::guest::Guest,
};

/// Result of a finished command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// Exit status; 128 + N if signal N killed it.
    pub(crate) exit_code: i32,
    /// Whether it was killed by its timeout.
    pub(crate) timed_out: bool,
    /// Number of discarded bytes of both outputs.
    pub(crate) lost_bytes: u64,
    /// Whether the kernel killed it or a descendant for want of memory.
    pub(crate) out_of_memory: bool,
    /// Which one, if that is known.
    pub(crate) victim: Option<Victim>,
    /// Memory reserved for the outputs until they are sent.
    pub(crate) memory: Held,
}

/// Buffered start of both outputs of a command, up to the first loss.
struct Kept<'a> {
    guest: &'a Guest,
    memory: Held,
    /// Number of bytes already reserved but unused.
    granted: usize,
    lost: u64,
}

/// Buffered start of one output.
struct Beginning {
    bytes: Vec<u8>,
    /// Number of bytes up to the limit.
    left: usize,
}

impl Kept<'_> {
    /// Buffers a piece as far as memory can be reserved.
    fn take(&mut self, output: &mut Beginning, piece: &[u8]) {
        let wanted = piece.len().min(output.left);
        let more = wanted.saturating_sub(self.granted);
        let kept = if more == 0 || self.guest.share.grow(&mut self.memory, more) {
            self.granted = (self.granted + more) - wanted;
            wanted
        } else {
            0
        };
        output.bytes.extend_from_slice(&piece[..kept]);
        // Nothing is buffered after a loss: the buffer is the start of the output.
        output.left = if kept == piece.len() { output.left - kept } else { 0 };
        self.lost = self.lost.saturating_add((piece.len() - kept) as u64);
    }
}

/// Runs a command to its end; buffers at most `max` bytes of each output, and for all commands together as
/// much as memory allows.
pub(crate) async fn run(
    guest: &Guest,
    command: Command,
    limit: Duration,
    max: usize,
) -> Result<Finished, AgentError> {
    let reserved = guest.share.memory().reserve(COMMAND)?;
    let mut running = begin(guest, &guest.processes, command, Some(limit), reserved).await?;
    let mut kept = Kept { guest, memory: running.memory, granted: FIRST, lost: 0 };
    let [mut stdout, mut stderr] = [(); 2].map(|()| Beginning { bytes: Vec::new(), left: max });
    while let Some(event) = running.events.recv().await {
        match event {
            Event::Stdout(piece) => kept.take(&mut stdout, &piece),
            Event::Stderr(piece) => kept.take(&mut stderr, &piece),
            Event::Lost(bytes) => {
                kept.lost = kept.lost.saturating_add(bytes);
                (stdout.left, stderr.left) = (0, 0);
            }
            Event::End(end) => {
                return Ok(Finished {
                    stdout: stdout.bytes,
                    stderr: stderr.bytes,
                    exit_code: end.exit_code,
                    timed_out: end.timed_out,
                    lost_bytes: kept.lost.max(end.lost_bytes),
                    out_of_memory: end.out_of_memory,
                    victim: end.victim,
                    memory: kept.memory,
                });
            }
            // It has no terminal.
            Event::Screen(_) | Event::Resized(_) => {}
            Event::Broken(error) => return Err(error),
        }
    }
    Err(AgentError::new(ErrorCode::AgentError, "the command's end was not reported; it may still have run"))
}
