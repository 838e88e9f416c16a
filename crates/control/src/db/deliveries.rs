// SPDX-License-Identifier: Apache-2.0
//! Deliveries of events to channels. What waits for one subject of a channel is a lane: one server works on it at a time, and
//! on its oldest delivery. Lanes are changed only with the row of their channel locked, so that nothing is left in a lane that
//! is gone.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// What a server is to do next.
pub(crate) enum Next {
    /// A delivery.
    Job(Box<Job>),
    /// Nothing of the channel that was looked at; another one may have something.
    Other,
    /// Nothing at all.
    Nothing,
}

/// A delivery that a server works on.
pub(crate) struct Job {
    pub(crate) id: Uuid,
    pub(crate) channel_id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) provider: String,
    pub(crate) config: Vec<u8>,
    pub(crate) key_number: i32,
    pub(crate) subject: String,
    pub(crate) occurrence: Uuid,
    pub(crate) payload: serde_json::Value,
    /// Number of this attempt, from 1.
    pub(crate) attempt: i32,
    lease: Uuid,
}

/// How an attempt ended.
pub(crate) enum Ended<'a> {
    /// The receiver took it.
    Delivered { status: u16 },
    /// It failed.
    Failed {
        status: Option<u16>,
        error: &'a str,
        /// Time until the next attempt.
        again: Duration,
        /// Whether the receiver is left alone with all other deliveries, too.
        is_down: bool,
    },
}

/// A channel that has something to do.
struct Due {
    id: Uuid,
    team_id: Uuid,
    provider: String,
    config: Vec<u8>,
    key_number: i32,
    failures: i32,
}

