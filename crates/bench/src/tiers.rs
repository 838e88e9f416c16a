// SPDX-License-Identifier: Apache-2.0
//! Time in which the control plane keeps the metrics of a sandbox with full rings, by the statement that a pause runs.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use sqlx::PgPool;
use wrenn_api::SandboxId;
use wrenn_control::measured::keep_metrics_of_a_day;
use wrenn_testkit::Stack;

use crate::{control_plane::database_url, row::Row};

const ROUNDS: usize = 20;
/// Number of points that the rings of a sandbox have after a day: 10 minutes of measurements, 2 hours of averages of 30 seconds, and a
/// day of those of 5 minutes.
const POINTS: u64 = 1200 + 240 + 288;

/// Keeps them as of a sandbox of which none were kept before.
pub(crate) async fn kept(stack: &Stack) -> Result<Row> {
    let id = stack.api.create(&json!({})).await?;
    let sandbox: SandboxId = id.parse()?;
    let db = PgPool::connect(&database_url(&stack.state_dir, "wrenn")).await?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        stack.sql("DELETE FROM metrics_points")?;
        let begin = Instant::now();
        let kept = keep_metrics_of_a_day(&db, sandbox).await?;
        times.push(begin.elapsed());
        ensure!(kept == POINTS, "{kept} points were kept, and not {POINTS}");
    }
    db.close().await;
    stack.api.remove(&id).await?;
    Ok(Row::time("keeping the metrics of a sandbox of a day, one statement (ms)", &times, 100.0))
}
