// SPDX-License-Identifier: Apache-2.0
//! Activity of sandboxes, which puts off their pause. docs/lifecycle.md says what counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

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
    /// Timeout of the sandbox in seconds when it was noted last; 0 for none.
    timeout: Arc<AtomicI32>,
    noting: JoinHandle<()>,
}

/// Begin of an activity.
pub(super) enum Begun {
    /// The sandbox will not be paused for being idle before the activity ends.
    Active(Active),
    /// The sandbox does not run any more.
    TooLate,
}

impl Active {
    /// Begins an activity of a sandbox that was just running, and notes it. If the host of the sandbox was silent, it is
    /// noted when the sandbox is known to run. A sandbox may get another timeout meanwhile.
    pub(super) async fn begin(app: &App, row: &Row) -> Result<Begun, Fault> {
        let (team, id) = (row.team_id, row.id);
        let is_noted = row.timeout_sec > 0 && row.status() == SandboxStatus::Running;
        if is_noted && sandboxes::touch(&app.db, team, id).await?.is_none() {
            return Ok(Begun::TooLate);
        }
        let timeout = Arc::new(AtomicI32::new(row.timeout_sec));
        let (noted, last) = (app.clone(), timeout.clone());
        let noting = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval(last.load(Ordering::Relaxed))).await;
                if let Some(timeout) = note(&noted, team, id).await {
                    last.store(timeout, Ordering::Relaxed);
                }
            }
        });
        Ok(Begun::Active(Self { app: app.clone(), team, id, timeout, noting }))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.noting.abort();
        if self.timeout.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (app, team, id) = (self.app.clone(), self.team, self.id);
        tokio::spawn(async move { note(&app, team, id).await });
    }
}

/// Interval between two notes for a timeout in seconds.
fn interval(timeout: i32) -> Duration {
    match u64::try_from(timeout) {
        Ok(timeout @ 1..) => (Duration::from_secs(timeout) / NOTES).min(NOTE),
        _ => NOTE,
    }
}

/// Notes that a sandbox is in use, and returns its timeout, if it runs.
async fn note(app: &App, team: Uuid, id: Uuid) -> Option<i32> {
    let noted = sandboxes::touch(&app.db, team, id).await;
    noted.unwrap_or_else(|error| {
        tracing::warn!(sandbox_id = %SandboxId::from(id), %error, "an activity was not noted");
        None
    })
}
