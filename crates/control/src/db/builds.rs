// SPDX-License-Identifier: Apache-2.0
//! Builds of templates. Who works on a build has its lease and its token, which grows with every worker: each write of a worker
//! names its token, and does nothing once another worker has the build.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{Build, BuildError, BuildStatus, BuildStep, BuildStepStatus};

/// What is known of a build: one row of the table, without what only its worker needs.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) tag: String,
    status: String,
    steps: Value,
    attempt: i32,
    pub(crate) sandbox_id: Option<Uuid>,
    version: Option<i32>,
    error_code: Option<String>,
    error_message: Option<String>,
    error_step: Option<i32>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
}

/// A build that a worker has claimed.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    token: i64,
    pub(crate) attempt: i32,
    pub(crate) name: String,
    pub(crate) tag: String,
    pub(crate) recipe: String,
    pub(crate) base: Value,
    /// Digest of the uploaded files.
    pub(crate) context: Option<String>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) no_cache_from: Option<i32>,
    /// Steps as the worker before left them.
    pub(crate) steps: Value,
    pub(crate) cancel_requested: bool,
}

/// The right of one worker to write to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) id: Uuid,
    pub(crate) token: i64,
}

/// A build to insert.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) recipe: &'a str,
    pub(crate) base: Value,
    pub(crate) context: Option<&'a str>,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) no_cache_from: Option<i32>,
    pub(crate) steps: Value,
    /// Account of the registry of its base, which is dropped by whatever ends the build.
    pub(crate) registry: Option<Value>,
    /// Values of the secrets of its steps, which are dropped in the same way.
    pub(crate) secrets: Option<Value>,
}

/// How a build ended without a version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) status: BuildStatus,
    pub(crate) code: Option<&'a str>,
    pub(crate) message: Option<&'a str>,
    pub(crate) step: Option<i32>,
}

/// What a worker learns when it renews its lease.
#[derive(Debug)]
pub(crate) struct Renewed {
    /// Whether it has not ended: this worker may have recorded its end just now.
    pub(crate) is_running: bool,
    pub(crate) cancel_requested: bool,
    /// Sandbox in which it builds, if it has one by now.
    pub(crate) sandbox_id: Option<Uuid>,
}

/// Selects or returns whole rows: `row!(before, after, arguments)`, with the columns between both texts.
macro_rules! row {
    ($before:literal, $after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            $before
                + " id, name, tag, status, steps, attempt, sandbox_id, version, error_code, error_message, error_step,
                created_at, started_at, ended_at "
                + $after,
            $($argument),*
        )
    };
}

impl Row {
    /// Converts it for the API.
    pub(crate) fn public(&self) -> Build {
        let error = self.error_code.as_ref().map(|code| BuildError {
            code: code.clone(),
            message: self.error_message.clone().unwrap_or_default(),
            step: self.error_step.map(|step| step as u32),
        });
        let status = status(&self.status);
        Build {
            id: self.id.into(),
            name: self.name.clone(),
            tag: self.tag.clone(),
            status,
            attempt: self.attempt as u32,
            steps: steps(&self.steps, status),
            version: self.version.map(|version| version as u32),
            error,
            sandbox_id: self.sandbox_id.map(Into::into),
            created_at: self.created_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }
}

impl Job {
    /// Returns the worker's right to write to the build.
    pub(crate) const fn claim(&self) -> Claim {
        Claim { id: self.id, token: self.token }
    }
}

/// Parses a status of the database; one that this version does not know counts as a failure.
fn status(text: &str) -> BuildStatus {
    use BuildStatus::{Cancelled, Failed, Pending, Running, Succeeded};
    let all = [Pending, Running, Succeeded, Failed, Cancelled];
    all.into_iter().find(|status| status.as_str() == text).unwrap_or(Failed)
}

/// Reads the steps of a build. Of one whose worker died, a step may look as if it were being done.
fn steps(steps: &Value, status: BuildStatus) -> Vec<BuildStep> {
    let mut steps: Vec<BuildStep> = serde_json::from_value(steps.clone()).unwrap_or_default();
    if status.is_final() {
        let left = steps.iter_mut().filter(|step| step.status == BuildStepStatus::Running);
        left.for_each(|step| step.status = BuildStepStatus::Failed);
    }
    steps
}

/// Inserts a pending build.
pub(crate) async fn insert(tx: &mut PgConnection, new: New<'_>) -> sqlx::Result<Row> {
    row!(
        "INSERT INTO builds (id, team_id, name, tag, recipe, base, context, vcpus, memory_mb, disk_size_mb, no_cache_from,
            steps, registry, secrets)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING",
        "",
        new.id,
        new.team_id,
        new.name,
        new.tag,
        new.recipe,
        new.base,
        new.context,
        new.vcpus,
        new.memory_mb,
        new.disk_size_mb,
        new.no_cache_from,
        new.steps,
        new.registry,
        new.secrets
    )
    .fetch_one(tx)
    .await
}

