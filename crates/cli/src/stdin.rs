// SPDX-License-Identifier: Apache-2.0
//! Standard input of this program, passed on to a command in a sandbox.

use std::{
    io::{self, IsTerminal as _, Read as _},
    thread,
};

use tokio::{sync::mpsc, task::JoinHandle};
use wrenn_client::ProcessInput;

/// Size of a piece in bytes.
const PIECE: usize = 64 << 10;
/// Number of pieces that wait to be sent.
const PENDING: usize = 4;

/// Returns whether a command gets standard input: it does if that is no terminal, as in a pipeline.
pub(crate) fn is_passed_on(interactive: bool, none: bool) -> bool {
    !none && (interactive || !io::stdin().is_terminal())
}

/// Returns whether standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Passes standard input on to a process, up to its end. Aborting the task leaves what was not read.
pub(crate) fn pass_on(input: ProcessInput) -> JoinHandle<()> {
    let mut pieces = read();
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            // Why it failed is told by the output.
            if input.write(&piece).await.is_err() {
                return;
            }
        }
        let _ = input.close().await;
    })
}

/// Reads standard input, piece by piece, in a thread of its own: a read cannot be cancelled, and must not hold up the end of this program.
pub(crate) fn read() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(PENDING);
    let reading = move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE];
            match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(size) => piece.truncate(size),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    crate::output::note(&format!("wrenn: standard input cannot be read: {error}"));
                    return;
                }
            }
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("stdin".to_owned()).spawn(reading) {
        crate::output::note(&format!("wrenn: standard input cannot be read: {error}"));
    }
    pieces
}
