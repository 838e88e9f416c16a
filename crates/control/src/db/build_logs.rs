// SPDX-License-Identifier: Apache-2.0
//! Logs of builds: entries are added by the one worker that has the build, and read in the order of their numbers.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;
use wrenn_api::{BuildLogEntry, BuildStream};

use super::builds::Claim;

/// Maximum number of entries of a read, and the number of bytes of text after which it ends.
const ENTRIES: i64 = 500;
const BYTES: i64 = 1 << 20;

/// An entry to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number of the step; 0 for what concerns the whole build.
    pub(crate) step: i32,
    pub(crate) stream: BuildStream,
    pub(crate) text: String,
    pub(crate) at: DateTime<Utc>,
}

/// Adds entries; false if another worker has the build, or it has ended.
pub(crate) async fn append<'e>(
    db: impl PgExecutor<'e>,
    claim: Claim,
    entries: &[Entry],
) -> sqlx::Result<bool> {
    let steps: Vec<i32> = entries.iter().map(|entry| entry.step).collect();
    let streams: Vec<String> = entries.iter().map(|entry| name(entry.stream).to_owned()).collect();
    let texts: Vec<String> = entries.iter().map(|entry| entry.text.clone()).collect();
    let times: Vec<DateTime<Utc>> = entries.iter().map(|entry| entry.at).collect();
    let added = sqlx::query!(
        "INSERT INTO build_logs (build_id, step, stream, text, at)
         SELECT $1, e.step, e.stream, e.text, e.at
         FROM unnest($3::integer[], $4::text[], $5::text[], $6::timestamptz[])
             WITH ORDINALITY AS e (step, stream, text, at, place)
         WHERE EXISTS (SELECT 1 FROM builds WHERE id = $1 AND token = $2 AND status = 'running')
         ORDER BY e.place",
        claim.id,
        claim.token,
        &steps[..],
        &streams[..],
        &texts[..],
        &times[..]
    )
    .execute(db)
    .await?;
    Ok(added.rows_affected() == entries.len() as u64)
}

/// Reads the entries after `after`, of all steps or of one, the oldest first: at most 500, and about a MiB.
pub(crate) async fn read(
    db: &PgPool,
    build: Uuid,
    after: i64,
    step: Option<i32>,
) -> sqlx::Result<Vec<BuildLogEntry>> {
    let rows = sqlx::query!(
        r#"SELECT p.entry AS "entry!", p.step AS "step!", p.stream AS "stream!", p.text AS "text!", p.at AS "at!"
         FROM (SELECT e.entry, e.step, e.stream, e.text, e.at,
                 sum(octet_length(e.text)) OVER (ORDER BY e.entry) - octet_length(e.text) AS before
             FROM (SELECT entry, step, stream, text, at FROM build_logs
                 WHERE build_id = $1 AND entry > $2 AND ($3::integer IS NULL OR step = $3)
                 ORDER BY entry LIMIT $4) AS e) AS p
         WHERE p.before < $5 ORDER BY p.entry"#,
        build,
        after,
        step,
        ENTRIES,
        BYTES
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| BuildLogEntry {
            offset: row.entry,
            step: row.step as u32,
            stream: stream(&row.stream),
            text: row.text,
            at: row.at,
        })
        .collect())
}

/// The stream as it stands in the database.
const fn name(stream: BuildStream) -> &'static str {
    match stream {
        BuildStream::Stdout => "stdout",
        BuildStream::Stderr => "stderr",
        BuildStream::System => "system",
    }
}

fn stream(name: &str) -> BuildStream {
    match name {
        "stdout" => BuildStream::Stdout,
        "stderr" => BuildStream::Stderr,
        _ => BuildStream::System,
    }
}
