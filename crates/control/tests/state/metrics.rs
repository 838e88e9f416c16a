// SPDX-License-Identifier: Apache-2.0
//! Cases of the metrics of sandboxes: those that run have theirs on their host, those that are paused in the database, and of those
//! that were deleted the tier of a day stays there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::{MetricsRange, SandboxId};
use wrenn_control::Limits;
use wrenn_rpc::host::v1::SandboxState;

use crate::{
    agent::metrics::BEGIN,
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Points of the tiers that the simulated agent has: as many as each has minutes, and no more than are taken.
const TIERS: &str = "10m 10, 24h 1200, 2h 120";

/// Tiers that are kept of a sandbox, with the number of their points.
fn tiers_of(id: &str) -> Result<String> {
    let uuid = id.parse::<SandboxId>()?.uuid();
    Ok(format!(
        "SELECT coalesce(string_agg(tier || ' ' || points, ', ' ORDER BY tier), 'none') FROM (
            SELECT tier, count(*) AS points FROM metrics_points WHERE sandbox_id = '{uuid}' GROUP BY tier) AS t"
    ))
}

/// Asks for the metrics of a range, and returns them with the number of points.
async fn asked(fixture: &Fixture, id: &str, range: &str) -> Result<(Value, usize)> {
    let told = fixture.api.get(&format!("/v1/sandboxes/{id}/metrics?range={range}")).await?;
    let told = told.expect(200).with_context(|| range.to_owned())?.json();
    ensure!(told["sandbox_id"] == id && told["range"] == range, "{told}");
    let points = told["points"].as_array().context("no points")?.len();
    Ok((told, points))
}

/// Each range is asked of the host of a sandbox that runs, and read from the database once it is paused, with the same points;
/// another one is refused with those that there are.
pub(crate) async fn each_range_is_asked_of_the_host(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (runs, paused) = (fixture.create().await?, fixture.create().await?);
    fixture.pause(&paused).await?;
    for id in [&runs, &paused] {
        for range in MetricsRange::ALL {
            // More than there can be are not taken.
            let expected = (range.seconds() as usize / 60).min(1200);
            let (_, points) = asked(&fixture, id, range.as_str()).await?;
            ensure!(points == expected, "{range:?}: {points}");
        }
        let path = format!("/v1/sandboxes/{id}/metrics");
        let default = fixture.api.get(&path).await?.expect(200)?.json();
        let points = default["points"].as_array().map(Vec::len);
        ensure!(default["range"] == "10m" && points == Some(10), "{default}");
        let expected = json!({
            "timestamp_unix": BEGIN + 180, "cpu_pct": 30.03, "mem_bytes": 3 << 20, "disk_bytes": 3 << 12,
            "net_rx_bytes": 9, "net_tx_bytes": 6, "guest_mem_used_bytes": 3, "guest_mem_total_bytes": 100
        });
        ensure!(default["points"][3] == expected, "{default}");
        let (more, _) = asked(&fixture, id, "1h").await?;
        ensure!(more["points"][59]["cpu_pct"] == 100.0, "{more}");
        let all = "it must be one of 5m, 10m, 1h, 2h, 6h, 12h, 24h";
        for (query, why) in [
            ("range=7d", all),
            ("range=", all),
            ("range=600", all),
            ("range=10m&range=10m", "range is there twice"),
            ("since=10m", "there are range"),
        ] {
            let refused = fixture.api.get(&format!("{path}?{query}")).await?;
            let told = refused.expect_error(400, "invalid_request").with_context(|| query.to_owned())?.json();
            let message = told["error"]["message"].as_str().unwrap_or_default();
            ensure!(message.contains(why), "{query}: {message}");
        }
    }
    let of_running = fixture.agent().metrics_asked(&runs);
    ensure!(of_running == [300, 600, 3600, 7200, 21_600, 43_200, 86_400, 600, 3600], "{of_running:?}");
    let mut of_paused = fixture.agent().metrics_asked(&paused);
    of_paused.sort_unstable();
    of_paused.dedup();
    ensure!(of_paused == [600, 7200, 86_400], "it was asked again: {of_paused:?}");
    fixture.stop().await
}

