// SPDX-License-Identifier: Apache-2.0
//! Invitations into teams, by address. One that is over counts as none.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{GivenRole, Invitation, MyInvitation};

/// An invitation.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) email: String,
    role: String,
    inviter: String,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl Row {
    /// Returns the role; one that this version does not know counts as the lowest.
    pub(crate) fn role(&self) -> GivenRole {
        role(&self.role)
    }

    /// Converts it for the API.
    pub(crate) fn public(self) -> Invitation {
        Invitation {
            id: self.id.into(),
            role: self.role(),
            email: self.email,
            inviter: self.inviter,
            created_at: self.created_at,
            expires_at: self.expires_at,
        }
    }
}

fn role(text: &str) -> GivenRole {
    text.parse().unwrap_or(GivenRole::Member)
}

/// An invitation to insert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New<'a> {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    /// In lower case.
    pub(crate) email: &'a str,
    pub(crate) role: GivenRole,
    pub(crate) inviter: &'a str,
}

/// Inserts an invitation, in the place of the one that the address has, whose links do not work any more.
pub(crate) async fn put(tx: &mut PgConnection, new: New<'_>, lifetime: Duration) -> sqlx::Result<Row> {
    sqlx::query!(
        "DELETE FROM one_time_links WHERE kind = 'invitation'
             AND subject IN (SELECT id FROM invitations WHERE team_id = $1 AND email = $2)",
        new.team_id,
        new.email
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM invitations WHERE team_id = $1 AND email = $2", new.team_id, new.email)
        .execute(&mut *tx)
        .await?;
    sqlx::query_as!(
        Row,
        "INSERT INTO invitations (id, team_id, email, role, inviter, expires_at)
         VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))
         RETURNING id, team_id, email, role, inviter, created_at, expires_at",
        new.id,
        new.team_id,
        new.email,
        new.role.as_str(),
        new.inviter,
        lifetime.as_secs_f64()
    )
    .fetch_one(tx)
    .await
}

/// Number of a team's invitations.
pub(crate) async fn count(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM invitations WHERE team_id = $1 AND expires_at > now()"#,
        team
    )
    .fetch_one(tx)
    .await
}

/// Lists invitations of a team that are older than `before`, the newest first.
pub(crate) async fn page(
    db: &PgPool,
    team: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT id, team_id, email, role, inviter, created_at, expires_at FROM invitations
         WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2) AND expires_at > now() ORDER BY id DESC LIMIT $3",
        team,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Finds an invitation.
pub(crate) async fn find(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT id, team_id, email, role, inviter, created_at, expires_at FROM invitations
         WHERE id = $1 AND expires_at > now()",
        id
    )
    .fetch_optional(tx)
    .await
}

/// Lists invitations of an address, in lower case, that are older than `before`, the newest first.
pub(crate) async fn of_address(
    db: &PgPool,
    email: &str,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<MyInvitation>> {
    let rows = sqlx::query!(
        "SELECT i.id, i.team_id, t.name, i.role, i.inviter, i.created_at, i.expires_at
         FROM invitations i JOIN teams t ON t.id = i.team_id
         WHERE i.email = $1 AND ($2::uuid IS NULL OR i.id < $2) AND i.expires_at > now() AND t.deleted_at IS NULL
         ORDER BY i.id DESC LIMIT $3",
        email,
        before,
        limit
    )
    .fetch_all(db)
    .await?;
    let all = rows.into_iter().map(|row| MyInvitation {
        id: row.id.into(),
        team_id: row.team_id.into(),
        team_name: row.name,
        role: role(&row.role),
        inviter: row.inviter,
        created_at: row.created_at,
        expires_at: row.expires_at,
    });
    Ok(all.collect())
}

/// Removes an invitation of a team, with its links; false if there is none.
pub(crate) async fn remove(tx: &mut PgConnection, team: Uuid, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query!(
        "DELETE FROM one_time_links WHERE kind = 'invitation'
             AND subject IN (SELECT id FROM invitations WHERE team_id = $1 AND id = $2)",
        team,
        id
    )
    .execute(&mut *tx)
    .await?;
    let removed =
        sqlx::query!("DELETE FROM invitations WHERE team_id = $1 AND id = $2", team, id).execute(tx).await?;
    Ok(removed.rows_affected() == 1)
}

/// Removes up to `limit` invitations that are over. Returns their number.
pub(crate) async fn forget_over(db: &PgPool, limit: i64) -> sqlx::Result<u64> {
    let removed = sqlx::query!(
        "DELETE FROM invitations WHERE id = ANY (ARRAY(
             SELECT id FROM invitations WHERE expires_at < now() ORDER BY expires_at LIMIT $1))",
        limit
    )
    .execute(db)
    .await?;
    Ok(removed.rows_affected())
}