/// Number of a team's builds that have not ended.
pub(crate) async fn count_open(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM builds WHERE team_id = $1 AND status IN ('pending', 'running')"#,
        team
    )
    .fetch_one(tx)
    .await
}

/// Returns a build of a team.
pub(crate) async fn find(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    row!("SELECT", "FROM builds WHERE id = $1 AND team_id = $2", id, team).fetch_optional(db).await
}

/// Lists a team's newest builds, of all templates or of one.
pub(crate) async fn of_team(
    db: &PgPool,
    team: Uuid,
    template: Option<&str>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    row!(
        "SELECT",
        "FROM builds WHERE team_id = $1 AND ($2::text IS NULL OR name = $2) ORDER BY id DESC LIMIT $3",
        team,
        template,
        limit
    )
    .fetch_all(db)
    .await
}

/// Asks that a build of a team is cancelled; one that no worker has is cancelled at once. False if it has ended, or is not there.
pub(crate) async fn cancel(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let asked = sqlx::query!(
        "UPDATE builds SET cancel_requested = true,
            status = CASE WHEN status = 'pending' THEN 'cancelled' ELSE status END,
            registry = CASE WHEN status <> 'pending' THEN registry END,
            secrets = CASE WHEN status <> 'pending' THEN secrets END,
            ended_at = CASE WHEN status = 'pending' THEN now() END
         WHERE id = $1 AND team_id = $2 AND status IN ('pending', 'running')",
        id,
        team
    )
    .execute(db)
    .await?;
    Ok(asked.rows_affected() == 1)
}

/// Number of builds that wait and that are in work.
pub(crate) async fn open_by_status(db: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT status, count(*) AS "count!" FROM builds WHERE status IN ('pending', 'running') GROUP BY status"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}

/// Claims a build that waits, or whose worker's lease has expired, and which was not begun `attempts` times already. The oldest
/// build of the team that has the fewest workers comes first, so that many builds of one team leave the others their turn.
pub(crate) async fn claim(db: &PgPool, attempts: i32, lease: Duration) -> sqlx::Result<Option<Job>> {
    sqlx::query_as!(
        Job,
        "UPDATE builds SET status = 'running', attempt = attempt + 1, token = token + 1,
            lease_until = now() + make_interval(secs => $2), started_at = coalesce(started_at, now())
         WHERE id = (
             SELECT b.id FROM builds b
             WHERE b.status IN ('pending', 'running') AND b.lease_until <= now() AND b.attempt < $1
             ORDER BY (SELECT count(*) FROM builds o
                 WHERE o.team_id = b.team_id AND o.status = 'running' AND o.lease_until > now()), b.id
             LIMIT 1 FOR UPDATE OF b SKIP LOCKED)
         RETURNING id, team_id, token, attempt, name, tag, recipe, base, context, vcpus, memory_mb, disk_size_mb,
             no_cache_from, steps, cancel_requested",
        attempts,
        lease.as_secs_f64()
    )
    .fetch_optional(db)
    .await
}

/// Gives up the builds whose lease has expired and that were begun `attempts` times; returns their ids.
pub(crate) async fn park(db: &PgPool, attempts: i32, code: &str, message: &str) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "UPDATE builds SET status = 'failed', token = token + 1, error_code = $2, error_message = $3, ended_at = now(),
            registry = NULL, secrets = NULL
         WHERE status = 'running' AND lease_until <= now() AND attempt >= $1 RETURNING id",
        attempts,
        code,
        message
    )
    .fetch_all(db)
    .await
}

