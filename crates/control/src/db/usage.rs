// SPDX-License-Identifier: Apache-2.0
//! What sandboxes have used. The database notes it itself with each change of a sandbox (see the migration); here it is summed up.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// What was used on a day, in thousandths of seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "its fields are the columns of the query")]
pub(crate) struct Day {
    pub(crate) day: NaiveDate,
    pub(crate) vcpu_ms: i64,
    pub(crate) memory_mb_ms: i64,
    pub(crate) disk_mb_ms: i64,
}

/// How many sandboxes run, and what they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) running: i64,
    pub(crate) vcpus: i64,
    pub(crate) memory_mb: i64,
}

/// The most that there was in a part of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "its fields are the columns of the query")]
pub(crate) struct Part {
    pub(crate) part: i32,
    pub(crate) running: i64,
    pub(crate) vcpus: i64,
    pub(crate) memory_mb: i64,
}

/// Returns what a team used on each of these days: of those that are summed up the sums, otherwise what there is until now.
pub(crate) async fn days(db: &PgPool, team: Uuid, from: NaiveDate, to: NaiveDate) -> sqlx::Result<Vec<Day>> {
    sqlx::query_as!(
        Day,
        r#"WITH days AS (
            SELECT d::date AS day
            FROM generate_series($2::date::timestamp, $3::date::timestamp, interval '1 day') AS d),
         open AS (
            SELECT d.day, sum(s.vcpus * usage_ms(s.began_at, least(s.ended_at, now()), d.day)) AS vcpu_ms,
                sum(s.memory_mb * usage_ms(s.began_at, least(s.ended_at, now()), d.day)) AS memory_mb_ms,
                sum(s.disk_mb * usage_ms(s.began_at, least(s.ended_at, now()), d.day)) AS disk_mb_ms
            FROM usage_summed AS last JOIN days d ON d.day > last.day
            JOIN usage_spans s ON s.team_id = $1 AND s.ended_at > d.day::timestamp AT TIME ZONE 'UTC'
                AND s.began_at < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
            GROUP BY d.day)
         SELECT d.day AS "day!", coalesce(u.vcpu_ms, o.vcpu_ms::bigint, 0) AS "vcpu_ms!",
            coalesce(u.memory_mb_ms, o.memory_mb_ms::bigint, 0) AS "memory_mb_ms!",
            coalesce(u.disk_mb_ms, o.disk_mb_ms::bigint, 0) AS "disk_mb_ms!"
         FROM days d LEFT JOIN usage_days u ON u.team_id = $1 AND u.day = d.day LEFT JOIN open o ON o.day = d.day
         ORDER BY d.day"#,
        team,
        from,
        to
    )
    .fetch_all(db)
    .await
}

/// Sums up the next day that is over, for all teams, and returns it; `None` if there is none. A day counts as over a while after its
/// end, when the last transaction of that day has ended. Of several servers one does it.
pub(crate) async fn sum_up(db: &PgPool) -> sqlx::Result<Option<NaiveDate>> {
    sqlx::query_scalar!(
        r#"WITH next AS (
            UPDATE usage_summed SET day = day + 1
            WHERE (day + 2)::timestamp AT TIME ZONE 'UTC' < now() - interval '10 minutes' RETURNING day),
         sums AS (
            INSERT INTO usage_days (team_id, day, vcpu_ms, memory_mb_ms, disk_mb_ms)
            SELECT s.team_id, next.day, sum(s.vcpus * usage_ms(s.began_at, s.ended_at, next.day))::bigint,
                sum(s.memory_mb * usage_ms(s.began_at, s.ended_at, next.day))::bigint,
                sum(s.disk_mb * usage_ms(s.began_at, s.ended_at, next.day))::bigint
            FROM next JOIN usage_spans s ON s.ended_at > next.day::timestamp AT TIME ZONE 'UTC'
                AND s.began_at < (next.day + 1)::timestamp AT TIME ZONE 'UTC'
            GROUP BY s.team_id, next.day)
         SELECT day AS "day!" FROM next"#
    )
    .fetch_optional(db)
    .await
}

