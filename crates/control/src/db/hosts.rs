// SPDX-License-Identifier: Apache-2.0
//! Hosts: health, capacity, and candidates for new sandboxes.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::Event;

/// Virtual CPUs per real one: sandboxes mostly wait.
pub(crate) const OVERCOMMIT: i64 = 16;
/// Divisor of a host's memory: this part of it is reserved for the host.
pub(crate) const RESERVE: i64 = 8;
/// Number of consecutive failed creates after which a host is ejected.
const FAILURES: i32 = 3;
/// Duration of an ejection, in which the host gets no creates.
pub(crate) const EJECTED: Duration = Duration::from_secs(60);

/// A host that could take sandboxes, and its reserved resources.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) id: Uuid,
    pub(crate) cpus: i32,
    pub(crate) memory_mb: i64,
    pub(crate) max_sandboxes: i32,
    pub(crate) max_vcpus: i32,
    pub(crate) max_memory_mb: i64,
    pub(crate) max_disk_size_mb: i64,
    pub(crate) templates: Vec<String>,
    /// Digests of its templates, as `NAME@DIGEST`.
    pub(crate) template_digests: Vec<String>,
    pub(crate) ejected: bool,
    pub(crate) reserved_sandboxes: i64,
    pub(crate) reserved_vcpus: i64,
    pub(crate) reserved_memory_mb: i64,
}

/// Registers a host, or updates its address; it counts as online once it has responded there.
pub(crate) async fn register(db: &PgPool, id: Uuid, address: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO hosts (id, address) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET address = $2, status = 'unreachable'",
        id,
        address
    )
    .execute(db)
    .await
    .map(drop)
}

/// Returns the ids of all hosts.
pub(crate) async fn all(db: &PgPool) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!("SELECT id FROM hosts").fetch_all(db).await
}

/// Number of online hosts by VMM driver.
pub(crate) struct Online {
    pub(crate) driver: String,
    pub(crate) security_boundary: bool,
    pub(crate) hosts: i64,
}

/// Counts the online hosts by VMM driver; at most 16 drivers, whatever agents report.
pub(crate) async fn online(db: &PgPool) -> sqlx::Result<Vec<Online>> {
    sqlx::query_as!(
        Online,
        r#"SELECT driver, security_boundary, count(*) AS "hosts!" FROM hosts WHERE status = 'online'
         GROUP BY driver, security_boundary ORDER BY driver, security_boundary LIMIT 16"#
    )
    .fetch_all(db)
    .await
}

/// Address of a host.
pub(crate) async fn address(db: &PgPool, id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT address FROM hosts WHERE id = $1", id).fetch_optional(db).await
}

/// Returns whether a host of the platform has a template of this name.
pub(crate) async fn has_template(db: &PgPool, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM hosts WHERE kind = 'regular' AND $1 = ANY(templates)) AS "has!""#,
        name
    )
    .fetch_one(db)
    .await
}

/// Returns the digest that the template of this name has on most hosts of the platform, first of all on those that are online.
pub(crate) async fn template_digest(db: &PgPool, name: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r#"SELECT split_part(d.named, '@', 2) AS "digest!" FROM hosts h, unnest(h.template_digests) AS d (named)
         WHERE h.kind = 'regular' AND split_part(d.named, '@', 1) = $1
         GROUP BY d.named ORDER BY count(*) FILTER (WHERE h.status = 'online') DESC, count(*) DESC, d.named LIMIT 1"#,
        name
    )
    .fetch_optional(db)
    .await
}

/// Names of the templates on online hosts of the platform, at most 1024.
pub(crate) async fn templates(db: &PgPool) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT unnest(templates) AS "name!" FROM hosts
         WHERE status = 'online' AND kind = 'regular' ORDER BY 1 LIMIT 1024"#
    )
    .fetch_all(db)
    .await
}