/// Adds what channels want of these entries of the outbox; returns the channels.
pub(crate) async fn fan_out(tx: &mut PgConnection, outbox: &[i64]) -> sqlx::Result<Vec<Uuid>> {
    // In one order, and before the lanes.
    let channels = sqlx::query_scalar!(
        "SELECT c.id FROM channels c WHERE c.team_id IN (SELECT o.team_id FROM outbox o WHERE o.id = ANY($1))
         ORDER BY c.id FOR NO KEY UPDATE",
        outbox
    )
    .fetch_all(&mut *tx)
    .await?;
    if channels.is_empty() {
        return Ok(channels);
    }
    sqlx::query!(
        r#"WITH added AS (
             INSERT INTO deliveries (channel_id, occurrence, sequence, subject, event, payload)
             SELECT c.id, o.occurrence, o.id,
                 coalesce(o.event #>> '{sandbox,id}', o.event #>> '{snapshot,name}', o.event #>> '{host,id}', ''),
                 o.event ->> 'type', o.event
             FROM outbox o JOIN channels c ON c.team_id = o.team_id AND o.event ->> 'type' = ANY(c.events)
             WHERE o.id = ANY($1)
             ON CONFLICT (channel_id, sequence) DO NOTHING
             RETURNING channel_id, subject)
         INSERT INTO channel_lanes (channel_id, subject, at) SELECT DISTINCT channel_id, subject, now() FROM added
         ON CONFLICT (channel_id, subject) DO NOTHING"#,
        outbox
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query_scalar!(
        "UPDATE channels c SET due_at = least(c.due_at, greatest(now(), c.retry_at))
         WHERE c.id = ANY($1)
             AND EXISTS (SELECT FROM deliveries d WHERE d.channel_id = c.id AND d.sequence = ANY($2))
         RETURNING c.id",
        &channels[..],
        outbox
    )
    .fetch_all(tx)
    .await
}

/// Claims a delivery for so long. A channel has at most `at_once` in work, and one while its receiver fails.
pub(crate) async fn claim(db: &PgPool, lease: Duration, at_once: i64) -> sqlx::Result<Next> {
    let mut tx = db.begin().await?;
    let due = sqlx::query_as!(
        Due,
        "SELECT id, team_id, provider, config, key_number, failures FROM channels WHERE due_at <= now()
         ORDER BY due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(due) = due else { return Ok(Next::Nothing) };
    let in_work = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM channel_lanes WHERE channel_id = $1 AND lease IS NOT NULL AND at > now()"#,
        due.id
    )
    .fetch_one(&mut *tx)
    .await?;
    let most = if due.failures > 0 { 1 } else { at_once };
    let id = due.id;
    let job = if in_work < most { take(&mut tx, due, lease).await? } else { None };
    plan(&mut tx, id, at_once).await?;
    tx.commit().await?;
    Ok(job.map_or(Next::Other, |job| Next::Job(Box::new(job))))
}

/// Takes the oldest delivery of the lane that has waited for longest; removes the lane if it is empty.
async fn take(tx: &mut PgConnection, due: Due, lease: Duration) -> sqlx::Result<Option<Job>> {
    let subject = sqlx::query_scalar!(
        "SELECT subject FROM channel_lanes WHERE channel_id = $1 AND at <= now() ORDER BY at LIMIT 1",
        due.id
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(subject) = subject else { return Ok(None) };
    let oldest = sqlx::query!(
        "UPDATE deliveries SET attempts = attempts + 1, attempted_at = now() WHERE id = (
             SELECT d.id FROM deliveries d WHERE d.channel_id = $1 AND d.subject = $2 AND d.status = 'pending'
             ORDER BY d.sequence LIMIT 1)
         RETURNING id, occurrence, payload, attempts",
        due.id,
        subject
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(oldest) = oldest else {
        sqlx::query!("DELETE FROM channel_lanes WHERE channel_id = $1 AND subject = $2", due.id, subject)
            .execute(tx)
            .await?;
        return Ok(None);
    };
    let token = Uuid::now_v7();
    sqlx::query!(
        "UPDATE channel_lanes SET at = now() + make_interval(secs => $3), lease = $4 WHERE channel_id = $1 AND subject = $2",
        due.id,
        subject,
        lease.as_secs_f64(),
        token
    )
    .execute(tx)
    .await?;
    let Due { id: channel_id, team_id, provider, config, key_number, failures: _ } = due;
    Ok(Some(Job {
        id: oldest.id,
        channel_id,
        team_id,
        provider,
        config,
        key_number,
        subject,
        occurrence: oldest.occurrence,
        payload: oldest.payload,
        attempt: oldest.attempts,
        lease: token,
    }))
}

/// Sets when a channel has something to do next. Its row is locked.
async fn plan(tx: &mut PgConnection, channel: Uuid, at_once: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE channels c SET due_at = CASE
             WHEN (SELECT count(*) FROM channel_lanes l WHERE l.channel_id = $1 AND l.lease IS NOT NULL AND l.at > now())
                 >= CASE WHEN c.failures > 0 THEN 1 ELSE $2::bigint END
             THEN (SELECT min(l.at) FROM channel_lanes l WHERE l.channel_id = $1 AND l.lease IS NOT NULL AND l.at > now())
             ELSE (SELECT greatest(l.at, c.retry_at) FROM channel_lanes l WHERE l.channel_id = $1 ORDER BY l.at LIMIT 1)
             END
         WHERE c.id = $1",
        channel,
        at_once
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Records the end of an attempt; false, and without effect, if its lease was taken over or the channel is gone. A receiver that
/// fails is left alone for `rest(failures)`; when one is back after more than `outage` failures, all that waits for it is tried at
/// once.
pub(crate) async fn settle(
    db: &PgPool,
    job: &Job,
    ended: &Ended<'_>,
    rest: impl Fn(i32) -> Duration,
    (outage, at_once): (i32, i64),
) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let failures =
        sqlx::query_scalar!("SELECT failures FROM channels WHERE id = $1 FOR NO KEY UPDATE", job.channel_id)
            .fetch_optional(&mut *tx)
            .await?;
    // The channel was deleted meanwhile.
    let Some(failures) = failures else { return Ok(false) };
    let after = match ended {
        Ended::Delivered { .. } => Duration::ZERO,
        Ended::Failed { again, .. } => *again,
    };
    if !release(&mut tx, job, after).await? {
        return Ok(false);
    }
    match ended {
        Ended::Delivered { status } => {
            delivered(&mut tx, job, *status).await?;
            if failures > 0 {
                recovered(&mut tx, job.channel_id, failures > outage).await?;
            }
        }
        Ended::Failed { status, error, again, is_down } => {
            failed(&mut tx, job.id, *status, error).await?;
            if *is_down {
                let failures = failures.saturating_add(1);
                leave_alone(&mut tx, job.channel_id, failures, rest(failures).max(*again)).await?;
            }
        }
    }
    plan(&mut tx, job.channel_id, at_once).await?;
    tx.commit().await?;
    Ok(true)
}

/// Ends the lease of a lane, which is next worked on after a while; false if the job has it no more.
async fn release(tx: &mut PgConnection, job: &Job, after: Duration) -> sqlx::Result<bool> {
    let released = sqlx::query!(
        "UPDATE channel_lanes SET lease = NULL, at = now() + make_interval(secs => $4)
         WHERE channel_id = $1 AND subject = $2 AND lease = $3",
        job.channel_id,
        job.subject,
        job.lease,
        after.as_secs_f64()
    )
    .execute(tx)
    .await?;
    Ok(released.rows_affected() == 1)
}

/// Records that the receiver took a delivery; removes its lane if that was the last one.
async fn delivered(tx: &mut PgConnection, job: &Job, status: u16) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE deliveries SET status = 'delivered', response_status = $2, error = NULL, ended_at = now() WHERE id = $1",
        job.id,
        i32::from(status)
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "DELETE FROM channel_lanes l WHERE l.channel_id = $1 AND l.subject = $2 AND NOT EXISTS (
             SELECT FROM deliveries d WHERE d.channel_id = $1 AND d.subject = $2 AND d.status = 'pending')",
        job.channel_id,
        job.subject
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Records why a delivery failed.
async fn failed(tx: &mut PgConnection, id: Uuid, status: Option<u16>, error: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE deliveries SET response_status = $2, error = $3 WHERE id = $1 AND status = 'pending'",
        id,
        status.map(i32::from),
        error
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Records that a receiver is back.
async fn recovered(tx: &mut PgConnection, channel: Uuid, all_at_once: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE channels SET failures = 0, failing_since = NULL, retry_at = NULL WHERE id = $1",
        channel
    )
    .execute(&mut *tx)
    .await?;
    if all_at_once {
        sqlx::query!(
            "UPDATE channel_lanes SET at = now() WHERE channel_id = $1 AND lease IS NULL AND at > now()",
            channel
        )
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// Records that a receiver fails.
async fn leave_alone(
    tx: &mut PgConnection,
    channel: Uuid,
    failures: i32,
    rest: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE channels SET failures = $2, failing_since = coalesce(failing_since, now()),
             retry_at = now() + make_interval(secs => $3)
         WHERE id = $1",
        channel,
        failures,
        rest.as_secs_f64()
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Makes all that waits for a channel due now, and takes it from those who work on it. The row of the channel is locked.
pub(crate) async fn hurry(tx: &mut PgConnection, channel: Uuid, at_once: i64) -> sqlx::Result<()> {
    sqlx::query!("UPDATE channel_lanes SET at = now(), lease = NULL WHERE channel_id = $1", channel)
        .execute(&mut *tx)
        .await?;
    plan(tx, channel, at_once).await
}

/// Lets a delivery of a team's channel be tried again now; false if there is none.
pub(crate) async fn again(
    db: &PgPool,
    team: Uuid,
    (channel, delivery): (Uuid, Uuid),
    at_once: i64,
) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let channel = sqlx::query_scalar!(
        "UPDATE channels SET retry_at = NULL WHERE id = $1 AND team_id = $2 RETURNING id",
        channel,
        team
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(channel) = channel else { return Ok(false) };
    let subject = sqlx::query_scalar!(
        "UPDATE deliveries SET status = 'pending', attempts = 0, queued_at = now(), ended_at = NULL
         WHERE id = $1 AND channel_id = $2 RETURNING subject",
        delivery,
        channel
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(subject) = subject else { return Ok(false) };
    sqlx::query!(
        "INSERT INTO channel_lanes AS l (channel_id, subject, at) VALUES ($1, $2, now())
         ON CONFLICT (channel_id, subject) DO UPDATE SET at = CASE WHEN l.lease IS NULL THEN now() ELSE l.at END",
        channel,
        subject
    )
    .execute(&mut *tx)
    .await?;
    plan(&mut tx, channel, at_once).await?;
    tx.commit().await?;
    Ok(true)
}
