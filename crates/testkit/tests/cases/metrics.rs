// SPDX-License-Identifier: Apache-2.0
//! Metrics: what they show of a sandbox's work, and what stays of them.

use std::{
    fs,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_testkit::{Stack, wait_until};

use super::{
    processes::client,
    support::{delete_wholly, exported, killed, pause, resume, sh},
    user_terminal::top_draws,
};

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(90);
const MIB: f64 = (1 << 20) as f64;
/// Serves what is in `/var` on the loopback address, and says when it does.
const SERVE: &str = "python3 -m http.server --bind 127.0.0.1 --directory /var 8000";
const LISTENS: &str = "until grep -q ':1F40 .* 0A ' /proc/net/tcp; do sleep 0.1; done";
/// Names of two busy sandboxes and of an idle one.
const NAMES: [&str; 3] = ["busy-1", "busy-2", "idle-1"];
/// Use of a processor in percent that a busy one has at least, however many others want the processors. An idle one has half of it at most.
const BUSY: f64 = 5.0;
/// Takes more memory than there is.
const HOG: &str = "held = [b'x' * 1000000 for _ in range(1000000)]";

/// Returns the points of the last ten minutes.
async fn points(stack: &Stack, id: &str) -> Result<Vec<Value>> {
    let told = stack.api.get(&format!("/v1/sandboxes/{id}/metrics")).await?.expect(200)?.json();
    told["points"].as_array().cloned().with_context(|| format!("no points: {told}"))
}

/// Waits until the newest point is as it should be, and returns it.
async fn until(stack: &Stack, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let found = async || {
        last = points(stack, id).await.ok()?.pop()?;
        is_so(&last).then(|| last.clone())
    };
    let found = wait_until(what, SOON, found).await;
    found.with_context(|| format!("the newest point is {last}"))
}

fn number(point: &Value, field: &str) -> f64 {
    point[field].as_f64().unwrap_or_default()
}

/// Returns a figure of the only host, as Prometheus gets it.
async fn gauge(stack: &Stack, name: &str) -> Result<f64> {
    let exported = exported(stack).await?;
    ensure!(exported.contains(&format!("# HELP {name} ")), "nothing says what {name} is");
    let of_host = exported.lines().find(|line| line.starts_with(&format!("{name}{{host=")));
    let value =
        of_host.and_then(|line| line.split_whitespace().next_back()).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}

/// Returns whether a field has grown by so many MiB.
fn has_grown(before: &Value, now: &Value, field: &str, mib: f64) -> bool {
    number(now, field) >= number(before, field) + mib * MIB
}

async fn start(stack: &Stack, id: &str, tag: &str, script: &str) -> Result<()> {
    let body = json!({"cmd": "sh", "args": ["-c", script], "user": "root", "background": true, "tag": tag});
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(202).map(drop)
}

/// Processor time, memory, disk and traffic are those of the sandbox's work; they stay when it is paused, and go on when it is resumed.
pub(crate) async fn work_is_seen(stack: Arc<Stack>) -> Result<()> {
    let idle = stack.borrow_sandbox().await?;
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    start(&stack, &id, "burn", "while :; do :; done").await?;
    let busier = async || {
        let (busy, idle) = (points(&stack, &id).await.ok()?.pop()?, points(&stack, &idle).await.ok()?.pop()?);
        (number(&busy, "cpu_pct") > number(&idle, "cpu_pct") + 20.0).then_some(())
    };
    wait_until("more processor time than the idle one", SOON, busier).await?;
    let exported = async || (gauge(&stack, "wrenn_host_sandboxes_cpus").await.ok()? > 0.2).then_some(());
    wait_until("the processor time in the figures of the host", SOON, exported).await?;
    stack.api.delete(&format!("/v1/sandboxes/{id}/processes/burn")).await?.expect(200)?;
    stack.give_back(idle);

    let before = until(&stack, &id, "a point", |_| true).await?;
    ensure!(number(&before, "mem_bytes") > 0.0 && number(&before, "disk_bytes") > 0.0, "{before}");
    let hold = "exec python3 -c \"import time; held = b'x' * (100 << 20); time.sleep(1000)\"";
    start(&stack, &id, "hold", hold).await?;
    until(&stack, &id, "100 MiB of memory", |now| has_grown(&before, now, "mem_bytes", 80.0)).await?;
    sh(&stack, &id, "head -c 50M /dev/zero | tr '\\0' x > /var/data && sync").await?;
    let written =
        until(&stack, &id, "50 MiB of disk", |now| has_grown(&before, now, "disk_bytes", 40.0)).await?;

    start(&stack, &id, "serve", SERVE).await?;
    sh(&stack, &id, LISTENS).await?;
    let mut connection = client(&stack)?.connect_port(id.parse()?, 8000).await?;
    connection.write_all(b"GET /data HTTP/1.0\r\n\r\n").await?;
    let mut content = Vec::new();
    (&mut connection).take(4 << 20).read_to_end(&mut content).await?;
    ensure!(content.len() == 4 << 20, "only {} bytes came", content.len());
    until(&stack, &id, "4 MiB sent", |now| {
        has_grown(&written, now, "net_tx_bytes", 4.0)
            && number(now, "net_rx_bytes") > number(&written, "net_rx_bytes")
    })
    .await?;

    let before = until(&stack, &id, "a point", |_| true).await?;
    pause(&stack, &id).await?;
    let paused = points(&stack, &id).await?;
    ensure!(paused.contains(&before), "{before} is gone");
    resume(&stack, &id).await?;
    let newest = number(paused.last().context("no points")?, "timestamp_unix");
    until(&stack, &id, "a point after the resume", |now| number(now, "timestamp_unix") > newest).await?;
    ensure!(points(&stack, &id).await?.contains(&before), "{before} is gone after the resume");

    let shown = stack.wrenn(&["stats", &id, "--json"])?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    ensure!(shown[0]["status"] == "running" && number(&shown[0]["latest"], "mem_bytes") > MIB, "{shown}");
    ensure!(
        gauge(&stack, "wrenn_host_sandboxes_memory_bytes").await? > MIB,
        "the figures of the host lack it"
    );
    delete_wholly(&stack, &id).await
}

/// Returns what a command lists with `--json`: the name of each sandbox that has one, and its use of processors in percent.
fn rows(stack: &Stack, command: &str) -> Result<Vec<(String, f64)>> {
    let output = stack.wrenn(&[command, "--json"])?;
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let of_row = |row: &Value| {
        let name = row["name"].as_str().unwrap_or_default();
        // The last point of a paused one is from before.
        let cpu = if row["status"] == "running" { number(&row["latest"], "cpu_pct") } else { 0.0 };
        (name.to_owned(), cpu)
    };
    Ok(told.as_array().with_context(|| format!("no list: {told}"))?.iter().map(of_row).collect())
}

/// Returns the use of processors of a sandbox in percent, on average of its last ten points of five minutes.
async fn average_cpu(stack: &Stack, id: &str) -> Result<f64> {
    let told = stack.api.get(&format!("/v1/sandboxes/{id}/metrics?range=5m")).await?.expect(200)?.json();
    let points = told["points"].as_array().with_context(|| format!("no points: {told}"))?;
    let last = &points[points.len().saturating_sub(10)..];
    ensure!(!last.is_empty(), "no points: {told}");
    Ok(last.iter().map(|point| number(point, "cpu_pct")).sum::<f64>() / last.len() as f64)
}

/// Returns whether the busy ones use much, and the idle one less than half of that.
fn are_told_apart(rows: &[(String, f64)]) -> bool {
    let cpu = |name: &str| rows.iter().find(|(of, _)| of == name).map(|(_, cpu)| *cpu);
    let [Some(one), Some(other), Some(idle)] = NAMES.map(cpu) else { return false };
    let least = one.min(other);
    least >= BUSY && idle <= least / 2.0
}

/// Two busy sandboxes and an idle one: `top` has those that use most first, listed and drawn, and `stats`, the points of each and the
/// figures of the host tell them apart.
pub(crate) async fn busy_ones_come_first(stack: Arc<Stack>) -> Result<()> {
    let mut ids = Vec::new();
    for name in NAMES {
        ids.push(stack.api.create(&json!({"memory_mb": 256, "name": name})).await?);
    }
    for id in &ids[..2] {
        start(&stack, id, "burn", "while :; do :; done").await?;
    }
    let mut last = String::new();
    let listed = async || {
        let (top, stats) = (rows(&stack, "top").ok()?, rows(&stack, "stats").ok()?);
        last = format!("top: {top:?}, stats: {stats:?}");
        let is_sorted = top.is_sorted_by(|(_, one), (_, next)| one >= next);
        // Others that there may be are idle, too.
        let busy = top.iter().take(2).all(|(name, _)| NAMES[..2].contains(&name.as_str()));
        (is_sorted && busy && are_told_apart(&top) && are_told_apart(&stats)).then_some(())
    };
    let listed = wait_until("the busy ones at the top", SOON, listed).await;
    listed.with_context(|| format!("the last ones: {last}"))?;

    let mut last = Vec::new();
    let measured = async || {
        last.clear();
        for (name, id) in NAMES.iter().zip(&ids) {
            let average = average_cpu(&stack, id).await.ok()?;
            last.push(((*name).to_owned(), average));
        }
        are_told_apart(&last).then_some(())
    };
    let measured = wait_until("the points to tell them apart", SOON, measured).await;
    measured.with_context(|| format!("the last averages: {last:?}"))?;
    let exported =
        async || (gauge(&stack, "wrenn_host_sandboxes_cpus").await.ok()? >= 2.0 * BUSY / 100.0).then_some(());
    wait_until("both in the figures of the host", SOON, exported).await?;
    let is_right = |drawn: &str| {
        let places = NAMES.map(|name| drawn.find(name));
        places.iter().all(Option::is_some) && places[..2].iter().all(|busy| *busy < places[2])
    };
    top_draws(&stack, is_right).await?;
    for id in ids {
        delete_wholly(&stack, &id).await?;
    }
    Ok(())
}

/// A command that the kernel kills for want of memory: its answer, the sandbox's record, the metrics and the command line say so, with
/// the process where they name one. What the guest uses is in its points.
pub(crate) async fn out_of_memory_is_told(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let before = killed(&stack, "process").await?;
    let is_told = |now: &Value| number(now, "guest_mem_total_bytes") > 0.0;
    let told = until(&stack, &id, "figures of the guest", is_told).await?;
    let memory = [number(&told, "guest_mem_used_bytes"), number(&told, "guest_mem_total_bytes")];
    ensure!(0.0 < memory[0] && memory[0] < memory[1] && memory[1] <= 256.0 * MIB, "{told}");
    let disk = [number(&told, "guest_disk_used_bytes"), number(&told, "guest_disk_total_bytes")];
    ensure!(0.0 < disk[0] && disk[0] < disk[1], "{told}");

    // The shell survives, and its child is killed.
    let script = format!("python3 -c \"{HOG}\"; echo survived");
    let body = json!({"cmd": "sh", "args": ["-c", script], "timeout_sec": 180});
    let answer = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json();
    ensure!(answer["exit_code"] == 0 && answer["stdout"] == "survived\n", "{answer}");
    ensure!(answer["out_of_memory"] == true && answer["killed"]["command"] == "python3", "{answer}");
    let pid = answer["killed"]["pid"].as_u64().context("no pid")?;

    let seen = async || {
        let sandbox = stack.api.get(&format!("/v1/sandboxes/{id}")).await.ok()?.json();
        let last = &sandbox["last_out_of_memory"];
        (last["command"] == "python3" && last["pid"] == pid).then_some(())
    };
    wait_until("the sandbox's record to tell the process", SOON, seen).await?;

    // It is counted after it was recorded. Processes of other cases may be counted, too.
    let counted = async || killed(&stack, "process").await.ok().filter(|count| *count > before);
    let counted = wait_until("the process to be counted", SOON, counted).await;
    counted.with_context(|| format!("{before} before"))?;

    let ran = stack.wrenn(&["sandbox", "exec", &id, "python3", "-c", HOG])?;
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    let expected = "wrenn: the command was killed: the sandbox is out of memory (256 MiB)";
    ensure!(ran.status.code() == Some(137) && stderr.contains(expected), "{:?}: {stderr}", ran.status);
    delete_wholly(&stack, &id).await
}

/// An agent that is killed loses what it measured since the last minute or pause, of running and of paused sandboxes.
pub(crate) async fn figures_survive_the_agent(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let time = |point: &Value| number(point, "timestamp_unix");
    let mut kept = Vec::new();
    for goes_on in [true, false] {
        let point = until(&stack, &id, "a point", |_| true).await?;
        until(&stack, &id, "a point of another second", |now| time(now) > time(&point) + 1.0).await?;
        pause(&stack, &id).await?;
        if goes_on {
            resume(&stack, &id).await?;
        }
        let written = async || (written_at(&stack, &id)? > time(&point)).then_some(());
        wait_until("the points to be written", SOON, written).await?;
        kept.push(point);
        stack.kill_and_wait("agent").await?;
        let newest = kept.iter().map(time).fold(0.0, f64::max);
        if goes_on {
            until(&stack, &id, "a new point", |now| time(now) > newest + 1.0).await?;
        }
        let found = async || {
            let points = points(&stack, &id).await.ok()?;
            kept.iter().all(|point| points.contains(point)).then_some(())
        };
        wait_until("the points from before", SOON, found).await.with_context(|| format!("{goes_on}"))?;
    }
    delete_wholly(&stack, &id).await
}

/// When the file of a sandbox's metrics was written, in whole seconds since 1970.
fn written_at(stack: &Stack, id: &str) -> Option<f64> {
    let file = stack.state_dir.join("agent/sandboxes").join(id).join("metrics");
    let written = fs::metadata(file).and_then(|found| found.modified()).ok()?;
    Some(written.duration_since(UNIX_EPOCH).ok()?.as_secs() as f64)
}
