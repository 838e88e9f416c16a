// SPDX-License-Identifier: Apache-2.0
//! What administrators of the platform list and change: users, teams, hosts, and templates of all teams.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{
    AdminHost, AdminTeam, AdminTemplate, AdminUser, QuotaName, TeamId, TeamQuotas, TemplateKind, UserStatus,
};

/// A user.
#[derive(Debug)]
pub(crate) struct User {
    id: Uuid,
    email: String,
    name: String,
    is_admin: bool,
    status: String,
    created_at: DateTime<Utc>,
    last_login_at: Option<DateTime<Utc>>,
    teams_joined: i64,
    teams_owned: i64,
}

impl User {
    /// Converts it for the API.
    pub(crate) fn public(self) -> AdminUser {
        AdminUser {
            id: self.id.into(),
            email: self.email,
            name: self.name,
            is_admin: self.is_admin,
            status: self.status.parse().unwrap_or(UserStatus::Disabled),
            created_at: self.created_at,
            last_login_at: self.last_login_at,
            teams_joined: self.teams_joined.unsigned_abs(),
            teams_owned: self.teams_owned.unsigned_abs(),
        }
    }
}

/// Lists users that are older than `before`, the newest first: all, or those of this state, or the one with this address.
pub(crate) async fn users(
    db: &PgPool,
    status: Option<UserStatus>,
    email: Option<&str>,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<User>> {
    sqlx::query_as!(
        User,
        r#"SELECT u.id, u.email, u.name, u.is_admin, u.status, u.created_at, u.last_login_at,
            (SELECT count(*) FROM team_members m WHERE m.user_id = u.id) AS "teams_joined!",
            (SELECT count(*) FROM team_members m WHERE m.user_id = u.id AND m.role = 'owner') AS "teams_owned!"
         FROM users u
         WHERE ($1::text IS NULL OR u.status = $1) AND ($2::text IS NULL OR lower(u.email) = lower($2))
             AND ($3::uuid IS NULL OR u.id < $3)
         ORDER BY u.id DESC LIMIT $4"#,
        status.map(UserStatus::as_str),
        email,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Finds a user.
pub(crate) async fn user(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        r#"SELECT u.id, u.email, u.name, u.is_admin, u.status, u.created_at, u.last_login_at,
            (SELECT count(*) FROM team_members m WHERE m.user_id = u.id) AS "teams_joined!",
            (SELECT count(*) FROM team_members m WHERE m.user_id = u.id AND m.role = 'owner') AS "teams_owned!"
         FROM users u WHERE u.id = $1"#,
        id
    )
    .fetch_optional(tx)
    .await
}

/// Lets a user sign in, whose account counts as activated then, or shuts it out.
pub(crate) async fn set_active(tx: &mut PgConnection, id: Uuid, is_active: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE users SET status = CASE WHEN $2 THEN 'active' ELSE 'disabled' END,
            activated_at = CASE WHEN $2 THEN coalesce(activated_at, now()) ELSE activated_at END
         WHERE id = $1",
        id,
        is_active
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Makes a user an administrator, or takes that back.
pub(crate) async fn set_admin(tx: &mut PgConnection, id: Uuid, is_admin: bool) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET is_admin = $2 WHERE id = $1", id, is_admin).execute(tx).await.map(drop)
}

/// A team.
#[derive(Debug)]
pub(crate) struct Team {
    pub(crate) id: Uuid,
    name: String,
    slug: Option<String>,
    is_byoc: bool,
    created_at: DateTime<Utc>,
    deleted_at: Option<DateTime<Utc>>,
    emptied_at: Option<DateTime<Utc>>,
    quotas: Option<serde_json::Value>,
    member_count: i64,
    owner_name: Option<String>,
    owner_email: Option<String>,
    active_sandbox_count: i64,
    channel_count: i64,
}

impl Team {
    /// Converts it for the API.
    pub(crate) fn public(self) -> AdminTeam {
        AdminTeam {
            id: self.id.into(),
            name: self.name,
            slug: self.slug,
            is_byoc: self.is_byoc,
            created_at: self.created_at,
            deleted_at: self.deleted_at,
            emptied_at: self.emptied_at,
            member_count: self.member_count.unsigned_abs(),
            owner_name: self.owner_name,
            owner_email: self.owner_email,
            active_sandbox_count: self.active_sandbox_count.unsigned_abs(),
            channel_count: self.channel_count.unsigned_abs(),
            quotas: own_quotas(self.quotas.as_ref()),
        }
    }
}

/// Reads the quotas of a team. Those that this version does not know are left out.
fn own_quotas(stored: Option<&serde_json::Value>) -> TeamQuotas {
    let mut own = stored.and_then(serde_json::Value::as_object).cloned().unwrap_or_default();
    own.retain(|name, _| QuotaName::ALL.iter().any(|known| known.as_str() == name));
    serde_json::from_value(own.into()).unwrap_or_default()
}

/// Lists teams that are older than `before`, the newest first, without the platform's; deleted ones only `with_deleted`, or one team.
pub(crate) async fn teams(
    db: &PgPool,
    only: Option<Uuid>,
    with_deleted: bool,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Team>> {
    sqlx::query_as!(
        Team,
        r#"SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, t.deleted_at, t.emptied_at, t.quotas,
            (SELECT count(*) FROM team_members m WHERE m.team_id = t.id) AS "member_count!",
            u.name AS "owner_name?", u.email AS "owner_email?",
            (SELECT count(*) FROM sandboxes s
                WHERE s.team_id = t.id AND s.status <> 'stopped' AND s.status <> 'error') AS "active_sandbox_count!",
            (SELECT count(*) FROM channels c WHERE c.team_id = t.id) AS "channel_count!"
         FROM teams t
         LEFT JOIN team_members o ON o.team_id = t.id AND o.role = 'owner'
         LEFT JOIN users u ON u.id = o.user_id
         WHERE ($1::uuid IS NULL OR t.id = $1) AND ($2 OR t.deleted_at IS NULL) AND ($3::uuid IS NULL OR t.id < $3)
             AND t.id <> $5
         ORDER BY t.id DESC LIMIT $4"#,
        only,
        with_deleted,
        before,
        limit,
        TeamId::PLATFORM.uuid()
    )
    .fetch_all(db)
    .await
}

/// Number of the hosts that a team has brought.
pub(crate) async fn own_hosts(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM hosts WHERE team_id = $1"#, team)
        .fetch_one(tx)
        .await
}

/// Lets a team bring hosts of its own, or takes that back.
pub(crate) async fn set_byoc(tx: &mut PgConnection, team: Uuid, is_byoc: bool) -> sqlx::Result<()> {
    sqlx::query!("UPDATE teams SET is_byoc = $2 WHERE id = $1", team, is_byoc).execute(tx).await.map(drop)
}

/// A host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: Uuid,
    kind: String,
    team_id: Option<Uuid>,
    address: String,
    status: String,
    last_seen_at: Option<DateTime<Utc>>,
    agent_version: String,
    driver: String,
    driver_reason: String,
    security_boundary: bool,
    quarantine: String,
    ejected_until: Option<DateTime<Utc>>,
    cpus: i32,
    memory_mb: i64,
    disk_mb: i64,
    disk_free_mb: i64,
    max_sandboxes: i32,
    reserved_sandboxes: i64,
    reserved_vcpus: i64,
    reserved_memory_mb: i64,
    templates: Vec<String>,
    created_at: DateTime<Utc>,
}

impl Host {
    /// Converts it for the API. What an agent says may be negative only if it is wrong.
    pub(crate) fn public(self) -> AdminHost {
        let size = |size: i64| size.max(0).unsigned_abs();
        let number = |number: i32| number.max(0).unsigned_abs();
        AdminHost {
            id: self.id.into(),
            kind: self.kind,
            team_id: self.team_id.map(Into::into),
            address: self.address,
            status: self.status,
            last_seen_at: self.last_seen_at,
            agent_version: self.agent_version,
            driver: self.driver,
            driver_reason: self.driver_reason,
            security_boundary: self.security_boundary,
            quarantine: Some(self.quarantine).filter(|why| !why.is_empty()),
            ejected_until: self.ejected_until.filter(|until| *until > Utc::now()),
            cpus: number(self.cpus),
            memory_mb: size(self.memory_mb),
            disk_mb: size(self.disk_mb),
            disk_free_mb: size(self.disk_free_mb),
            max_sandboxes: number(self.max_sandboxes),
            reserved_sandboxes: size(self.reserved_sandboxes),
            reserved_vcpus: size(self.reserved_vcpus),
            reserved_memory_mb: size(self.reserved_memory_mb),
            templates: self.templates,
            created_at: self.created_at,
        }
    }
}

/// Lists hosts after the host `after`, by id.
pub(crate) async fn hosts(db: &PgPool, after: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Host>> {
    sqlx::query_as!(
        Host,
        "SELECT id, kind, team_id, address, status, last_seen_at, agent_version, driver, driver_reason, security_boundary,
            quarantine, ejected_until, cpus, memory_mb, disk_mb, disk_free_mb, max_sandboxes, reserved_sandboxes,
            reserved_vcpus, reserved_memory_mb, templates, created_at
         FROM hosts WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2",
        after,
        limit
    )
    .fetch_all(db)
    .await
}

/// A template, by its newest version.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) team_id: Uuid,
    pub(crate) name: String,
    version: i32,
    is_snapshot: bool,
    size_mb: i64,
    host_id: Uuid,
    created_at: DateTime<Utc>,
}

impl Template {
    /// Converts it for the API.
    pub(crate) fn public(self) -> AdminTemplate {
        AdminTemplate {
            team_id: self.team_id.into(),
            name: self.name,
            kind: if self.is_snapshot { TemplateKind::Snapshot } else { TemplateKind::Base },
            version: self.version.unsigned_abs(),
            size_mb: self.size_mb.max(0).unsigned_abs(),
            host_id: self.host_id.into(),
            created_at: self.created_at,
        }
    }
}

/// Lists templates of all teams, or of one, after the template `after`, by team and name.
pub(crate) async fn templates(
    db: &PgPool,
    team: Option<Uuid>,
    after: Option<(Uuid, &str)>,
    limit: i64,
) -> sqlx::Result<Vec<Template>> {
    let (after_team, after_name) = after.unzip();
    // Ranges, so that the index of the key serves whatever is given.
    sqlx::query_as!(
        Template,
        r#"SELECT DISTINCT ON (team_id, name) team_id, name, version, snapshot_id IS NOT NULL AS "is_snapshot!", size_mb, host_id,
            created_at
         FROM template_versions
         WHERE team_id BETWEEN coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
                AND coalesce($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
            AND (team_id, name) > (coalesce($2::uuid, '00000000-0000-0000-0000-000000000000'), coalesce($3::text, ''))
         ORDER BY team_id, name, version DESC LIMIT $4"#,
        team,
        after_team,
        after_name,
        limit
    )
    .fetch_all(db)
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotas_of_a_later_version_hide_none_of_the_others() {
        let stored = json!({"running": 5, "of_a_later_version": {"x": 1}});
        let own = own_quotas(Some(&stored));
        assert_eq!((own.running, own.vcpus), (Some(5), None));
        assert_eq!(own_quotas(None), TeamQuotas::default());
    }
}
