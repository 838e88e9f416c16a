// SPDX-License-Identifier: Apache-2.0
//! Names of those who change something, as they are at the time of the change.

use sqlx::PgConnection;
use wrenn_api::Caused;

use crate::{
    by::{By, Who},
    caller::Principal,
};

/// Describes who changes something with the name that they have now, and why.
pub(crate) async fn caused(tx: &mut PgConnection, by: By) -> sqlx::Result<Caused> {
    let name = name(tx, by.who).await?;
    Ok(by.named(name))
}

async fn name(tx: &mut PgConnection, who: Who) -> sqlx::Result<Option<String>> {
    let Who::Principal(principal) = who else { return Ok(None) };
    match principal {
        Principal::Key(id) => {
            sqlx::query_scalar!("SELECT name FROM api_keys WHERE id = $1", id.uuid()).fetch_optional(tx).await
        }
        Principal::User { user, .. } => {
            sqlx::query_scalar!("SELECT name FROM users WHERE id = $1", user.uuid()).fetch_optional(tx).await
        }
        Principal::SignedUrl(_) | Principal::Extension { .. } => Ok(None),
    }
}