/// Returns the online hosts, without locking them.
pub(crate) async fn candidates(db: &PgPool) -> sqlx::Result<Vec<Candidate>> {
    sqlx::query_as!(
        Candidate,
        r#"SELECT id, cpus, memory_mb, max_sandboxes, max_vcpus, max_memory_mb, max_disk_size_mb, templates,
            template_digests, coalesce(ejected_until > now(), false) AS "ejected!",
            reserved_sandboxes, reserved_vcpus, reserved_memory_mb
         FROM hosts WHERE status = 'online' AND kind = 'regular'"#
    )
    .fetch_all(db)
    .await
}

/// Reserves resources for one sandbox if the host still has them, and returns the host's address. They are
/// released when the sandbox is stopped or has failed.
pub(crate) async fn reserve(
    tx: &mut PgConnection,
    id: Uuid,
    vcpus: i32,
    memory_mb: i32,
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "UPDATE hosts SET reserved_sandboxes = reserved_sandboxes + 1, reserved_vcpus = reserved_vcpus + $2,
            reserved_memory_mb = reserved_memory_mb + $3
         WHERE id = $1 AND status = 'online' AND reserved_sandboxes < max_sandboxes
             AND reserved_vcpus + $2 <= cpus::bigint * $4
             AND reserved_memory_mb + $3 <= memory_mb - memory_mb / $5
         RETURNING address",
        id,
        i64::from(vcpus),
        i64::from(memory_mb),
        OVERCOMMIT,
        RESERVE
    )
    .fetch_optional(tx)
    .await
}

/// Recounts the reserved resources of a host, so that errors of the count do not last.
pub(crate) async fn recount(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    // Every change of reservations changes this row, so none is in progress while it is locked.
    sqlx::query_scalar!("SELECT id FROM hosts WHERE id = $1 FOR NO KEY UPDATE", id)
        .fetch_optional(&mut *tx)
        .await?;
    sqlx::query!(
        "UPDATE hosts SET (reserved_sandboxes, reserved_vcpus, reserved_memory_mb) = (
            SELECT count(*), coalesce(sum(vcpus), 0), coalesce(sum(memory_mb), 0) FROM sandboxes
            WHERE host_id = $1 AND reserved AND status NOT IN ('stopped', 'error', 'paused'))
         WHERE id = $1",
        id
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Response of a live agent.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) id: Uuid,
    pub(crate) cpus: i32,
    pub(crate) memory_mb: i64,
    pub(crate) disk_mb: i64,
    pub(crate) disk_free_mb: i64,
    pub(crate) max_sandboxes: i32,
    pub(crate) max_vcpus: i32,
    pub(crate) max_memory_mb: i64,
    pub(crate) max_disk_size_mb: i64,
    pub(crate) templates: &'a [String],
    pub(crate) template_digests: &'a [String],
    pub(crate) agent_version: &'a str,
    pub(crate) driver: &'a str,
    pub(crate) driver_reason: &'a str,
    pub(crate) security_boundary: bool,
    pub(crate) quarantine: &'a str,
}

