// SPDX-License-Identifier: Apache-2.0
//! Files that were uploaded for builds. What reads or writes them runs on threads of its own.

use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use wrenn_api::ErrorCode;
use wrenn_context::{Context, ContextError};

use crate::{
    error::Fault,
    state::App,
    upload::{not_stored, unusable},
};

/// Takes an archive that was uploaded. The upkeep removes it when no build needs it: until its build is recorded, the caller
/// holds a guard of `uploads`.
pub(super) async fn add(app: &App, archive: &Path) -> Result<Context, Fault> {
    let (contexts, archive) = (app.contexts.clone(), PathBuf::from(archive));
    let added = spawn_blocking(move || contexts.add(&archive)).await.map_err(|error| broken(&error))?;
    added.map_err(|error| match error {
        ContextError::Io(cause) => not_stored(&cause),
        ContextError::TooLarge { .. } | ContextError::TooMany { .. } => {
            Fault::new(ErrorCode::TooLarge, error.to_string())
        }
        _ => Fault::invalid(format!("archive: {error}")),
    })
}

/// Returns the files of a build; none have no digest.
pub(super) async fn get(app: &App, digest: Option<&str>) -> Result<Context, Fault> {
    let Some(digest) = digest.map(str::to_owned) else { return Ok(Context::empty()) };
    let contexts = app.contexts.clone();
    let found = spawn_blocking(move || contexts.get(&digest)).await.map_err(|error| broken(&error))?;
    let gone = || {
        let message = "the uploaded files are not in server.build_context_dir of the server that builds: all servers must share \
                       that directory";
        Fault::new(ErrorCode::InternalError, message)
    };
    let found = found.map_err(|error| match error {
        ContextError::Io(cause) => unusable(&cause),
        _ => broken(&error),
    });
    found?.ok_or_else(gone)
}

/// Removes what uploads left that broke off, and returns the digests of all files that are kept.
pub(super) async fn tidy(app: &App) -> Result<Vec<String>, Fault> {
    let contexts = app.contexts.clone();
    let tidying = move || contexts.clean().and_then(|()| contexts.list());
    spawn_blocking(tidying).await.map_err(|error| broken(&error))?.map_err(|error| unusable(&error))
}

/// Removes the files of these digests.
pub(super) async fn remove(app: &App, digests: Vec<String>) -> Result<(), Fault> {
    let contexts = app.contexts.clone();
    let removing = move || digests.iter().try_for_each(|digest| contexts.remove(digest));
    spawn_blocking(removing).await.map_err(|error| broken(&error))?.map_err(|error| unusable(&error))
}

/// The fault of a bug: a thread that failed, or an error that reading or writing cannot have.
fn broken(cause: &dyn std::fmt::Display) -> Fault {
    tracing::error!(%cause, "the files of builds cannot be kept or read");
    Fault::internal()
}
