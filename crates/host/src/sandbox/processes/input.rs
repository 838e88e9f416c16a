// SPDX-License-Identifier: Apache-2.0
//! Input of a process: pieces are written one after another, as fast as the process takes them.

use bytes::Bytes;
use connectrpc::{ConnectError, ErrorCode as Wire};
use tokio::sync::mpsc;
use tracing::Instrument as _;
use wrenn_rpc::process::{__buffa::oneof::process_input, CloseStdinRequest, ProcessInput, SendInputRequest};

use super::{Selector, refused};
use crate::{
    error::AgentError,
    sandbox::guest::{Guest, Processes},
};

/// Number of pieces that wait for the process.
const PENDING: usize = 8;

/// Piece of input, or its end.
type Piece = Option<Bytes>;

/// Writer of a process's input.
#[derive(Debug)]
pub(crate) struct Input {
    pieces: mpsc::Sender<Piece>,
}

/// Says why a process takes no more input.
pub(crate) type Closed = mpsc::Receiver<String>;

impl Input {
    /// Creates a writer to a process; its input stays open until it is closed.
    pub(super) fn new(guest: &Guest, processes: Processes, pid: u32) -> (Self, Closed) {
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
                    written = pass_on(&guest, &processes, pid, piece) => written,
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
        let _ = self.pieces.send(Some(piece)).await;
    }

    /// Closes the input after what was written.
    pub(crate) async fn close(&self) {
        let _ = self.pieces.send(None).await;
    }
}

async fn pass_on(guest: &Guest, processes: &Processes, pid: u32, piece: Piece) -> Result<(), AgentError> {
    let process = Selector::Pid(pid).message().into();
    let sent = match piece {
        Some(bytes) => {
            let input =
                ProcessInput { input: Some(process_input::Input::Stdin(bytes.into())), ..Default::default() };
            let request = SendInputRequest { process, input: input.into(), ..Default::default() };
            processes.send_input_with_options(request, guest.options("")).await.map(drop)
        }
        None => {
            let request = CloseStdinRequest { process, ..Default::default() };
            processes.close_stdin_with_options(request, guest.options("")).await.map(drop)
        }
    };
    sent.map_err(|error| why(&error))
}

/// Why a process takes no input: what envd says of it, or that envd does not answer.
fn why(error: &ConnectError) -> AgentError {
    use wrenn_api::ErrorCode;
    match (error.code, error.message.as_deref()) {
        (Wire::FailedPrecondition, Some(text)) => {
            AgentError::new(ErrorCode::InvalidState, crate::sandbox::guest::shorten(text))
        }
        _ => refused(error),
    }
}
