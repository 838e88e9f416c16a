// SPDX-License-Identifier: Apache-2.0
//! Activity of sandboxes, which puts off their pause. docs/lifecycle.md says what counts.

use std::time::Duration;

use tokio::task::JoinHandle;
use uuid::Uuid;
use wrenn_api::{SandboxId, SandboxStatus};

use crate::{
    db::sandboxes::{self, Row},
    error::Fault,
    state::App,
};

/// Maximum interval between two notes of the same activity; shorter for short timeouts.
const NOTE: Duration = Duration::from_secs(30);
/// Number of notes in the time of a timeout, so that one may be late.
const NOTES: u32 = 3;

/// Activity that lasts until this is dropped.
pub(super) struct Active {
    app: App,
    team: Uuid,
    id: Uuid,
    noting: JoinHandle<()>,
}

/// Begin of an activity.
pub(super) enum Begun {
    /// The sandbox will not be paused for being idle before the activity ends; without a timeout it never is.
    Active(Option<Active>),
    /// The sandbox does not run any more.
    TooLate,
}

impl Active {
    /// Begins an activity of a sandbox that was just running, and notes it. If the host of the sandbox was silent, it is
    /// noted when the sandbox is known to run.
    pub(super) async fn begin(app: &App, row: &Row) -> Result<Begun, Fault> {
        let timeout = u64::try_from(row.timeout_sec).unwrap_or_default();
        if timeout == 0 {
            return Ok(Begun::Active(None));
        }
        let (team, id) = (row.team_id, row.id);
        if row.status() == SandboxStatus::Running && !sandboxes::touch(&app.db, team, id).await? {
            return Ok(Begun::TooLate);
        }
        let interval = (Duration::from_secs(timeout) / NOTES).min(NOTE);
        let noted = app.clone();
        let noting = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                note(&noted, team, id).await;
            }
        });
        Ok(Begun::Active(Some(Self { app: app.clone(), team, id, noting })))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.noting.abort();
        let (app, team, id) = (self.app.clone(), self.team, self.id);
        tokio::spawn(async move { note(&app, team, id).await });
    }
}

/// Notes that a sandbox is in use, if it runs.
async fn note(app: &App, team: Uuid, id: Uuid) {
    if let Err(error) = sandboxes::touch(&app.db, team, id).await {
        tracing::warn!(sandbox_id = %SandboxId::from(id), %error, "an activity was not noted");
    }
}
