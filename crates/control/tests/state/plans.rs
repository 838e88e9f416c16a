// SPDX-License-Identifier: Apache-2.0
//! Plans of all statements of the control plane, with 10,000 rows of 100 teams in each large table: none reads a whole one. The
//! statements are those of `.sqlx`, so that a new one cannot be forgotten.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use wrenn_control::Admin;

use crate::stores::Stores;

/// Tables that have few rows however much there is of everything else: one row, a row for each host, or what is about to go.
const SMALL: &str = "_sqlx_migrations fleet hosts signing_keys outbox doomed_images";
/// Rows from which on a table counts as large.
const LARGE: f32 = 1000.0;
/// Statements of the upkeep, by their beginnings, which look at a good part of a table on purpose, or of which the planner must think
/// that they do, because the number of rows that they take is a parameter. They need an index all the same.
const UPKEEP: [&str; 18] = [
    "UPDATE snapshots SET status = 'deleting'",
    "WITH gone AS ( DELETE FROM images WHERE",
    "DELETE FROM image_removals WHERE ends_at <",
    "SELECT status, count(*) AS \"count!\" FROM sandboxes",
    "DELETE FROM builds WHERE id IN (",
    "SELECT s.id FROM snapshots s WHERE s.name IS NULL AND s.status = 'ready'",
    "DELETE FROM layers WHERE (team_id, key) IN (",
    "DELETE FROM idempotency_keys WHERE created_at <",
    "UPDATE audit_log SET place",
    "DELETE FROM audit_log WHERE id IN (",
    "WITH next AS ( UPDATE usage_summed",
    "DELETE FROM usage_spans WHERE",
    "UPDATE deliveries SET status = 'failed'",
    "DELETE FROM deliveries WHERE id IN (",
    // All artifacts are held against what needs them, and the copies of each host against its cache.
    "UPDATE stored SET state = 'doomed', tries = 0 WHERE state <> 'doomed'",
    "UPDATE copies SET state = 'doomed' WHERE (state = 'ready' OR state = 'fetching') AND CASE kind",
    "WITH ranked AS ( SELECT artifact_id, host_id, last_used_at",
    // Of all teams, for administrators: any filter may be there, or none.
    "SELECT id, place AS \"place!\", at, team_id, actor_kind",
];

/// A statement, and the number of its parameters.
struct Statement {
    sql: String,
    /// The same with single spaces.
    text: String,
    parameters: usize,
}

/// Every statement finds its rows by an index.
pub(crate) async fn no_statement_reads_a_whole_table(stores: &Arc<Stores>, name: &str) -> Result<()> {
    stores.create(name).await?;
    Admin::new(&stores.database_url(name))?.migrate().await?;
    stores.execute(name, &format!("SET plans.small = '{SMALL}'; {}", include_str!("plans.sql"))).await?;
    let large = large(stores, name).await?;
    ensure!(large.len() >= 15 && large.contains("sandboxes"), "few tables were filled: {large:?}");
    let mut connection = stores.connect(name).await?;
    // As after some executions of a prepared statement.
    run(&mut connection, "SET plan_cache_mode = force_generic_plan").await?;
    let mut found = Vec::new();
    for statement in statements()? {
        let plan = plan(&mut connection, &statement).await;
        let plan = plan.with_context(|| format!("run `make sqlx`? {}", statement.text))?;
        let Some(table) = read_whole(&plan, &large) else { continue };
        if UPKEEP.iter().any(|begin| statement.text.starts_with(begin)) {
            run(&mut connection, "SET enable_seqscan = off").await?;
            let by_index = self::plan(&mut connection, &statement).await?;
            run(&mut connection, "SET enable_seqscan = on").await?;
            if read_whole(&by_index, &large).is_none() {
                continue;
            }
        }
        found.push(format!("{table}: {}", statement.text));
    }
    ensure!(found.is_empty(), "{} statements have no index to use:\n{}", found.len(), found.join("\n"));
    Ok(())
}

/// Reads the statements that have a plan.
fn statements() -> Result<Vec<Statement>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.sqlx");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let described: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let sql = described["query"].as_str().context("no statement")?.to_owned();
        let text = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let parameters = described["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        if ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].iter().any(|word| text.starts_with(word)) {
            all.push(Statement { sql, text, parameters });
        }
    }
    ensure!(all.len() >= 100, "{} statements in {}", all.len(), dir.display());
    Ok(all)
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await?;
    Ok(())
}

/// Names of the tables that have many rows.
async fn large(stores: &Stores, name: &str) -> Result<BTreeSet<String>> {
    let query = format!(
        "SELECT relname::text FROM pg_class
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples >= {LARGE}"
    );
    Ok(stores.column(name, &query).await?.into_iter().collect())
}

/// Returns the plan of a statement for any values of its parameters.
async fn plan(connection: &mut PgConnection, statement: &Statement) -> Result<Value> {
    run(connection, &format!("PREPARE planned AS {}", statement.sql)).await?;
    let values = vec!["NULL"; statement.parameters].join(", ");
    let values = if values.is_empty() { values } else { format!("({values})") };
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE planned {values}");
    let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *connection).await?;
    let plan = row.try_get::<Value, _>(0)?;
    run(connection, "DEALLOCATE planned").await?;
    Ok(plan[0]["Plan"].clone())
}

/// Returns a large table that a plan reads as a whole, if there is one.
fn read_whole<'a>(plan: &'a Value, large: &BTreeSet<String>) -> Option<&'a str> {
    let table = plan["Relation Name"].as_str().filter(|_| plan["Node Type"] == "Seq Scan");
    let parts = plan["Plans"].as_array().into_iter().flatten();
    table
        .filter(|table| large.contains(*table))
        .or_else(|| parts.into_iter().find_map(|part| read_whole(part, large)))
}