/// A pause keeps all tiers, which are told while the host is away; a delete keeps the tier of a day alone.
pub(crate) async fn what_is_paused_or_deleted_is_kept(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (paused, deleted) = (fixture.create().await?, fixture.create().await?);
    fixture.pause(&paused).await?;
    fixture.wait_value(&tiers_of(&paused)?, TIERS).await?;
    let uuid = paused.parse::<SandboxId>()?.uuid();
    // A point that its host does not have any more goes with the next pause, and the others stay as they are.
    fixture
        .sql(&format!(
            "INSERT INTO metrics_points SELECT sandbox_id, team_id, '2h', at - interval '1 day', 1, 1, 1, 1, 1, 1, 1, 1, 1
             FROM metrics_points WHERE sandbox_id = '{uuid}' AND tier = '10m'"
        ))
        .await?;
    fixture.api.post(&format!("/v1/sandboxes/{paused}/resume"), &json!({})).await?.expect(200)?;
    fixture.pause(&paused).await?;
    fixture.wait_value(&tiers_of(&paused)?, TIERS).await?;

    fixture.agent().now().metrics_hang = true;
    let (told, points) = asked(&fixture, &paused, "24h").await?;
    ensure!(points == 1200 && told["points"][0]["timestamp_unix"] == BEGIN, "{points}");
    fixture.agent().now().metrics_hang = false;

    for id in [&paused, &deleted] {
        fixture.api.remove(id).await?;
        fixture.wait_status(id, "stopped").await?;
        fixture.wait_value(&tiers_of(id)?, "24h 1200").await?;
        fixture.api.get(&format!("/v1/sandboxes/{id}/metrics")).await?.expect_error(404, "not_found")?;
    }
    fixture.stop().await
}

/// A host that does not say what a sandbox used delays neither its pause nor its removal for long. It is asked again by who reads.
pub(crate) async fn a_host_that_does_not_say_it_delays_nothing(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (paused, deleted) = (fixture.create().await?, fixture.create().await?);
    fixture.agent().now().metrics_hang = true;
    let begun = Instant::now();
    fixture.pause(&paused).await?;
    fixture.api.remove(&deleted).await?;
    fixture.wait_status(&deleted, "stopped").await?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    ensure!(fixture.value(&tiers_of(&paused)?).await? == "none", "something was kept");
    fixture.agent().now().metrics_hang = false;
    let (_, points) = asked(&fixture, &paused, "2h").await?;
    ensure!(points == 120, "{points}");
    fixture.stop().await
}

/// What a sandbox used that its host has paused by itself is kept, too.
pub(crate) async fn a_pause_of_the_host_keeps_them(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    fixture.agent().has(&id, SandboxState::SANDBOX_STATE_PAUSED);
    fixture.wait_status(&id, "paused").await?;
    fixture.wait_value(&tiers_of(&id)?, TIERS).await?;
    fixture.stop().await
}

/// Points are removed when they are older than the days for which they are kept, whatever became of their sandbox, also if they are
/// more than one statement removes.
pub(crate) async fn old_points_go(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.record_retention = Duration::from_millis(10);
    limits.metrics_keep_days = 3;
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    fixture
        .sql(
            "INSERT INTO metrics_points SELECT gen_random_uuid(), t.id, '24h', now() - age * interval '1 hour',
                1, 1, 1, 1, 1, 1, 1, 1, 1
             FROM (SELECT id FROM teams LIMIT 1) AS t, generate_series(1, 50000, 2) AS age",
        )
        .await?;
    // 1, 3, ... 71 hours.
    fixture.wait_value("SELECT count(*)::text FROM metrics_points", "36").await?;
    fixture.stop().await
}

/// A sandbox that neither runs nor is paused has none, and is told why; its host is not asked.
pub(crate) async fn who_has_none_is_told_why(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (failed, deleted) = (fixture.create().await?, fixture.create().await?);
    fixture.agent().has(&failed, SandboxState::SANDBOX_STATE_FAILED);
    fixture.wait_status(&failed, "error").await?;
    fixture.api.remove(&deleted).await?;
    fixture.wait_status(&deleted, "stopped").await?;
    for (id, why) in [
        (failed.as_str(), "it has failed"),
        (deleted.as_str(), "it was deleted"),
        ("sb0000000000000000000000000", "there is no sandbox"),
    ] {
        let before = fixture.agent().metrics_asked(id);
        let reply = fixture.api.get(&format!("/v1/sandboxes/{id}/metrics")).await?;
        let told = reply.expect_error(404, "not_found").with_context(|| id.to_owned())?.json();
        let message = told["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(id) && message.contains(why), "{message}");
        ensure!(fixture.agent().metrics_asked(id) == before, "its host was asked");
    }
    fixture.stop().await
}
