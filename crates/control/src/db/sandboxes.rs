// SPDX-License-Identifier: Apache-2.0
//! Sandboxes. Every change of status is a compare-and-set on id, status and version, and writes its event in
//! the same transaction.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{
    AuditOutcome, Caused, ErrorCode, ErrorDetail, Event, OnTimeout, OutOfMemory, Sandbox, SandboxId,
    SandboxImage, SandboxStatus,
};

use super::{actors, audit, outbox, usage};
use crate::{
    by::{By, Who},
    deeds::{AuditResource, Deed},
};

/// Difference up to which the clock of a guest is taken for that of the database.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) host_id: Option<Uuid>,
    pub(crate) template: String,
    image: Option<serde_json::Value>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) status: String,
    pub(crate) version: i64,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) metadata: serde_json::Value,
    pub(crate) name: Option<String>,
    pub(crate) labels: serde_json::Value,
    pub(crate) timeout_sec: i32,
    pub(crate) on_timeout: String,
    pub(crate) auto_resume: bool,
    pub(crate) public_ports: bool,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) last_active_at: DateTime<Utc>,
    pub(crate) last_updated: DateTime<Utc>,
    last_out_of_memory: Option<serde_json::Value>,
    changed_by: Option<serde_json::Value>,
}

/// Selects or returns whole rows: `row!(before, after, arguments)`, with the columns between both texts.
macro_rules! row {
    ($before:literal, $after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            $before
                + " id, team_id, host_id, template, image, vcpus, memory_mb, disk_size_mb, status, version, error_code,
                error_message, metadata, name, labels, timeout_sec, on_timeout, auto_resume, public_ports, created_at,
                started_at, last_active_at, last_updated, last_out_of_memory, changed_by "
                + $after,
            $($argument),*
        )
    };
}

/// Columns of a row that decide its changes.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) id: Uuid,
    pub(crate) host_id: Option<Uuid>,
    pub(crate) status: String,
    pub(crate) version: i64,
    /// End of the lease of a transitional status.
    pub(crate) lease_until: Option<DateTime<Utc>>,
    pub(crate) error_message: Option<String>,
    /// When it first ran.
    pub(crate) started_at: Option<DateTime<Utc>>,
    /// What becomes of it when it was idle for its timeout.
    pub(crate) on_timeout: String,
}

/// Selects the columns for a change: `known!(after, arguments)`.
macro_rules! known {
    ($after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Known,
            "SELECT id, host_id, status, version, lease_until, error_message, started_at, on_timeout FROM sandboxes " + $after,
            $($argument),*
        )
    };
}

/// Parses a status of the database; one that this version does not know counts as an error.
fn status(text: &str) -> SandboxStatus {
    text.parse().unwrap_or(SandboxStatus::Error)
}

impl Known {
    /// Returns the public id.
    pub(crate) fn public_id(&self) -> SandboxId {
        SandboxId::from(self.id)
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> SandboxStatus {
        status(&self.status)
    }

    /// What becomes of it when it was idle for its timeout.
    pub(crate) fn on_timeout(&self) -> OnTimeout {
        self.on_timeout.parse().unwrap_or_default()
    }

    /// Whether the lease of its transitional status has expired.
    pub(crate) fn abandoned(&self) -> bool {
        self.lease_until.is_none_or(|until| until < Utc::now())
    }
}

impl Row {
    /// Returns the public id.
    pub(crate) fn public_id(&self) -> SandboxId {
        SandboxId::from(self.id)
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> SandboxStatus {
        status(&self.status)
    }

    /// Returns the columns for a change, without a lease.
    pub(crate) fn known(&self) -> Known {
        Known {
            id: self.id,
            host_id: self.host_id,
            status: self.status.clone(),
            version: self.version,
            lease_until: None,
            error_message: self.error_message.clone(),
            started_at: self.started_at,
            on_timeout: self.on_timeout.clone(),
        }
    }

    /// Returns the labels.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        serde_json::from_value(self.labels.clone()).unwrap_or_default()
    }

    /// Returns what is told of its image, if it is from one of a registry.
    fn image(&self) -> Option<SandboxImage> {
        self.image.clone().and_then(|image| serde_json::from_value(image).ok())
    }

    /// Returns the last process in it that was killed for want of memory, if there was one.
    fn last_out_of_memory(&self) -> Option<OutOfMemory> {
        self.last_out_of_memory.clone().and_then(|killed| serde_json::from_value(killed).ok())
    }

