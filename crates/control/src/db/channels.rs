// SPDX-License-Identifier: Apache-2.0
//! Channels of teams, with their configurations encrypted.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::deliveries;

/// One row of the table, without what is encrypted.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) name: String,
    pub(crate) provider: String,
    pub(crate) events: Vec<String>,
    pub(crate) failing_since: Option<DateTime<Utc>>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}

/// A channel to be inserted.
pub(crate) struct New<'a> {
    pub(crate) id: Uuid,
    pub(crate) team: Uuid,
    pub(crate) name: &'a str,
    pub(crate) provider: &'a str,
    pub(crate) config: &'a [u8],
    pub(crate) key_number: i32,
    pub(crate) events: &'a [String],
}

/// What became of an insert or a change.
#[derive(Debug)]
pub(crate) enum Put {
    Done(Box<Row>),
    /// Another channel of the team has the name.
    NameTaken,
    /// The team has as many as it may.
    TooMany,
    /// There is no such channel.
    Missing,
}

/// An encrypted configuration.
#[expect(clippy::struct_field_names, reason = "its fields are the columns of the query")]
pub(crate) struct Config {
    pub(crate) id: Uuid,
    pub(crate) config: Vec<u8>,
    pub(crate) key_number: i32,
}

/// Selects or returns whole rows: `row!(before, after, arguments)`, with the columns between both texts.
macro_rules! row {
    ($before:literal, $after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            $before
                + " id, team_id, name, provider, events, failing_since, created_at, updated_at "
                + $after,
            $($argument),*
        )
    };
}

/// Inserts a channel, if its team has less than `max`.
pub(crate) async fn insert(db: &PgPool, new: New<'_>, max: i64) -> sqlx::Result<Put> {
    let mut tx = db.begin().await?;
    // One at a time, so that many at once are not more than there may be.
    sqlx::query!("SELECT id FROM teams WHERE id = $1 FOR NO KEY UPDATE", new.team)
        .fetch_optional(&mut *tx)
        .await?;
    let count =
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM channels WHERE team_id = $1"#, new.team)
            .fetch_one(&mut *tx)
            .await?;
    if count >= max {
        return Ok(Put::TooMany);
    }
    let row = row!(
        "INSERT INTO channels (id, team_id, name, provider, config, key_number, events) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (team_id, name) DO NOTHING RETURNING",
        "",
        new.id,
        new.team,
        new.name,
        new.provider,
        new.config,
        new.key_number,
        new.events
    )
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(row.map_or(Put::NameTaken, |row| Put::Done(Box::new(row))))
}

/// Lists a team's channels, the newest first, from the one before `before`.
pub(crate) async fn list(
    db: &PgPool,
    team: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    row!(
        "SELECT",
        "FROM channels WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        team,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Finds a channel of a team.
pub(crate) async fn find(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    row!("SELECT", "FROM channels WHERE id = $2 AND team_id = $1", team, id).fetch_optional(db).await
}

/// Changes name and events of a channel; what is `None` stays.
pub(crate) async fn update(
    db: &PgPool,
    (team, id): (Uuid, Uuid),
    name: Option<&str>,
    events: Option<&[String]>,
) -> sqlx::Result<Put> {
    let updated = row!(
        "UPDATE channels SET name = coalesce($3, name), events = coalesce($4, events), updated_at = now()
         WHERE id = $2 AND team_id = $1 RETURNING",
        "",
        team,
        id,
        name,
        events
    )
    .fetch_optional(db)
    .await;
    match updated {
        Ok(row) => Ok(row.map_or(Put::Missing, |row| Put::Done(Box::new(row)))),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(Put::NameTaken),
        Err(error) => Err(error),
    }
}

/// Replaces the configuration of a channel. All that waits for it is tried at once, at most `at_once` at a time, also what is
/// being sent with the former configuration.
pub(crate) async fn configure(
    db: &PgPool,
    team: Uuid,
    new: &Config,
    at_once: i64,
) -> sqlx::Result<Option<Row>> {
    let mut tx = db.begin().await?;
    let row = row!(
        "UPDATE channels SET config = $3, key_number = $4, updated_at = now(), failures = 0, failing_since = NULL,
             retry_at = NULL
         WHERE id = $2 AND team_id = $1 RETURNING",
        "",
        team,
        new.id,
        new.config,
        new.key_number
    )
    .fetch_optional(&mut *tx)
    .await?;
    if row.is_some() {
        deliveries::hurry(&mut tx, new.id, at_once).await?;
    }
    tx.commit().await?;
    Ok(row)
}

/// Deletes a channel with its deliveries; false if there is none.
pub(crate) async fn delete(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let deleted =
        sqlx::query!("DELETE FROM channels WHERE id = $2 AND team_id = $1", team, id).execute(db).await?;
    Ok(deleted.rows_affected() > 0)
}

/// Returns configurations that are encrypted with another key than this one.
pub(crate) async fn of_other_keys(db: &PgPool, key_number: i32, limit: i64) -> sqlx::Result<Vec<Config>> {
    sqlx::query_as!(
        Config,
        "SELECT id, config, key_number FROM channels WHERE key_number <> $1 ORDER BY key_number, id LIMIT $2",
        key_number,
        limit
    )
    .fetch_all(db)
    .await
}

/// Replaces an encrypted configuration by the same one of another key, unless it was changed meanwhile.
pub(crate) async fn reseal(db: &PgPool, old: &Config, new: &Config) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE channels SET config = $2, key_number = $3 WHERE id = $1 AND config = $4",
        old.id,
        new.config,
        new.key_number,
        old.config
    )
    .execute(db)
    .await
    .map(drop)
}
