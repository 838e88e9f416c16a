// SPDX-License-Identifier: Apache-2.0
//! Standard input or terminal input of one process: ordered writes and close.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// Errors of writing input.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("standard input of process {0} is closed; start it with stdin: true")]
    Closed(u32),
    #[error("process {0} stopped reading its input: {1}")]
    Write(u32, io::Error),
    #[error("process {0} ended before it took all of its input")]
    Ended(u32),
}

/// Write end of the input.
pub(super) struct Input {
    pid: u32,
    /// Write end; each writer has a reference, so it is closed after removal here and after the last writer
    /// has finished.
    file: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// Lock of the current writer.
    turn: tokio::sync::Mutex<()>,
    ended: watch::Receiver<bool>,
}

impl Input {
    pub(super) fn new(pid: u32, file: Option<AsyncFd<OwnedFd>>, ended: watch::Receiver<bool>) -> Self {
        Self { pid, file: Mutex::new(file.map(Arc::new)), turn: tokio::sync::Mutex::default(), ended }
    }

    /// Writes all of `data` as fast as the process reads it, or fails if the process exits.
    pub(super) async fn write(&self, data: &[u8]) -> Result<(), InputError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = file.ok_or(InputError::Closed(self.pid))?;
        let mut ended = self.ended.clone();
        tokio::select! {
            written = self.write_all(&file, data) => written.map_err(|cause| InputError::Write(self.pid, cause)),
            _ = ended.wait_for(|ended| *ended) => Err(InputError::Ended(self.pid)),
        }
    }

    async fn write_all(&self, file: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        while !data.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, data).map_err(io::Error::from);
            let written = file.async_io(Interest::WRITABLE, write).await?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Closes the input after pending writes.
    pub(super) fn close(&self) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