    /// Returns why its status changed last, and who changed it.
    fn caused(&self) -> Caused {
        self.changed_by.clone().and_then(|caused| serde_json::from_value(caused).ok()).unwrap_or_default()
    }

    /// Returns the event of its last change of status.
    fn changed(&self) -> Event {
        Event::changed(self.public(), self.caused())
    }

    /// When it will be paused or deleted if it is not used before.
    fn expires_at(&self) -> Option<DateTime<Utc>> {
        let timed = self.timeout_sec > 0 && self.status() == SandboxStatus::Running;
        timed.then(|| self.last_active_at + TimeDelta::seconds(self.timeout_sec.into()))
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
            name: self.name.clone(),
            labels: self.labels(),
            status: self.status(),
            template: self.template.clone(),
            image: self.image(),
            vcpus: self.vcpus as u32,
            memory_mb: self.memory_mb as u32,
            disk_size_mb: self.disk_size_mb as u32,
            timeout_sec: self.timeout_sec as u32,
            on_timeout: self.on_timeout.parse().unwrap_or_default(),
            auto_resume: self.auto_resume,
            public_ports: self.public_ports,
            created_at: self.created_at,
            started_at: self.started_at,
            last_active_at: self.started_at.map(|_| self.last_active_at),
            expires_at: self.expires_at(),
            last_updated: self.last_updated,
            metadata,
            last_out_of_memory: self.last_out_of_memory(),
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
    /// What is kept of the image of a registry that it starts from.
    pub(crate) image: Option<serde_json::Value>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) name: Option<&'a str>,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) timeout_sec: i32,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) auto_resume: bool,
    pub(crate) public_ports: bool,
    /// Who creates it.
    pub(crate) by: By,
}

/// Inserts a sandbox as `starting`, whose resources are reserved on its host; `None` if another one of the team has its
/// name.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    new: &New<'_>,
    lease: Duration,
) -> sqlx::Result<Option<Row>> {
    let labels = serde_json::to_value(new.labels).unwrap_or_default();
    let changed_by = changed_by(tx, Some(new.by)).await?;
    let row = row!(
        "INSERT INTO sandboxes (id, team_id, host_id, template, vcpus, memory_mb, disk_size_mb, status, lease_until,
            reserved, timeout_sec, auto_resume, name, labels, on_timeout, public_ports, image,
            changed_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'starting', now() + make_interval(secs => $8), true, $9, $10, $11, $12, $13, $14,
             $15, $16)
         ON CONFLICT (team_id, name) WHERE name IS NOT NULL AND status NOT IN ('stopping', 'stopped') DO NOTHING RETURNING",
        "",
        new.id,
        new.team_id,
        new.host_id,
        new.template,
        new.vcpus,
        new.memory_mb,
        new.disk_size_mb,
        lease.as_secs_f64(),
        new.timeout_sec,
        new.auto_resume,
        new.name,
        labels,
        new.on_timeout.as_str(),
        new.public_ports,
        new.image,
        changed_by
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    outbox::put(tx, row.team_id, &row.changed()).await?;
    Ok(Some(row))
}

/// Returns a sandbox of a team.
pub(crate) async fn find(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    row!("SELECT", "FROM sandboxes WHERE id = $1 AND team_id = $2", id, team).fetch_optional(db).await
}

/// Who may use the ports of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct PortAccess {
    pub(crate) team_id: Uuid,
    /// Whether everybody may.
    pub(crate) public_ports: bool,
    /// Otherwise, those who have this.
    pub(crate) traffic_token: String,
}

/// Returns who may use the ports of a sandbox of any team.
pub(crate) async fn port_access(db: &PgPool, id: Uuid) -> sqlx::Result<Option<PortAccess>> {
    sqlx::query_as!(
        PortAccess,
        "SELECT team_id, public_ports, traffic_token FROM sandboxes WHERE id = $1 AND status <> 'stopped'",
        id
    )
    .fetch_optional(db)
    .await
}

/// Returns the columns for a change of a team's sandbox.
pub(crate) async fn known(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<Known>> {
    known!("WHERE id = $1 AND team_id = $2", id, team).fetch_optional(db).await
}

/// What a list of sandboxes has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Statuses; none: every one but `stopped`.
    pub(crate) statuses: Vec<SandboxStatus>,
    pub(crate) name: Option<String>,
    pub(crate) template: Option<String>,
    /// Labels with their values: of each a JSON object.
    pub(crate) labels: Vec<serde_json::Value>,
    /// Labels with any value.
    pub(crate) labelled: Vec<String>,
}

