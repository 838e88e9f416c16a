// SPDX-License-Identifier: Apache-2.0
//! Audit log: every act that changes something, and every sign-in, with who did it, to what, from where, and with which outcome.
//!
//! Acts by requests are recorded by one layer around the routes. Services and handlers tell it what it cannot see in the request with
//! [`about`](crate::deeds::about) and [`by`](crate::deeds::by); routes of extensions put an [`AuditResource`](crate::AuditResource)
//! into the extensions of their response. What happens without a request is recorded with [`record`].

mod csv;
mod list;
mod writer;

use sqlx::PgExecutor;

use crate::{db::audit, deeds::Deed};

pub(crate) use csv::line as csv_line;
pub use list::{Audit, Export, Recorded};
pub(crate) use writer::run;

/// Records a deed, in the transaction of the change if there is one. A deed is recorded once, however often this is repeated.
pub(crate) async fn record(db: impl PgExecutor<'_>, deed: &Deed) -> sqlx::Result<()> {
    audit::insert(db, deed).await
}
