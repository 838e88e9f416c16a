// SPDX-License-Identifier: Apache-2.0
//! Starts of sandboxes by day: summed up by a worker, which one server at a time runs, and listed by a route.

use std::time::Duration;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use wrenn_control::{Caller, Fault, Services};

/// Interval between rounds of the worker.
const ROUND: Duration = Duration::from_secs(1);
/// Sums up what was recorded since the last round.
const SUM_UP: &str = "WITH summed AS (DELETE FROM enterprise.starts RETURNING team_id, at)
    INSERT INTO enterprise.daily_starts (team_id, day, starts)
        SELECT team_id, (at AT TIME ZONE 'UTC')::date, count(*) FROM summed GROUP BY 1, 2
    ON CONFLICT (team_id, day) DO UPDATE SET starts = daily_starts.starts + excluded.starts";

/// Starts of one day.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"day": "2026-01-31", "starts": 12}))]
pub(crate) struct Starts {
    /// The day, in UTC.
    day: String,
    /// How many sandboxes were started or resumed.
    starts: i64,
}

/// List the starts of the team's sandboxes of the last 100 days that had one, newest first.
#[utoipa::path(
    get,
    path = "/v1/enterprise/starts",
    operation_id = "listStarts",
    tag = "enterprise",
    responses((status = 200, body = Vec<Starts>))
)]
pub(crate) async fn list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Starts>>, Fault> {
    let days = sqlx::query_as::<_, (String, i64)>(
        "SELECT day::text, starts FROM enterprise.daily_starts WHERE team_id = $1 ORDER BY day DESC LIMIT 100",
    )
    .bind(caller.team().uuid())
    .fetch_all(services.database())
    .await?;
    Ok(Json(days.into_iter().map(|(day, starts)| Starts { day, starts }).collect()))
}

/// Sums up the starts until the server stops.
pub(crate) async fn sum_up(services: Services) {
    while !services.shutdown().is_cancelled() {
        if let Err(error) = sqlx::query(SUM_UP).execute(services.database()).await {
            tracing::warn!(%error, "the starts of sandboxes are not summed up; they wait for the next round");
        }
        tokio::time::sleep(ROUND).await;
    }
}