/// Returns a page of a team's sandboxes older than `before`, newest first.
pub(crate) async fn page(
    db: &PgPool,
    team: Uuid,
    filter: &Filter,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    let statuses: Vec<String> = filter.statuses.iter().map(|status| status.as_str().to_owned()).collect();
    let (name, template) = (filter.name.as_deref(), filter.template.as_deref());
    let (statuses, labels, labelled) = (&statuses[..], &filter.labels[..], &filter.labelled[..]);
    if filter.statuses.contains(&SandboxStatus::Stopped) {
        return row!(
            "SELECT",
            "FROM sandboxes
             WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2) AND status = ANY($4)
                 AND ($5::text IS NULL OR name = $5) AND ($6::text IS NULL OR template = $6)
                 AND labels @> ALL($7::jsonb[]) AND labels ?& $8
             ORDER BY id DESC LIMIT $3",
            team,
            before,
            limit,
            statuses,
            name,
            template,
            labels,
            labelled
        )
        .fetch_all(db)
        .await;
    }
    // A statement of its own, because most records are of stopped sandboxes, and an index leaves them out.
    row!(
        "SELECT",
        "FROM sandboxes
         WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2) AND status <> 'stopped'
             AND (cardinality($4::text[]) = 0 OR status = ANY($4))
             AND ($5::text IS NULL OR name = $5) AND ($6::text IS NULL OR template = $6)
             AND labels @> ALL($7::jsonb[]) AND labels ?& $8
         ORDER BY id DESC LIMIT $3",
        team,
        before,
        limit,
        statuses,
        name,
        template,
        labels,
        labelled
    )
    .fetch_all(db)
    .await
}