/// Event of a host of a team: it answers, or does not any more.
fn told(id: Uuid, is_up: bool) -> sqlx::Result<serde_json::Value> {
    let event = Event::host(id.into(), is_up);
    serde_json::to_value(event).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Records that a host responded, and tells its team if it did not before.
pub(crate) async fn seen(db: &PgPool, seen: &Seen<'_>) -> sqlx::Result<()> {
    let event = told(seen.id, true)?;
    sqlx::query!(
        // What reads `old` comes before what changes the row: a row that its own statement has changed cannot be locked any more.
        "WITH old AS (SELECT id, status, team_id FROM hosts WHERE id = $1 FOR NO KEY UPDATE),
            told AS (INSERT INTO outbox (team_id, event)
                SELECT team_id, $17::jsonb FROM old WHERE status <> 'online' AND team_id IS NOT NULL)
         UPDATE hosts SET status = 'online', last_seen_at = now(), cpus = $2, memory_mb = $3, disk_mb = $4,
            disk_free_mb = $5, max_sandboxes = $6, max_vcpus = $7, max_memory_mb = $8, max_disk_size_mb = $9,
            templates = $10, agent_version = $11, driver = $12, driver_reason = $13, security_boundary = $14,
            quarantine = $15, template_digests = $16
         WHERE id = (SELECT id FROM old)",
        seen.id,
        seen.cpus,
        seen.memory_mb,
        seen.disk_mb,
        seen.disk_free_mb,
        seen.max_sandboxes,
        seen.max_vcpus,
        seen.max_memory_mb,
        seen.max_disk_size_mb,
        seen.templates,
        seen.agent_version,
        seen.driver,
        seen.driver_reason,
        seen.security_boundary,
        seen.quarantine,
        seen.template_digests,
        event
    )
    .execute(db)
    .await
    .map(drop)
}

/// Records that a host did not respond; true if it has been silent for so long that it counts as lost, which its team is told.
pub(crate) async fn silent(db: &PgPool, id: Uuid) -> sqlx::Result<bool> {
    let event = told(id, false)?;
    let gone = sqlx::query_scalar!(
        "WITH old AS (SELECT id, status, team_id FROM hosts
                WHERE id = $1 AND coalesce(last_seen_at < now() - interval '10 seconds', true) FOR NO KEY UPDATE),
            told AS (INSERT INTO outbox (team_id, event)
                SELECT team_id, $2::jsonb FROM old WHERE status = 'online' AND team_id IS NOT NULL)
         UPDATE hosts SET status = 'unreachable' WHERE id IN (SELECT id FROM old) RETURNING id",
        id,
        event
    )
    .fetch_optional(db)
    .await?;
    Ok(gone.is_some())
}

/// Records that a host is unreachable, whenever it was seen last, and tells its team.
pub(crate) async fn unreachable(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    let event = told(id, false)?;
    sqlx::query!(
        "WITH old AS (SELECT id, status, team_id FROM hosts WHERE id = $1 FOR NO KEY UPDATE),
            told AS (INSERT INTO outbox (team_id, event)
                SELECT team_id, $2::jsonb FROM old WHERE status = 'online' AND team_id IS NOT NULL)
         UPDATE hosts SET status = 'unreachable' WHERE id = (SELECT id FROM old)",
        id,
        event
    )
    .execute(db)
    .await
    .map(drop)
}

/// Number of hosts by status.
pub(crate) async fn by_status(db: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(r#"SELECT status, count(*) AS "count!" FROM hosts GROUP BY status"#)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}

/// Number of hosts that have quarantined this database and destroy nothing for it.
pub(crate) async fn quarantined(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM hosts WHERE quarantine <> ''"#)
        .fetch_one(db)
        .await
}

/// A host that gets no creates for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ejected {
    /// Number of consecutive failed creates.
    pub(crate) failures: i32,
}

/// Counts a create that failed because of the host; ejects the host for [`EJECTED`] after [`FAILURES`], and
/// after each further one.
pub(crate) async fn create_failed(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Ejected>> {
    let failures = sqlx::query_scalar!(
        "UPDATE hosts SET failed_creates = failed_creates + 1,
            ejected_until = CASE WHEN failed_creates + 1 >= $2 THEN now() + make_interval(secs => $3)
                                 ELSE ejected_until END
         WHERE id = $1 RETURNING failed_creates",
        id,
        FAILURES,
        EJECTED.as_secs_f64()
    )
    .fetch_optional(db)
    .await?;
    Ok(failures.filter(|failures| *failures >= FAILURES).map(|failures| Ejected { failures }))
}

/// Number of hosts that are ejected now.
pub(crate) async fn ejected(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM hosts WHERE ejected_until > now()"#)
        .fetch_one(db)
        .await
}

/// Resets the count of failures after a successful create.
pub(crate) async fn create_succeeded(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE hosts SET failed_creates = 0, ejected_until = NULL WHERE id = $1 AND failed_creates > 0",
        id
    )
    .execute(db)
    .await
    .map(drop)
}
