// SPDX-License-Identifier: Apache-2.0
//! Archives that clients upload, each in a file as it arrives.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::fs::{File, OpenOptions};
use wrenn_api::ErrorCode;

use crate::{admission::Place, error::Fault};

/// An archive that was received. Its file is removed with this.
#[derive(Debug)]
pub(crate) struct Upload {
    path: PathBuf,
    /// Place among the archives that are stored at a time.
    _place: Place,
}

impl Upload {
    /// Makes a file at a path that nothing has, and opens it to be written.
    pub(crate) async fn begin(path: PathBuf, place: Place) -> Result<(Self, File), Fault> {
        let upload = Self { path, _place: place };
        let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&upload.path).await;
        let file = new.map_err(|error| not_stored(&error))?;
        Ok((upload, file))
    }

    /// The file that it is stored in.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // It takes a while to free a large file. Whatever is left is removed by the next start of a server.
        tokio::task::spawn_blocking(move || std::fs::remove_file(path));
    }
}

/// The fault of an archive that cannot be written to the disk.
pub(crate) fn not_stored(error: &io::Error) -> Fault {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        tracing::warn!(%error, "there is no space for an archive that is uploaded");
        let message = "the control plane has no disk space for the archive: try again later";
        return Fault::new(ErrorCode::InsufficientStorage, message);
    }
    unusable(error)
}

/// The fault of a directory of uploaded files that cannot be used, as when it is not mounted any more.
pub(crate) fn unusable(error: &io::Error) -> Fault {
    tracing::error!(
        %error,
        "the directory of uploaded files (server.build_context_dir) cannot be used: see that it is there, and is the server's own"
    );
    // The kind of the error names no path of the server.
    let message = format!(
        "the control plane cannot use its directory of uploaded files: {}; who runs it must see to server.build_context_dir",
        error.kind()
    );
    Fault::new(ErrorCode::InternalError, message)
}
