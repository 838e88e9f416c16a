// SPDX-License-Identifier: Apache-2.0
//! Activity of sandboxes, which puts off their pause. docs/lifecycle.md says what counts.

use std::time::Duration;

use tokio::task::JoinHandle;
use uuid::Uuid;
use wrenn_api::SandboxId;

use crate::{
    db::sandboxes::{self, Row},
    state::App,
};

/// Maximum interval between two notes of the same activity; shorter for short timeouts.
const NOTE: Duration = Duration::from_secs(30);
/// Number of notes in the time of a timeout, so that one may be late.
const NOTES: u32 = 3;

/// Activity that lasts until this is dropped.
pub(super) struct Active {
    app: App,
    id: Uuid,
    noting: JoinHandle<()>,
}

impl Active {
    /// Begins an activity of a running sandbox; `None` if it has no timeout.
    pub(super) fn begin(app: &App, row: &Row) -> Option<Self> {
        let timeout = u64::try_from(row.timeout_sec).ok().filter(|seconds| *seconds > 0)?;
        let interval = (Duration::from_secs(timeout) / NOTES).min(NOTE);
        let (noted, id) = (app.clone(), row.id);
        let noting = tokio::spawn(async move {
            loop {
                note(&noted, id).await;
                tokio::time::sleep(interval).await;
            }
        });
        Some(Self { app: app.clone(), id: row.id, noting })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.noting.abort();
        let (app, id) = (self.app.clone(), self.id);
        tokio::spawn(async move { note(&app, id).await });
    }
}

/// Notes that a sandbox is in use.
async fn note(app: &App, id: Uuid) {
    if let Err(error) = sandboxes::touch(&app.db, id).await {
        tracing::warn!(sandbox_id = %SandboxId::from(id), %error, "an activity was not noted");
    }
}
