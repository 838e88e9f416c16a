// SPDX-License-Identifier: Apache-2.0
//! Leases of transitional statuses: whoever works on a row renews its lease, so that nobody else does.

use std::time::Duration;

use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    db::{
        sandboxes::{self, Known},
        snapshots,
    },
    state::App,
};

/// Number of renewals in the time of a lease, so that one may be late.
const RENEWALS: u32 = 3;

/// Lease that is renewed until this is dropped.
pub(crate) struct Lease(JoinHandle<()>);

impl Lease {
    /// Keeps the lease of this sandbox, as long as its row is unchanged.
    pub(crate) fn of_sandbox(app: &App, row: Known) -> Self {
        let (db, lease) = (app.db.clone(), app.limits.lease);
        Self::keep(lease, move || {
            let (db, row) = (db.clone(), row.clone());
            async move { sandboxes::renew(&db, &row, lease).await }
        })
    }

    /// Keeps the lease of this snapshot, as long as it is being made.
    pub(crate) fn of_snapshot(app: &App, id: Uuid) -> Self {
        let (db, lease) = (app.db.clone(), app.limits.lease);
        Self::keep(lease, move || {
            let db = db.clone();
            async move { snapshots::renew(&db, id, lease).await }
        })
    }

    /// Keeps a lease until `renew` says that there is none any more.
    fn keep<F, R>(lease: Duration, renew: R) -> Self
    where
        R: Fn() -> F + Send + 'static,
        F: Future<Output = sqlx::Result<bool>> + Send + 'static,
    {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / RENEWALS).await;
                if matches!(renew().await, Ok(false)) {
                    return;
                }
            }
        }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.abort();
    }
}
