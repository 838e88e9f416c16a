// SPDX-License-Identifier: Apache-2.0
//! Members of teams. Whoever changes them has locked the team first ([`super::teams::lock`]).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{TeamMember, TeamRole};

/// A member.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) user_id: Uuid,
    pub(crate) name: String,
    pub(crate) email: String,
    role: String,
    joined_at: DateTime<Utc>,
}

impl Row {
    /// Returns the role; one that this version does not know counts as the lowest.
    pub(crate) fn role(&self) -> TeamRole {
        self.role.parse().unwrap_or(TeamRole::Member)
    }

    /// Converts it for the API.
    pub(crate) fn public(self) -> TeamMember {
        TeamMember {
            user_id: self.user_id.into(),
            role: self.role(),
            name: self.name,
            email: self.email,
            joined_at: self.joined_at,
        }
    }
}

/// An API key that a member has made.
#[derive(Debug, Clone)]
pub(crate) struct MadeKey {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
}

/// Adds a member.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    team: Uuid,
    user: Uuid,
    role: TeamRole,
) -> sqlx::Result<bool> {
    let added = sqlx::query!(
        "INSERT INTO team_members (team_id, user_id, role) VALUES ($1, $2, $3) ON CONFLICT (team_id, user_id) DO NOTHING",
        team,
        user,
        role.as_str()
    )
    .execute(tx)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// Number of a team's members.
pub(crate) async fn count(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM team_members WHERE team_id = $1"#, team)
        .fetch_one(tx)
        .await
}

/// Lists members of a team after the user `after`, by id.
pub(crate) async fn page(db: &PgPool, team: Uuid, after: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT m.user_id, u.name, u.email, m.role, m.created_at AS joined_at
         FROM team_members m JOIN users u ON u.id = m.user_id
         WHERE m.team_id = $1 AND ($2::uuid IS NULL OR m.user_id > $2) ORDER BY m.user_id LIMIT $3",
        team,
        after,
        limit
    )
    .fetch_all(db)
    .await
}

/// Finds a member of a team.
pub(crate) async fn find(tx: &mut PgConnection, team: Uuid, user: Uuid) -> sqlx::Result<Option<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT m.user_id, u.name, u.email, m.role, m.created_at AS joined_at
         FROM team_members m JOIN users u ON u.id = m.user_id WHERE m.team_id = $1 AND m.user_id = $2",
        team,
        user
    )
    .fetch_optional(tx)
    .await
}

/// Returns addresses of a team's members, at most `limit`.
pub(crate) async fn addresses(tx: &mut PgConnection, team: Uuid, limit: i64) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT u.email FROM team_members m JOIN users u ON u.id = m.user_id
         WHERE m.team_id = $1 AND u.status = 'active' ORDER BY m.user_id LIMIT $2",
        team,
        limit
    )
    .fetch_all(tx)
    .await
}

/// Returns whether a user with this address is a member of the team.
pub(crate) async fn has_address(tx: &mut PgConnection, team: Uuid, email: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM users u JOIN team_members m ON m.user_id = u.id
             WHERE lower(u.email) = lower($2) AND m.team_id = $1) AS "has!""#,
        team,
        email
    )
    .fetch_one(tx)
    .await
}

/// Returns the address of an active user.
pub(crate) async fn address_of(tx: &mut PgConnection, user: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT email FROM users WHERE id = $1 AND status = 'active'", user)
        .fetch_optional(tx)
        .await
}

/// Returns the owner of a team, if it has one.
pub(crate) async fn owner(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!("SELECT user_id FROM team_members WHERE team_id = $1 AND role = 'owner'", team)
        .fetch_optional(tx)
        .await
}

/// Changes the role of a member.
pub(crate) async fn set_role(
    tx: &mut PgConnection,
    team: Uuid,
    user: Uuid,
    role: TeamRole,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE team_members SET role = $3 WHERE team_id = $1 AND user_id = $2",
        team,
        user,
        role.as_str()
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Removes a member, whose sessions for this team act for another team of theirs from then on.
pub(crate) async fn remove(tx: &mut PgConnection, team: Uuid, user: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM team_members WHERE team_id = $1 AND user_id = $2", team, user)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "UPDATE sessions SET team_id = (SELECT m.team_id FROM team_members m JOIN teams t ON t.id = m.team_id
             WHERE m.user_id = $2 AND t.deleted_at IS NULL ORDER BY m.created_at, m.team_id LIMIT 1)
         WHERE user_id = $2 AND team_id = $1",
        team,
        user
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Lists the valid API keys of a team, or of all teams, that a user has made: at most `limit`, those that were used last first.
pub(crate) async fn keys(
    tx: &mut PgConnection,
    team: Option<Uuid>,
    user: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<MadeKey>> {
    sqlx::query_as!(
        MadeKey,
        "SELECT id, name, prefix, last_used_at FROM api_keys
         WHERE created_by = $2 AND ($1::uuid IS NULL OR team_id = $1) AND revoked_at IS NULL
             AND (expires_at IS NULL OR expires_at > now())
         ORDER BY last_used_at DESC NULLS LAST, id DESC LIMIT $3",
        team,
        user,
        limit
    )
    .fetch_all(tx)
    .await
}

/// Leaves the API keys that a user has made to their teams, without what only that user could give them.
pub(crate) async fn release_keys(tx: &mut PgConnection, user: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE api_keys SET created_by = NULL, is_admin = false, scopes = array_remove(scopes, 'team.delete')
         WHERE created_by = $1",
        user
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Bounds the API keys of a team, or of all teams, that a user has made who is a plain member there, to these permissions.
pub(crate) async fn narrow_keys(
    tx: &mut PgConnection,
    team: Option<Uuid>,
    user: Uuid,
    permissions: &[String],
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE api_keys k SET scopes = CASE WHEN k.scopes IS NULL THEN $3::text[]
             ELSE ARRAY(SELECT scope FROM unnest(k.scopes) scope WHERE scope = ANY ($3::text[])) END
         FROM team_members m
         WHERE m.team_id = k.team_id AND m.user_id = k.created_by AND m.role = 'member' AND k.created_by = $2
             AND ($1::uuid IS NULL OR k.team_id = $1) AND k.revoked_at IS NULL",
        team,
        user,
        permissions
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Revokes the API keys of a team, or of all teams, that a user has made, and returns their ids.
pub(crate) async fn revoke_keys(
    tx: &mut PgConnection,
    team: Option<Uuid>,
    user: Uuid,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "UPDATE api_keys SET revoked_at = now()
         WHERE created_by = $2 AND ($1::uuid IS NULL OR team_id = $1) AND revoked_at IS NULL RETURNING id",
        team,
        user
    )
    .fetch_all(tx)
    .await
}