/// Returns a page of sandboxes older than `before`, newest first: of all teams on all hosts, or of one of them, and of one status, or
/// of every one but `stopped`.
pub(crate) async fn of_all(
    db: &PgPool,
    (team, host): (Option<Uuid>, Option<Uuid>),
    status: Option<SandboxStatus>,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    if status == Some(SandboxStatus::Stopped) {
        return row!(
            "SELECT",
            "FROM sandboxes
             WHERE ($1::uuid IS NULL OR team_id = $1) AND ($2::uuid IS NULL OR host_id = $2) AND status = 'stopped'
                 AND ($3::uuid IS NULL OR id < $3)
             ORDER BY id DESC LIMIT $4",
            team,
            host,
            before,
            limit
        )
        .fetch_all(db)
        .await;
    }
    row!(
        "SELECT",
        "FROM sandboxes
         WHERE ($1::uuid IS NULL OR team_id = $1) AND ($2::uuid IS NULL OR host_id = $2) AND status <> 'stopped'
             AND ($3::text IS NULL OR status = $3) AND id < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
         ORDER BY id DESC LIMIT $5",
        team,
        host,
        status.map(SandboxStatus::as_str),
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Returns the team of a sandbox.
pub(crate) async fn team_of(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!("SELECT team_id FROM sandboxes WHERE id = $1", id).fetch_optional(db).await
}

/// A sandbox that a reference may mean.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) id: Uuid,
    pub(crate) name: Option<String>,
    pub(crate) status: String,
    /// Whether the reference is its name.
    pub(crate) named: bool,
}

/// Returns up to `limit` sandboxes of a team, of those that are not deleted, with this name, or with an id in this range;
/// the one with the name is first.
pub(crate) async fn candidates(
    db: &PgPool,
    team: Uuid,
    name: &str,
    ids: Option<(Uuid, Uuid)>,
    limit: i64,
) -> sqlx::Result<Vec<Candidate>> {
    let (first, last) = ids.unzip();
    sqlx::query_as!(
        Candidate,
        r#"SELECT id, name, status, (name IS NOT NULL AND name = $2 AND status <> 'stopping') AS "named!" FROM sandboxes
         WHERE team_id = $1 AND status <> 'stopped'
             AND ((name = $2 AND status <> 'stopping') OR id BETWEEN $3 AND $4)
         ORDER BY (name IS NOT NULL AND name = $2 AND status <> 'stopping') DESC, id DESC LIMIT $5"#,
        team,
        name,
        first,
        last,
        limit
    )
    .fetch_all(db)
    .await
}

/// Returns the sandboxes of a host that are neither stopped nor failed.
pub(crate) async fn on_host(db: &PgPool, host: Uuid) -> sqlx::Result<Vec<Known>> {
    known!("WHERE host_id = $1 AND status NOT IN ('stopped', 'error')", host).fetch_all(db).await
}

/// Returns the sandboxes of a host that are not stopped, failed ones included.
pub(crate) async fn not_stopped(db: &PgPool, host: Uuid) -> sqlx::Result<Vec<Known>> {
    known!("WHERE host_id = $1 AND status <> 'stopped'", host).fetch_all(db).await
}

/// Returns the rows of these ids, with any status.
pub(crate) async fn of_ids(db: &PgPool, ids: &[Uuid]) -> sqlx::Result<Vec<Known>> {
    known!("WHERE id = ANY($1)", ids).fetch_all(db).await
}

/// Returns up to `limit` sandboxes that have never run and failed longer ago than `age`, the oldest first. The others
/// have disks with data of their users.
pub(crate) async fn failed_before(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<Vec<Known>> {
    known!(
        "WHERE status = 'error' AND started_at IS NULL AND last_updated < now() - make_interval(secs => $1)
         ORDER BY last_updated LIMIT $2",
        age.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Deletes up to `limit` records of sandboxes that were stopped longer ago than `age`, and returns their
/// number. The sandbox of an idempotency key is kept as long as the key.
pub(crate) async fn forget_stopped(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM sandboxes WHERE id IN (
            SELECT s.id FROM sandboxes s
            WHERE s.status = 'stopped' AND s.last_updated < now() - make_interval(secs => $1)
                AND NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.sandbox_id = s.id)
            ORDER BY s.last_updated LIMIT $2)",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
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
    /// New timeout.
    pub(crate) timeout_sec: Option<i32>,
    /// Whether the change is only done if the sandbox was idle for its timeout.
    pub(crate) if_idle: bool,
    /// Who changes it, and why. Without it the change ends what the last one has begun, and has its cause and actor.
    pub(crate) by: Option<By>,
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

    /// Names who changes it, and why.
    pub(crate) fn by(self, by: By) -> Self {
        Self { by: Some(by), ..self }
    }

    /// Returns whether the sandbox has ended for want of memory.
    pub(crate) fn is_of_memory(&self) -> bool {
        matches!(self.error, Some((ErrorCode::OutOfMemory, _)))
    }
}

/// Changes the status if the row is unchanged since it was read; `None` otherwise. A transitional status gets a
/// lease: only the worker that set it may change it.
pub(crate) async fn change(
    db: &PgPool,
    row: &Known,
    change: Change,
    lease: Duration,
) -> sqlx::Result<Option<Row>> {
    let mut tx = db.begin().await?;
    let changed = change_in(&mut tx, row, change, lease).await?;
    tx.commit().await?;
    Ok(changed)
}

/// Changes the status in a transaction, as [`change`].
pub(crate) async fn change_in(
    tx: &mut PgConnection,
    row: &Known,
    change: Change,
    lease: Duration,
) -> sqlx::Result<Option<Row>> {
    use SandboxStatus::{Error, Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping};
    let (to, of_memory) = (change.to.unwrap_or(row.status()), change.is_of_memory());
    let (code, message) = change.error.unzip();
    let metadata = serde_json::to_value(&change.metadata).unwrap_or_default();
    let transitional = matches!(to, Starting | Pausing | Resuming | Stopping);
    let changed_by = changed_by(tx, change.by).await?;
    let changed = row!(
        "UPDATE sandboxes SET status = $4, version = version + 1, last_updated = now(),
            error_code = $5, error_message = $6, metadata = metadata || $7,
            started_at = CASE WHEN $4 = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
            last_active_at = CASE WHEN $4 = 'running' AND status <> 'running' THEN now() ELSE last_active_at END,
            lease_until = CASE WHEN $8 THEN now() + make_interval(secs => $9) END,
            timeout_sec = coalesce($10, timeout_sec), changed_by = coalesce($12, changed_by)
         WHERE id = $1 AND status = $2 AND version = $3
            AND (NOT $11 OR last_active_at + make_interval(secs => timeout_sec) < now()) RETURNING",
        "",
        row.id,
        row.status,
        row.version,
        to.as_str(),
        code.map(ErrorCode::as_str),
        message,
        metadata,
        transitional,
        lease.as_secs_f64(),
        change.timeout_sec,
        change.if_idle,
        changed_by
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(changed) = changed else { return Ok(None) };
    match to {
        Stopped | Error | Paused => give_back(tx, row.id).await?,
        // It may run again without a resume of this database, as after an outage.
        Running => take_again(tx, row.id).await?,
        _ => {}
    }
    outbox::put(tx, changed.team_id, &changed.changed()).await?;
    if of_memory {
        usage::count_out_of_memory(tx, changed.team_id).await?;
    }
    record(tx, change.by, &row.status, &changed).await?;
    Ok(Some(changed))
}

/// Records a change for the audit log that no request asks for: those are recorded where they come in.
async fn record(tx: &mut PgConnection, by: Option<By>, from: &str, changed: &Row) -> sqlx::Result<()> {
    use SandboxStatus::{
        Error, Missing, Paused, Pausing, Pending, Resuming, Running, Starting, Stopped, Stopping,
    };
    let by = by.filter(|by| !matches!(by.who, Who::Principal(_)) && from != changed.status);
    let Some(by) = by else { return Ok(()) };
    let action = match changed.status() {
        Pausing | Paused => "sandbox.pause",
        Pending | Starting | Resuming => "sandbox.resume",
        Running => "sandbox.recover",
        Missing => "sandbox.miss",
        Error => "sandbox.fail",
        Stopping | Stopped => "sandbox.delete",
    };
    let code = changed.error_code.as_ref().and_then(|code| code.parse().ok());
    let resource = AuditResource::new("sandbox", changed.public_id());
    let deed = Deed::new(by, changed.team_id.into(), action).on(resource);
    audit::insert(tx, &deed.with_outcome(AuditOutcome::Succeeded, code)).await
}

/// Value of `changed_by` for a change by somebody.
async fn changed_by(tx: &mut PgConnection, by: Option<By>) -> sqlx::Result<Option<serde_json::Value>> {
    let Some(by) = by else { return Ok(None) };
    let caused = actors::caused(tx, by).await?;
    serde_json::to_value(caused).map(Some).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// What users change of a sandbox.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// New name; an empty one takes it away.
    pub(crate) name: Option<String>,
    /// Labels to add or to change.
    pub(crate) labels: BTreeMap<String, String>,
    /// Labels to remove.
    pub(crate) unlabelled: Vec<String>,
    pub(crate) timeout_sec: Option<i32>,
    pub(crate) on_timeout: Option<OnTimeout>,
    pub(crate) auto_resume: Option<bool>,
    pub(crate) public_ports: Option<bool>,
}

/// Result of an update.
#[derive(Debug)]
pub(crate) enum Updated {
    Done(Box<Row>),
    /// Another sandbox of the team has the name.
    NameTaken,
    /// It has so many labels then, which are too many.
    TooManyLabels(usize),
    /// It was deleted.
    Stopped,
}

/// Changes what users may change of a sandbox, which then has at most `labels_max` labels.
pub(crate) async fn update(
    db: &PgPool,
    row: &Row,
    update: &Update,
    labels_max: usize,
) -> sqlx::Result<Updated> {
    let labels = serde_json::to_value(&update.labels).unwrap_or_default();
    let mut tx = db.begin().await?;
    let updated = row!(
        "UPDATE sandboxes SET timeout_sec = coalesce($2, timeout_sec), auto_resume = coalesce($3, auto_resume),
            last_active_at = CASE WHEN $2 IS NULL THEN last_active_at ELSE now() END,
            name = CASE WHEN $4::text IS NULL THEN name ELSE nullif($4, '') END,
            labels = (labels || $5) - $6::text[], on_timeout = coalesce($7, on_timeout),
            public_ports = coalesce($8, public_ports)
         WHERE id = $1 AND status <> 'stopped' RETURNING",
        "",
        row.id,
        update.timeout_sec,
        update.auto_resume,
        update.name.as_deref(),
        labels,
        &update.unlabelled[..],
        update.on_timeout.map(OnTimeout::as_str),
        update.public_ports
    )
    .fetch_optional(&mut *tx)
    .await;
    let updated = match updated {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(Updated::Stopped),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("sandboxes_name") => {
            return Ok(Updated::NameTaken);
        }
        Err(error) => return Err(error),
    };
    let count = updated.labels().len();
    if count > labels_max {
        return Ok(Updated::TooManyLabels(count));
    }
    tx.commit().await?;
    Ok(Updated::Done(Box::new(updated)))
}

/// Notes that a running sandbox is in use, and returns its timeout in seconds; `None` if it does not run.
pub(crate) async fn touch(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar!(
        "UPDATE sandboxes SET last_active_at = now() WHERE id = $1 AND team_id = $2 AND status = 'running'
         RETURNING timeout_sec",
        id,
        team
    )
    .fetch_optional(db)
    .await
}

/// Notes that a running sandbox is in use, and changes its timeout if there is a new one; `None` if it does not run.
pub(crate) async fn prolong(db: &PgPool, id: Uuid, timeout_sec: Option<i32>) -> sqlx::Result<Option<Row>> {
    row!(
        "UPDATE sandboxes SET timeout_sec = coalesce($2, timeout_sec), last_active_at = now()
         WHERE id = $1 AND status = 'running' RETURNING",
        "",
        id,
        timeout_sec
    )
    .fetch_optional(db)
    .await
}

/// Returns up to `limit` running sandboxes that were idle for their timeout, the idlest first.
pub(crate) async fn idle(db: &PgPool, limit: i64) -> sqlx::Result<Vec<Known>> {
    known!(
        "WHERE status = 'running' AND timeout_sec > 0
            AND last_active_at + make_interval(secs => timeout_sec) < now()
         ORDER BY last_active_at LIMIT $1",
        limit
    )
    .fetch_all(db)
    .await
}

/// Records the last process in a sandbox that was killed for want of memory, and tells it, if it is later than the one that is known.
/// What a guest remembers from before the sandbox was created is that of the sandbox that its memory comes from. Returns whether it
/// was recorded.
pub(crate) async fn out_of_memory(db: &PgPool, id: Uuid, killed: &OutOfMemory) -> sqlx::Result<bool> {
    let json = serde_json::to_value(killed).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let mut tx = db.begin().await?;
    let row = row!(
        "UPDATE sandboxes SET last_out_of_memory = $2
         WHERE id = $1 AND status NOT IN ('stopping', 'stopped') AND $3 >= created_at - make_interval(secs => $4)
            AND coalesce((last_out_of_memory ->> 'at')::timestamptz < $3, true) RETURNING",
        "",
        id,
        json,
        killed.at,
        CLOCKS_DIFFER.as_secs_f64()
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(false) };
    outbox::put(&mut tx, row.team_id, &Event::out_of_memory(row.public())).await?;
    usage::count_out_of_memory(&mut tx, row.team_id).await?;
    tx.commit().await?;
    Ok(true)
}

/// Releases the resources that are reserved for a sandbox on its host; idempotent.
async fn give_back(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH freed AS (
            UPDATE sandboxes SET reserved = false WHERE id = $1 AND reserved RETURNING host_id, vcpus, memory_mb)
         UPDATE hosts SET reserved_sandboxes = greatest(reserved_sandboxes - 1, 0),
            reserved_vcpus = greatest(reserved_vcpus - freed.vcpus, 0),
            reserved_memory_mb = greatest(reserved_memory_mb - freed.memory_mb, 0)
         FROM freed WHERE hosts.id = freed.host_id",
        id
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Marks the resources of a sandbox as reserved, which [`super::hosts::reserve`] has reserved in this transaction.
pub(crate) async fn mark_reserved(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE sandboxes SET reserved = true WHERE id = $1", id).execute(tx).await.map(drop)
}

/// Reserves the resources of a sandbox that runs, whatever room its host has; idempotent.
async fn take_again(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH taken AS (
            UPDATE sandboxes SET reserved = true WHERE id = $1 AND NOT reserved RETURNING host_id, vcpus, memory_mb)
         UPDATE hosts SET reserved_sandboxes = reserved_sandboxes + 1,
            reserved_vcpus = reserved_vcpus + taken.vcpus, reserved_memory_mb = reserved_memory_mb + taken.memory_mb
         FROM taken WHERE hosts.id = taken.host_id",
        id
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Renews the lease of a transitional status; false if the row has changed.
pub(crate) async fn renew(db: &PgPool, row: &Known, lease: Duration) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE sandboxes SET lease_until = now() + make_interval(secs => $3)
         WHERE id = $1 AND version = $2",
        row.id,
        row.version,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Takes over a transitional status whose lease has expired; false if it has not, or if the row has changed.
pub(crate) async fn take_over(db: &PgPool, row: &Known, lease: Duration) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        "UPDATE sandboxes SET lease_until = now() + make_interval(secs => $3)
         WHERE id = $1 AND version = $2 AND (lease_until IS NULL OR lease_until < now())",
        row.id,
        row.version,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(taken.rows_affected() == 1)
}
