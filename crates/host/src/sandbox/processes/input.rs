// SPDX-License-Identifier: Apache-2.0
//! Input of a process: pieces are written one after another, as fast as the process takes them.

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::Instrument as _;
use wrenn_rpc::process::{__buffa::oneof::process_input, CloseStdinRequest, ProcessInput, SendInputRequest};

use super::{Selector, Size, screen::resize, why};
use crate::{
    error::AgentError,
    sandbox::guest::{Guest, Processes},
};

/// Number of pieces that wait for the process.
const PENDING: usize = 8;

/// What is written, in order.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
    /// New size of the terminal.
    Size(Size),
}

/// Writer of a process's input.
#[derive(Debug)]
pub(crate) struct Input {
    pieces: mpsc::Sender<Piece>,
}

/// Says why a process takes no more input.
pub(crate) type Closed = mpsc::Receiver<String>;

impl Input {
    /// Creates a writer to a process, or to its terminal; its input stays open until it is closed.
    pub(super) fn new(guest: &Guest, processes: Processes, pid: u32, terminal: bool) -> (Self, Closed) {
        let (pieces, mut waiting) = mpsc::channel::<Piece>(PENDING);
        let (told, closed) = mpsc::channel(1);
        let guest = guest.clone();
        let writing = async move {
            let mut open = true;
            while let Some(piece) = waiting.recv().await {
                if !open {
                    continue;
                }
                let written = tokio::select! {
                    written = pass_on(&guest, &processes, pid, terminal, piece) => written,
                    // The end of the guest is told by its output.
                    _ = guest.ended() => return,
                };
                if let Err(why) = written {
                    open = false;
                    let _ = told.try_send(why.message);
                }
            }
        };
        tokio::spawn(writing.in_current_span());
        (Self { pieces }, closed)
    }

    /// Writes a piece; waits while too many wait for the process.
    pub(crate) async fn write(&self, piece: Bytes) {
        // Fails if the guest is gone, which its output tells.
        let _ = self.pieces.send(Piece::Bytes(piece)).await;
    }

    /// Closes the input after what was written.
    pub(crate) async fn close(&self) {
        let _ = self.pieces.send(Piece::End).await;
    }

    /// Changes the size of the terminal after what was written.
    pub(crate) async fn resize(&self, size: Size) {
        let _ = self.pieces.send(Piece::Size(size)).await;
    }
}

async fn pass_on(
    guest: &Guest,
    processes: &Processes,
    pid: u32,
    terminal: bool,
    piece: Piece,
) -> Result<(), AgentError> {
    let process = Selector::Pid(pid).message().into();
    let sent = match piece {
        Piece::Size(size) => {
            // A process that has ended meanwhile is told by its end.
            if let Err(error) = resize(guest, processes, &Selector::Pid(pid), size).await {
                tracing::debug!(%error, pid, "a terminal has kept its size");
            }
            return Ok(());
        }
        Piece::Bytes(bytes) => {
            let to = if terminal { process_input::Input::Pty } else { process_input::Input::Stdin };
            let input = ProcessInput { input: Some(to(bytes.into())), ..Default::default() };
            let request = SendInputRequest { process, input: input.into(), ..Default::default() };
            processes.send_input_with_options(request, guest.options("")).await.map(drop)
        }
        Piece::End => {
            let request = CloseStdinRequest { process, ..Default::default() };
            processes.close_stdin_with_options(request, guest.options("")).await.map(drop)
        }
    };
    sent.map_err(|error| why(&error))
}
