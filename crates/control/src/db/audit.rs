// SPDX-License-Identifier: Apache-2.0
//! Records of the audit log. A record gets its place in the log (`place`) only after its transaction has ended, from one server at a
//! time: so no record appears later at a place that a reader has passed already.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;
use wrenn_api::{Actor, ActorKind, ApiKeyId, AuditOutcome, AuditRecord, AuditedResource, ErrorCode, UserId};

use crate::deeds::{AuditFilter, Deed};

/// Maximum number of records that get their place by one statement.
const ORDERED: i64 = 10_000;

/// A record.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    /// Place in the log; later ones are higher.
    pub(crate) place: i64,
    at: DateTime<Utc>,
    team_id: Uuid,
    actor_kind: String,
    actor_id: Option<String>,
    actor_name: Option<String>,
    action: String,
    resource_kind: Option<String>,
    resource_id: Option<String>,
    resource_name: Option<String>,
    outcome: String,
    error_code: Option<String>,
    address: Option<String>,
    request_id: Option<String>,
}

impl Row {
    /// Converts it for the API.
    pub(crate) fn public(self) -> AuditRecord {
        let name = self.resource_name;
        let resource =
            self.resource_kind.zip(self.resource_id).map(|(kind, id)| AuditedResource { kind, id, name });
        AuditRecord {
            id: self.id.into(),
            at: self.at,
            team_id: self.team_id.into(),
            actor: Actor {
                kind: self.actor_kind.parse().unwrap_or_default(),
                id: self.actor_id,
                name: self.actor_name,
            },
            action: self.action,
            resource,
            outcome: self.outcome.parse().unwrap_or(AuditOutcome::Unknown),
            error_code: self.error_code,
            address: self.address,
            request_id: self.request_id,
        }
    }
}

/// Inserts a record, with the name that its actor has now; without effect if it is there.
pub(crate) async fn insert(db: impl PgExecutor<'_>, deed: &Deed) -> sqlx::Result<()> {
    let actor = deed.who.named(None);
    let id = actor.id.as_deref();
    // Which of both it is, its prefix tells.
    let user: Option<Uuid> = id.and_then(|id| id.parse::<UserId>().ok()).map(UserId::uuid);
    let key: Option<Uuid> = id.and_then(|id| id.parse::<ApiKeyId>().ok()).map(ApiKeyId::uuid);
    let resource = deed.resource.as_ref();
    sqlx::query!(
        "INSERT INTO audit_log (id, at, team_id, actor_kind, actor_id, actor_name, action, resource_kind, resource_id,
            resource_name, outcome, error_code, address, request_id)
         VALUES ($1, $2, $3, $4, $5,
            coalesce($6::text, (SELECT name FROM users WHERE id = $7), (SELECT name FROM api_keys WHERE id = $8)),
            $9, $10, $11, $12, $13, $14, $15, $16)
         ON CONFLICT (id) DO NOTHING",
        deed.id.uuid(),
        deed.at,
        deed.team.uuid(),
        actor.kind.as_str(),
        id,
        actor.name,
        user,
        key,
        &*deed.action,
        resource.map(|resource| &*resource.kind),
        resource.map(|resource| resource.id.as_str()),
        resource.and_then(|resource| resource.name.as_deref()),
        deed.outcome.as_str(),
        deed.error.map(ErrorCode::as_str),
        deed.address.map(|address| address.to_string()),
        deed.request_id.as_deref()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Gives all records that are there their place in the log.
pub(crate) async fn order(db: &PgPool) -> sqlx::Result<()> {
    /// Key of the advisory lock, not used elsewhere.
    const ORDER: i64 = 0x5772_656e_6e05;
    // In the order of an index: to look whether there is a row, the planner may read the table.
    let waits = sqlx::query_scalar!(
        r#"SELECT (SELECT id FROM audit_log WHERE place IS NULL ORDER BY at, id LIMIT 1) IS NOT NULL AS "waits!""#
    );
    if !waits.fetch_one(db).await? {
        return Ok(());
    }
    let mut tx = db.begin().await?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", ORDER).execute(&mut *tx).await?;
    loop {
        let ordered = sqlx::query!(
            "UPDATE audit_log SET place = next.place
             FROM (SELECT id, nextval('audit_log_place') AS place
                FROM (SELECT id FROM audit_log WHERE place IS NULL ORDER BY at, id LIMIT $1) AS first) AS next
             WHERE audit_log.id = next.id",
            ORDERED
        )
        .execute(&mut *tx)
        .await?;
        if ordered.rows_affected() < ORDERED as u64 {
            break;
        }
    }
    tx.commit().await
}

/// Returns the place of a record in the log; `None` if it is not kept.
pub(crate) async fn place(db: &PgPool, id: Uuid) -> sqlx::Result<Option<i64>> {
    let found =
        sqlx::query_scalar!("SELECT place FROM audit_log WHERE id = $1", id).fetch_optional(db).await?;
    Ok(found.flatten())
}

/// Selects a page: `page!(condition, filter, before, limit, arguments)`; the arguments begin with `$11`.
macro_rules! page {
    ($condition:literal, $filter:expr, $before:expr, $limit:expr $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT id, place AS "place!", at, team_id, actor_kind, actor_id, actor_name, action, resource_kind, resource_id,
                resource_name, outcome, error_code, address, request_id
             FROM audit_log
             WHERE place IS NOT NULL AND ($1::bigint IS NULL OR place < $1)
                AND ($2::text IS NULL OR actor_kind = $2) AND ($3::text IS NULL OR actor_id = $3)
                AND (cardinality($4::text[]) = 0 OR action = ANY($4))
                AND ($5::text IS NULL OR resource_kind = $5) AND ($6::text IS NULL OR resource_id = $6)
                AND ($7::text IS NULL OR outcome = $7)
                AND ($8::timestamptz IS NULL OR at >= $8) AND ($9::timestamptz IS NULL OR at < $9) "#
                + $condition
                + " ORDER BY place DESC LIMIT $10",
            $before,
            $filter.actor_kind.map(ActorKind::as_str),
            $filter.actor.as_deref(),
            &$filter.actions[..],
            $filter.resource_kind.as_deref(),
            $filter.resource.as_deref(),
            $filter.outcome.map(AuditOutcome::as_str),
            $filter.from,
            $filter.to,
            $limit
            $(, $argument)*
        )
    };
}

/// Returns records of a team, or of all teams, before this place, newest first.
pub(crate) async fn page(
    db: &PgPool,
    team: Option<Uuid>,
    filter: &AuditFilter,
    before: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    // Two statements, each with an index of its own.
    match team {
        Some(team) => page!("AND team_id = $11", filter, before, limit, team).fetch_all(db).await,
        None => page!("", filter, before, limit).fetch_all(db).await,
    }
}

/// Deletes up to `limit` records that are older than so many days, and returns their number.
pub(crate) async fn forget_old(db: &PgPool, days: u32, limit: i64) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM audit_log WHERE id IN (
            SELECT id FROM audit_log WHERE at < now() - make_interval(days => $1) LIMIT $2 FOR UPDATE SKIP LOCKED)",
        days as i32,
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}
