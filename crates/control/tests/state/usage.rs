// SPDX-License-Identifier: Apache-2.0
//! Cases of usage and statistics: sums are those of a naive model, before and after days are summed up, and levels are what runs.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use proptest::{
    collection::vec,
    prelude::any,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use uuid::Uuid;
use wrenn_control::Limits;

use crate::{fixture::Fixture, stores::Stores};

/// Minutes of the days that are looked at.
const MINUTES: u32 = 3 * 1440;
/// Size of a sandbox: virtual CPUs, memory and disk in MiB.
type Size = (u64, u64, u64);

/// Life of a sandbox: its size, and its statuses with the minute in which each begins.
struct Life {
    size: Size,
    statuses: Vec<(u32, &'static str)>,
}

impl Life {
    /// Makes a life of random choices and gaps.
    fn new((cpus, memory): (u8, u8), steps: &[(u8, u16)]) -> Self {
        let size = (u64::from(cpus % 8) + 1, (u64::from(memory % 16) + 1) * 256, 5120);
        let (mut statuses, mut minute, mut status) = (Vec::new(), 0, "starting");
        for (choice, gap) in steps {
            minute += 1 + u32::from(gap % 600);
            if minute >= MINUTES {
                break;
            }
            statuses.push((minute, status));
            let next: &[&str] = match status {
                "starting" => &["running", "running", "error", "stopping"],
                "running" => &["pausing", "running", "missing", "error", "stopping"],
                "pausing" => &["paused", "paused", "running", "error"],
                "paused" => &["resuming", "paused", "resuming", "stopping"],
                "resuming" => &["running", "running", "paused", "error"],
                "missing" => &["running", "error", "paused"],
                "error" => &["stopping", "error", "running"],
                "stopping" => &["stopped"],
                _ => break,
            };
            status = next[usize::from(*choice) % next.len()];
        }
        Self { size, statuses }
    }

    /// Statements by which the database comes to know this life.
    fn statements(&self, id: Uuid) -> String {
        let (cpus, memory, disk) = self.size;
        let mut text = String::new();
        for (number, (minute, status)) in self.statuses.iter().enumerate() {
            let at = format!("(SELECT at FROM base) + {minute} * interval '1 minute'");
            let statement = if number == 0 {
                format!(
                    "INSERT INTO sandboxes (id, team_id, template, vcpus, memory_mb, disk_size_mb, status, last_updated)
                     SELECT '{id}', id, 'minimal', {cpus}, {memory}, {disk}, '{status}', {at} FROM teams WHERE name = 'default';"
                )
            } else {
                format!(
                    "UPDATE sandboxes SET status = '{status}', version = version + 1, last_updated = {at},
                        started_at = CASE WHEN '{status}' = 'running' THEN coalesce(started_at, {at}) ELSE started_at END
                     WHERE id = '{id}';"
                )
            };
            text.push_str(&statement);
        }
        text
    }

