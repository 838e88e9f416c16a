// SPDX-License-Identifier: Apache-2.0
//! Leases of transitional statuses: whoever works on a sandbox renews its lease, so that nobody else does.

use tokio::task::JoinHandle;

use crate::{
    db::sandboxes::{self, Known},
    state::App,
};

/// Number of renewals in the time of a lease, so that one may be late.
const RENEWALS: u32 = 3;

/// Lease that is renewed until this is dropped.
pub(super) struct Lease(JoinHandle<()>);

impl Lease {
    /// Keeps the lease of this row, as long as the row is unchanged.
    pub(super) fn keep(app: &App, row: Known) -> Self {
        let app = app.clone();
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(app.limits.lease / RENEWALS).await;
                if matches!(sandboxes::renew(&app.db, &row, app.limits.lease).await, Ok(false)) {
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