/// Deletes up to `limit` spans that ended so many days ago and are summed up, and sums that are older than ten years. Returns the number
/// of spans.
pub(crate) async fn forget_old(db: &PgPool, days: i32, limit: i64) -> sqlx::Result<u64> {
    sqlx::query!("DELETE FROM usage_days WHERE day < now()::date - 3653").execute(db).await?;
    let forgotten = sqlx::query!(
        "DELETE FROM usage_spans WHERE (sandbox_id, began_at) IN (
            SELECT s.sandbox_id, s.began_at FROM usage_spans s, usage_summed AS last
            WHERE s.ended_at < now() - make_interval(days => $1)
                AND s.ended_at <= (last.day + 1)::timestamp AT TIME ZONE 'UTC'
            ORDER BY s.ended_at LIMIT $2)",
        days,
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Returns what a team has that runs now.
pub(crate) async fn current(db: &PgPool, team: Uuid) -> sqlx::Result<Level> {
    sqlx::query_as!(
        Level,
        r#"SELECT count(*) AS "running!", coalesce(sum(vcpus), 0) AS "vcpus!", coalesce(sum(memory_mb), 0) AS "memory_mb!"
         FROM usage_spans WHERE team_id = $1 AND ended_at = 'infinity' AND vcpus > 0"#,
        team
    )
    .fetch_one(db)
    .await
}

/// Counts a process or a whole sandbox of a team that was killed for want of memory.
pub(crate) async fn count_out_of_memory(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO out_of_memory AS known (team_id, number) VALUES ($1, 1)
         ON CONFLICT (team_id) DO UPDATE SET number = known.number + 1",
        team
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Returns how many of a team were killed for want of memory.
pub(crate) async fn out_of_memory(db: &PgPool, team: Uuid) -> sqlx::Result<i64> {
    let number = sqlx::query_scalar!("SELECT number FROM out_of_memory WHERE team_id = $1", team);
    Ok(number.fetch_optional(db).await?.unwrap_or_default())
}

/// Selects from `levels`, which is what a team had between changes since a time: `levels!(Type, select, team, since, arguments)`.
macro_rules! levels {
    ($type:ident, $select:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            $type,
            "WITH spans AS (
                SELECT greatest(began_at, $2::timestamptz) AS began_at, ended_at, vcpus, memory_mb FROM usage_spans
                WHERE team_id = $1 AND ended_at > $2 AND began_at <= now() AND vcpus > 0),
             changes AS (
                SELECT began_at AS at, 1 AS n, vcpus, memory_mb FROM spans
                UNION ALL SELECT ended_at, -1, -vcpus, -memory_mb FROM spans WHERE ended_at < now()),
             levels AS (
                SELECT at, lead(at, 1, now()) OVER w AS until, (sum(sum(n)) OVER w)::bigint AS running,
                    (sum(sum(vcpus)) OVER w)::bigint AS vcpus, (sum(sum(memory_mb)) OVER w)::bigint AS memory_mb
                FROM changes GROUP BY at WINDOW w AS (ORDER BY at)) " + $select,
            $($argument),*
        )
    };
}

/// Returns the most that a team had at any time since then, of each by itself.
pub(crate) async fn peaks(db: &PgPool, team: Uuid, since: DateTime<Utc>) -> sqlx::Result<Level> {
    levels!(
        Level,
        r#"SELECT coalesce(max(running), 0) AS "running!", coalesce(max(vcpus), 0) AS "vcpus!",
            coalesce(max(memory_mb), 0) AS "memory_mb!" FROM levels"#,
        team,
        since
    )
    .fetch_one(db)
    .await
}

/// Returns the most that a team had in each part of `step` seconds since then. Parts in which it had nothing may not be there.
pub(crate) async fn series(
    db: &PgPool,
    team: Uuid,
    since: DateTime<Utc>,
    step: i32,
    parts: i32,
) -> sqlx::Result<Vec<Part>> {
    levels!(
        Part,
        r#"SELECT part AS "part!", max(running) AS "running!", max(vcpus) AS "vcpus!", max(memory_mb) AS "memory_mb!"
         FROM levels, generate_series(
            floor(extract(epoch FROM at - $2) / $3::integer)::integer,
            least($4::integer, greatest(floor(extract(epoch FROM at - $2) / $3),
                ceil(extract(epoch FROM until - $2) / $3) - 1)::integer + 1) - 1) AS part
         GROUP BY part ORDER BY part"#,
        team,
        since,
        step,
        parts
    )
    .fetch_all(db)
    .await
}