    /// What it uses in a minute: looks at that minute alone.
    fn used(&self, minute: u32) -> Size {
        let before: Vec<&str> =
            self.statuses.iter().filter(|(begin, _)| *begin <= minute).map(|(_, status)| *status).collect();
        let has_run = before.contains(&"running");
        let (cpus, memory, disk) = self.size;
        match before.last() {
            Some(&"running" | &"pausing") => (cpus * 60, memory * 60, disk * 60),
            Some(&"starting" | &"paused" | &"resuming" | &"missing") => (0, 0, disk * 60),
            Some(&"error") if has_run => (0, 0, disk * 60),
            _ => (0, 0, 0),
        }
    }
}

/// Returns what the server says of the days that are over.
async fn told(fixture: &Fixture) -> Result<Vec<Value>> {
    let days = fixture.value("SELECT day || ' ' || (day + 2) FROM base").await?;
    let (first, last) = days.split_once(' ').context("no days")?;
    let reply = fixture.api.get(&format!("/v1/usage?from={first}&to={last}")).await?.expect(200)?.json();
    reply["days"].as_array().cloned().context("no days")
}

/// Random lives of many sandboxes give the sums of a model that looks at each minute of each sandbox.
pub(crate) async fn sums_are_those_of_a_naive_model(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut runner = TestRunner::deterministic();
    let some = vec(((any::<u8>(), any::<u8>()), vec((any::<u8>(), any::<u16>()), 1..24)), 60);
    let some = some.new_tree(&mut runner).map_err(|reason| anyhow::anyhow!("{reason}"))?.current();
    let lives: Vec<Life> = some.iter().map(|(size, steps)| Life::new(*size, steps)).collect();
    let mut script = "CREATE TABLE base AS SELECT d AS day, d::timestamp AT TIME ZONE 'UTC' AS at
            FROM (SELECT (now() AT TIME ZONE 'UTC')::date - 4 AS d) AS first;
        UPDATE usage_summed SET day = (SELECT day - 1 FROM base);"
        .to_owned();
    script.extend(lives.iter().map(|life| life.statements(Uuid::now_v7())));
    fixture.sql(&script).await?;

    let mut expected = Vec::new();
    for day in 0..MINUTES / 1440 {
        let minutes = day * 1440..(day + 1) * 1440;
        let all = minutes.flat_map(|minute| lives.iter().map(move |life| life.used(minute)));
        let sum = all.fold((0, 0, 0), |sum: Size, used| (sum.0 + used.0, sum.1 + used.1, sum.2 + used.2));
        ensure!(sum.0 > 0 && sum.2 > sum.1, "too little happens: {sum:?}");
        expected.push(json!({"vcpu_seconds": sum.0, "memory_mb_seconds": sum.1, "disk_mb_seconds": sum.2}));
    }
    let same = |told: &[Value]| {
        let without_date = |day: &Value| {
            let mut day = day.clone();
            if let Some(fields) = day.as_object_mut() {
                fields.remove("date");
            }
            day
        };
        told.iter().map(without_date).collect::<Vec<_>>() == expected
    };
    let before = told(&fixture).await?;
    ensure!(same(&before), "before they are summed up: {before:?} instead of {expected:?}");
    // The first round of a server sums up all days that are over.
    fixture.serve().await?;
    let summed = "SELECT (u.day >= b.day + 2)::text FROM usage_summed u, base b";
    fixture.wait_value(summed, "true").await?;
    ensure!(told(&fixture).await? == before, "it changed when it was summed up");
    let sums = "SELECT count(*)::text FROM usage_days u, base b WHERE u.day <= b.day + 2";
    ensure!(fixture.value(sums).await? == "3", "the sums of three days");
    // The sums do not need what they were made of.
    fixture.sql("DELETE FROM usage_spans").await?;
    ensure!(told(&fixture).await? == before, "it changed with its origin");
    let csv = fixture.api.get("/v1/usage?format=csv").await?.expect(200)?;
    let csv = String::from_utf8(csv.bytes)?;
    ensure!(csv.lines().count() == 31 && csv.starts_with("date,vcpu_seconds,"), "{csv}");
    fixture.sql("DROP TABLE base").await?;
    fixture.stop().await
}

/// What runs is told now, as the peak, and in the last part of the series.
pub(crate) async fn statistics_are_of_what_runs(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let stats =
        async || -> Result<Value> { Ok(fixture.api.get("/v1/stats?range=24h").await?.expect(200)?.json()) };
    let none = stats().await?;
    ensure!(none["current"]["running"] == 0 && none["peaks"]["running"] == 0, "{none}");
    ensure!(none["series"].as_array().is_some_and(|series| series.len() == 120), "{none}");
    let (first, second) = (fixture.create().await?, fixture.create().await?);
    let both = stats().await?;
    ensure!(both["current"] == json!({"running": 2, "vcpus": 2, "memory_mb": 512}), "{both}");
    fixture.api.remove(&first).await?;
    fixture.wait_status(&first, "stopped").await?;
    fixture.pause(&second).await?;
    let after = stats().await?;
    ensure!(after["current"]["running"] == 0 && after["peaks"] == both["current"], "{after}");
    let series = after["series"].as_array().context("no series")?;
    // A part may have ended meanwhile.
    ensure!(series[118..].iter().any(|point| point["running"] == 2 && point["memory_mb"] == 512), "{after}");
    ensure!(series[..100].iter().all(|point| point["running"] == 0), "{after}");
    // Each has one open span at most: of the paused one only its disk.
    let open = "SELECT string_agg(vcpus || ' ' || (disk_mb > 0)::text, ',') FROM usage_spans WHERE ended_at = 'infinity'";
    ensure!(fixture.value(open).await? == "0 true", "{}", fixture.value(open).await?);
    fixture.api.get("/v1/stats?range=2h").await?.expect_error(400, "invalid_request")?;
    fixture.api.get("/v1/usage?from=2026-02-01&to=2026-01-01").await?.expect_error(400, "invalid_request")?;
    fixture.stop().await
}