/// Renews the lease; `None` if another worker has the build.
pub(crate) async fn renew(db: &PgPool, claim: Claim, lease: Duration) -> sqlx::Result<Option<Renewed>> {
    sqlx::query_as!(
        Renewed,
        r#"UPDATE builds SET lease_until = now() + make_interval(secs => $3) WHERE id = $1 AND token = $2
         RETURNING status = 'running' AS "is_running!", cancel_requested, sandbox_id"#,
        claim.id,
        claim.token,
        lease.as_secs_f64()
    )
    .fetch_optional(db)
    .await
}

/// Gives a build back that a worker has begun and cannot go on with, as if it had not begun it.
pub(crate) async fn release(db: &PgPool, claim: Claim) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE builds SET status = 'pending', attempt = attempt - 1, lease_until = now()
         WHERE id = $1 AND token = $2 AND status = 'running'",
        claim.id,
        claim.token
    )
    .execute(db)
    .await
    .map(drop)
}

/// Lets another attempt begin after this time.
pub(crate) async fn put_off(db: &PgPool, claim: Claim, time: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE builds SET lease_until = now() + make_interval(secs => $3)
         WHERE id = $1 AND token = $2 AND status = 'running'",
        claim.id,
        claim.token,
        time.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Records how far the steps are, and the sandbox; false if another worker has the build.
pub(crate) async fn progress(
    db: &PgPool,
    claim: Claim,
    steps: Value,
    sandbox: Option<Uuid>,
) -> sqlx::Result<bool> {
    let recorded = sqlx::query!(
        "UPDATE builds SET steps = $3, sandbox_id = coalesce($4, sandbox_id)
         WHERE id = $1 AND token = $2 AND status = 'running'",
        claim.id,
        claim.token,
        steps,
        sandbox
    )
    .execute(db)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Returns the account of the registry of the base, if the build has one and this worker still has the build.
pub(crate) async fn registry(db: &PgPool, claim: Claim) -> sqlx::Result<Option<Value>> {
    let found = sqlx::query_scalar!(
        "SELECT registry FROM builds WHERE id = $1 AND token = $2",
        claim.id,
        claim.token
    )
    .fetch_optional(db)
    .await?;
    Ok(found.flatten())
}

/// Returns the values of the secrets of the steps, if the build has some and this worker still has the build.
pub(crate) async fn secrets(db: &PgPool, claim: Claim) -> sqlx::Result<Option<Value>> {
    let found =
        sqlx::query_scalar!("SELECT secrets FROM builds WHERE id = $1 AND token = $2", claim.id, claim.token)
            .fetch_optional(db)
            .await?;
    Ok(found.flatten())
}

/// Records what the base has turned out to be, and the size of the disk that it needs; false if another worker has the build.
pub(crate) async fn pin(db: &PgPool, claim: Claim, base: Value, disk_size_mb: i32) -> sqlx::Result<bool> {
    let pinned = sqlx::query!(
        "UPDATE builds SET base = $3, disk_size_mb = $4 WHERE id = $1 AND token = $2 AND status = 'running'",
        claim.id,
        claim.token,
        base,
        disk_size_mb
    )
    .execute(db)
    .await?;
    Ok(pinned.rows_affected() == 1)
}

/// Digest that the base of this kind and name had when the template was last built from it, before this build.
pub(crate) async fn digest_before(
    db: &PgPool,
    team: Uuid,
    build: Uuid,
    name: &str,
    (kind, base): (&str, &str),
) -> sqlx::Result<Option<String>> {
    let found = sqlx::query_scalar!(
        "SELECT base ->> 'digest' FROM builds
         WHERE team_id = $1 AND id < $2 AND name = $3 AND base ->> 'kind' = $4
             AND coalesce(base ->> 'reference', base ->> 'name') = $5 AND base ->> 'digest' IS NOT NULL
         ORDER BY id DESC LIMIT 1",
        team,
        build,
        name,
        kind,
        base
    )
    .fetch_optional(db)
    .await?;
    Ok(found.flatten())
}

/// Records that a build ended without a version; false if another worker has it.
pub(crate) async fn end(db: &PgPool, claim: Claim, steps: Value, end: End<'_>) -> sqlx::Result<bool> {
    let ended = sqlx::query!(
        "UPDATE builds SET status = $3, steps = $4, error_code = $5, error_message = $6, error_step = $7, ended_at = now(),
            registry = NULL, secrets = NULL
         WHERE id = $1 AND token = $2 AND status = 'running'",
        claim.id,
        claim.token,
        end.status.as_str(),
        steps,
        end.code,
        end.message,
        end.step
    )
    .execute(db)
    .await?;
    Ok(ended.rows_affected() == 1)
}

/// Keeps the build for this worker until the transaction ends, and tells whether it is to be cancelled; `None` if another one has
/// it.
pub(crate) async fn hold(tx: &mut PgConnection, claim: Claim) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar!(
        "SELECT cancel_requested FROM builds WHERE id = $1 AND token = $2 AND status = 'running' FOR UPDATE",
        claim.id,
        claim.token
    )
    .fetch_optional(tx)
    .await
}

/// Records that a build which is held in this transaction has made this version.
pub(crate) async fn succeed(
    tx: &mut PgConnection,
    claim: Claim,
    steps: Value,
    version: i32,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE builds SET status = 'succeeded', steps = $2, version = $3, ended_at = now(), registry = NULL, secrets = NULL
         WHERE id = $1",
        claim.id,
        steps,
        version
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Notes an image that is about to be made as one that is to be removed, but not before `limit` is over: if its worker dies, it
/// is removed then. Returns that time.
pub(crate) async fn begin_image(
    db: &PgPool,
    image: Uuid,
    host: Uuid,
    limit: Duration,
) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(
        "INSERT INTO doomed_images (image_id, host_id, lease_until) VALUES ($1, $2, now() + make_interval(secs => $3))
         RETURNING lease_until",
        image,
        host,
        limit.as_secs_f64()
    )
    .fetch_one(db)
    .await
}

/// Takes back that an image is to be removed; false if somebody has begun to remove it, who then has changed the time.
pub(crate) async fn keep_image(
    tx: &mut PgConnection,
    image: Uuid,
    until: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let kept =
        sqlx::query!("DELETE FROM doomed_images WHERE image_id = $1 AND lease_until = $2", image, until)
            .execute(tx)
            .await?;
    Ok(kept.rows_affected() == 1)
}

/// Digests of the uploaded files that builds need which have not ended.
pub(crate) async fn contexts_in_use(db: &PgPool) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT context AS "context!" FROM builds
         WHERE status IN ('pending', 'running') AND context IS NOT NULL"#
    )
    .fetch_all(db)
    .await
}

/// Deletes up to `limit` builds that ended longer ago than `age`, with their logs; returns their number.
pub(crate) async fn forget_ended(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM builds WHERE id IN (
            SELECT id FROM builds WHERE ended_at < now() - make_interval(secs => $1) ORDER BY id LIMIT $2)",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}
