//! Hosts: health, capacity, and candidates for new sandboxes.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Failed creates in a row after which a host gets no more for a while.
const FAILURES: i32 = 3;
/// Duration of an ejection, in which the host gets no creates.
pub(crate) const EJECTED: Duration = Duration::from_secs(60);

/// Where a host's agent is.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) id: Uuid,
    pub(crate) address: String,
}

/// A host that could take sandboxes, and what it has taken.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) id: Uuid,
    pub(crate) address: String,
    pub(crate) cpus: i32,
    pub(crate) memory_mb: i64,
    pub(crate) max_sandboxes: i32,
    pub(crate) max_vcpus: i32,
    pub(crate) max_memory_mb: i64,
    pub(crate) max_disk_size_mb: i64,
    pub(crate) templates: Vec<String>,
    pub(crate) ejected: bool,
    pub(crate) used_vcpus: i64,
    pub(crate) used_memory_mb: i64,
    pub(crate) used_sandboxes: i64,
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

/// Every host.
pub(crate) async fn all(db: &PgPool) -> sqlx::Result<Vec<Address>> {
    sqlx::query_as!(Address, "SELECT id, address FROM hosts ORDER BY id").fetch_all(db).await
}

/// Number of online hosts.
pub(crate) async fn online(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM hosts WHERE status = 'online'"#)
        .fetch_one(db)
        .await
}

/// Address of a host.
pub(crate) async fn address(db: &PgPool, id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT address FROM hosts WHERE id = $1", id).fetch_optional(db).await
}

/// The hosts that are online, locked so that nobody else places a sandbox at the same time. Sandboxes that
/// failed or are gone hold nothing.
pub(crate) async fn candidates(tx: &mut PgConnection) -> sqlx::Result<Vec<Candidate>> {
    sqlx::query!("SELECT id FROM hosts WHERE status = 'online' ORDER BY id FOR UPDATE")
        .fetch_all(&mut *tx)
        .await?;
    sqlx::query_as!(
        Candidate,
        r#"SELECT h.id, h.address, h.cpus, h.memory_mb, h.max_sandboxes, h.max_vcpus, h.max_memory_mb,
            h.max_disk_size_mb, h.templates,
            coalesce(h.ejected_until > now(), false) AS "ejected!",
            coalesce(sum(s.vcpus), 0)::bigint AS "used_vcpus!",
            coalesce(sum(s.memory_mb), 0)::bigint AS "used_memory_mb!",
            count(s.id) AS "used_sandboxes!"
         FROM hosts h
         LEFT JOIN sandboxes s ON s.host_id = h.id AND s.status IN ('starting', 'running', 'stopping', 'missing')
         WHERE h.status = 'online' AND h.kind = 'regular' GROUP BY h.id"#
    )
    .fetch_all(tx)
    .await
}

/// What a live agent said.
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
    pub(crate) agent_version: &'a str,
    pub(crate) driver: &'a str,
    pub(crate) driver_reason: &'a str,
}

/// Records that a host responded.
pub(crate) async fn seen(db: &PgPool, seen: &Seen<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE hosts SET status = 'online', last_seen_at = now(), cpus = $2, memory_mb = $3, disk_mb = $4,
            disk_free_mb = $5, max_sandboxes = $6, max_vcpus = $7, max_memory_mb = $8, max_disk_size_mb = $9,
            templates = $10, agent_version = $11, driver = $12, driver_reason = $13
         WHERE id = $1",
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
        seen.driver_reason
    )
    .execute(db)
    .await
    .map(drop)
}

/// Records that a host did not respond; true if it has been silent for so long that it counts as lost.
pub(crate) async fn silent(db: &PgPool, id: Uuid) -> sqlx::Result<bool> {
    let gone = sqlx::query_scalar!(
        r#"UPDATE hosts SET status = 'unreachable'
         WHERE id = $1 AND coalesce(last_seen_at < now() - interval '10 seconds', true) RETURNING id"#,
        id
    )
    .fetch_optional(db)
    .await?;
    Ok(gone.is_some())
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
