//! Sandboxes. Every change of status is a compare-and-set on id, status and version, and writes its event in
//! the same transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{ErrorCode, ErrorDetail, Sandbox, SandboxId, SandboxStatus};

use super::outbox;

/// Lease of a transitional status, in seconds: only the worker that set it may change it.
pub(crate) const LEASE_SECS: i32 = 15;

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) host_id: Option<Uuid>,
    pub(crate) template: String,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) status: String,
    pub(crate) version: i64,
    pub(crate) lease_until: Option<DateTime<Utc>>,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) metadata: serde_json::Value,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) last_updated: DateTime<Utc>,
}

impl Row {
    /// Its public id.
    pub(crate) fn public_id(&self) -> SandboxId {
        SandboxId::from(self.id)
    }

    /// Its status; one that this version does not know counts as an error.
    pub(crate) fn status(&self) -> SandboxStatus {
        self.status.parse().unwrap_or(SandboxStatus::Error)
    }

    /// Whether the lease of its transitional status has expired.
    pub(crate) fn abandoned(&self) -> bool {
        self.lease_until.is_none_or(|until| until < Utc::now())
    }

    /// Converts it for the API.
    pub(crate) fn public(&self) -> Sandbox {
        let metadata: BTreeMap<String, String> =
            serde_json::from_value(self.metadata.clone()).unwrap_or_default();
        let error = self.error_code.as_ref().map(|code| ErrorDetail {
            code: code.parse().unwrap_or(ErrorCode::InternalError),
            message: self.error_message.clone().unwrap_or_default(),
            sandbox_id: None,
        });
        Sandbox {
            id: self.public_id(),
            status: self.status(),
            template: self.template.clone(),
            vcpus: self.vcpus as u32,
            memory_mb: self.memory_mb as u32,
            disk_size_mb: self.disk_size_mb as u32,
            created_at: self.created_at,
            started_at: self.started_at,
            last_updated: self.last_updated,
            metadata,
            error,
        }
    }
}

/// A sandbox to insert.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) host_id: Uuid,
    pub(crate) template: &'a str,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
}

/// Inserts a sandbox as `starting`.
pub(crate) async fn insert(tx: &mut PgConnection, new: &New<'_>) -> sqlx::Result<Row> {
    let row = sqlx::query_as!(
        Row,
        "INSERT INTO sandboxes (id, team_id, host_id, template, vcpus, memory_mb, disk_size_mb, status, lease_until)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'starting', now() + make_interval(secs => $8::int)) RETURNING *",
        new.id,
        new.team_id,
        new.host_id,
        new.template,
        new.vcpus,
        new.memory_mb,
        new.disk_size_mb,
        LEASE_SECS
    )
    .fetch_one(&mut *tx)
    .await?;
    outbox::status_changed(tx, &row).await?;
    Ok(row)
}

/// How many sandboxes of a team are not stopped.
pub(crate) async fn count(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM sandboxes WHERE team_id = $1 AND status NOT IN ('stopped', 'error')"#,
        team
    )
    .fetch_one(tx)
    .await
}

/// Returns a sandbox of a team.
pub(crate) async fn find(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    sqlx::query_as!(Row, "SELECT * FROM sandboxes WHERE id = $1 AND team_id = $2", id, team)
        .fetch_optional(db)
        .await
}

/// Returns a page of a team's sandboxes older than `before`, newest first: with one status, or all that are
/// not stopped.
pub(crate) async fn page(
    db: &PgPool,
    team: Uuid,
    status: Option<SandboxStatus>,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT * FROM sandboxes
         WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2)
             AND CASE WHEN $4::text IS NULL THEN status <> 'stopped' ELSE status = $4 END
         ORDER BY id DESC LIMIT $3",
        team,
        before,
        limit,
        status.map(SandboxStatus::as_str)
    )
    .fetch_all(db)
    .await
}

/// What is not stopped on a host.
pub(crate) async fn on_host(db: &PgPool, host: Uuid) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(Row, "SELECT * FROM sandboxes WHERE host_id = $1 AND status <> 'stopped'", host)
        .fetch_all(db)
        .await
}

/// Of these ids, those that may be on a host: known and not stopped.
pub(crate) async fn expected(db: &PgPool, ids: &[Uuid]) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!("SELECT id FROM sandboxes WHERE id = ANY($1) AND status <> 'stopped'", ids)
        .fetch_all(db)
        .await
}

/// Number of sandboxes by status.
pub(crate) async fn by_status(db: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT status, count(*) AS "count!" FROM sandboxes WHERE status <> 'stopped' GROUP BY status"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}

/// A change of a sandbox's status.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// New status.
    pub(crate) to: Option<SandboxStatus>,
    /// Cause, if the status is `error`.
    pub(crate) error: Option<(ErrorCode, String)>,
    /// Metadata to add.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Change {
    /// A change to this status.
    pub(crate) fn to(status: SandboxStatus) -> Self {
        Self { to: Some(status), ..Self::default() }
    }

    /// A change to `error`.
    pub(crate) fn error(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { to: Some(SandboxStatus::Error), error: Some((code, message.into())), ..Self::default() }
    }
}

/// Changes the status if the row is still as it was read; `None` when somebody else was faster.
pub(crate) async fn change(db: &PgPool, row: &Row, change: Change) -> sqlx::Result<Option<Row>> {
    let to = change.to.unwrap_or(row.status());
    let (code, message) = change.error.unzip();
    let metadata = serde_json::to_value(&change.metadata).unwrap_or_default();
    let transitional = matches!(to, SandboxStatus::Starting | SandboxStatus::Stopping);
    let mut tx = db.begin().await?;
    let changed = sqlx::query_as!(
        Row,
        "UPDATE sandboxes SET status = $4, version = version + 1, last_updated = now(),
            error_code = $5, error_message = $6, metadata = metadata || $7,
            started_at = CASE WHEN $4 = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
            lease_until = CASE WHEN $8 THEN now() + make_interval(secs => $9::int) END
         WHERE id = $1 AND status = $2 AND version = $3 RETURNING *",
        row.id,
        row.status,
        row.version,
        to.as_str(),
        code.map(ErrorCode::as_str),
        message,
        metadata,
        transitional,
        LEASE_SECS
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(changed) = &changed {
        outbox::status_changed(&mut tx, changed).await?;
    }
    tx.commit().await?;
    Ok(changed)
}

/// Keeps a transitional status for its worker; false when the row has moved on.
pub(crate) async fn renew(db: &PgPool, row: &Row) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE sandboxes SET lease_until = now() + make_interval(secs => $3::int)
         WHERE id = $1 AND version = $2",
        row.id,
        row.version,
        LEASE_SECS
    )
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}
