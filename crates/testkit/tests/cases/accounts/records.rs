// SPDX-License-Identifier: Apache-2.0
//! What a team's sandbox does, as `wrenn channel` delivers it, `wrenn usage` counts it, and `wrenn audit` records it.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, WebhookReceiver, wait_until};

use super::home::{Home, signed_in, text, with};
use crate::cases::{cli::stderr, people::told};

/// Who has the sandbox.
const UMA: &str = "uma@records.example";
/// Id of no key.
const UNKNOWN: &str = "key00000000000000000000000a1";
/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// A webhook is tried out and made, gets what happens to a sandbox, once more if that is wanted, and is removed. Meanwhile the
/// sandbox is counted, and all that was done is recorded.
pub(crate) async fn what_a_team_does_is_delivered_recorded_and_counted(stack: Arc<Stack>) -> Result<()> {
    let uma = signed_in(&stack, UMA, "Uma").await?;
    let receiver = WebhookReceiver::start((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let channel = channel(&uma, &receiver).await?;
    let id = uma.told(&["create", "--memory", "256", "--name", "counted"], None).await?;
    delivered(&uma, &receiver, &id).await?;
    counted(&uma).await?;
    uma.told(&["rm", "counted"], None).await?;
    let ended = async || {
        let now = uma.json(&["usage", "--now", "5m"]).await.ok()?;
        (now["current"]["running"] == 0).then_some(())
    };
    wait_until("statistics without the sandbox", SOON, ended).await?;
    changed(&uma, &receiver, &channel).await?;
    uma.refused(&["key", "revoke", UNKNOWN], None, &["not_found"]).await?;
    recorded(&uma, &id).await?;
    of_the_platform(&stack, &uma).await
}

/// Tries a webhook out and makes the channel `ops` of it; returns its id.
async fn channel(uma: &Home, receiver: &WebhookReceiver) -> Result<String> {
    let config = json!({"url": receiver.url()}).to_string();
    let test = ["channel", "test", "--provider", "webhook"];
    let says = uma.told(&test, Some(&config)).await?;
    ensure!(says.contains("took the message"), "{says}");
    let tried = &receiver.wait(1).await?[0];
    ensure!(tried.body()["event"] == "channel.test", "{tried:?}");
    let nobody = json!({"url": "http://127.0.0.1:1/hook"}).to_string();
    uma.refused(&test, Some(&nobody), &["channel_failed"]).await?;
    uma.refused(&test, Some("hunter2"), &["standard input", "no JSON"]).await?;
    uma.misused(
        &["channel", "create", "ops", "--provider", "pager", "--event", "sandbox.running"],
        "webhook",
    )
    .await?;
    uma.misused(&["channel", "create", "ops", "--provider", "webhook", "--event", "x"], "sandbox.running")
        .await?;

    let create = ["channel", "create", "ops", "--provider", "webhook", "--event", "sandbox.running"];
    let made = uma.run(&create, Some(&config)).await?;
    let secret = String::from_utf8(made.stdout.clone())?.trim().to_owned();
    let is_secret = secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(made.status.success() && is_secret && stderr(&made).contains("this one time"), "{made:?}");
    uma.refused(&create, Some(&config), &["ops", "conflict"]).await?;
    let table = uma.told(&["channel", "ls"], None).await?;
    let row = table.lines().nth(1).unwrap_or_default();
    ensure!(["ops", "webhook", "ok", "sandbox.running"].iter().all(|part| row.contains(part)), "{table}");
    ensure!(!table.contains(&secret) && !table.contains(&receiver.url()), "a secret is in {table}");
    text(&uma.json(&["channel", "ls"]).await?[0], "id")
}

/// The channel has delivered that the sandbox runs, and does so again.
async fn delivered(uma: &Home, receiver: &WebhookReceiver, id: &str) -> Result<()> {
    let first = receiver.wait(2).await?.swap_remove(1);
    let event = first.body();
    let actor = &event["actor"];
    ensure!(event["event"] == "sandbox.running" && event["resource"]["id"] == id, "{event}");
    ensure!(actor["type"] == "user" && actor["name"] == "Uma", "{event}");
    ensure!(first.header("x-wrenn-signature").starts_with("sha256="), "{first:?}");
    let mut last = Value::Null;
    let done = async || {
        last = uma.json(&["channel", "deliveries", "ops"]).await.ok()?;
        (last[0]["status"] == "delivered").then(|| last[0].clone())
    };
    let ended = wait_until("the end of the delivery", SOON, done).await;
    let delivery = text(&ended.with_context(|| format!("there are {last}"))?, "id")?;
    let table = uma.told(&["channel", "deliveries", "ops", "-n", "1"], None).await?;
    let row = table.lines().nth(1).unwrap_or_default();
    ensure!([delivery.as_str(), id, "delivered"].iter().all(|part| row.contains(part)), "{table}");

    let again = uma.told(&["channel", "redeliver", "ops", &delivery], None).await?;
    ensure!(again == delivery, "another delivery: {again}");
    let second = receiver.wait(3).await?.swap_remove(2);
    for one in [&first, &second] {
        ensure!(one.header("x-wrenn-delivery") == delivery, "another delivery: {one:?}");
    }
    ensure!(first.text == second.text, "{second:?} instead of {first:?}");
    uma.refused(&["channel", "deliveries", "nowhere"], None, &["nowhere", "wrenn channel ls"]).await
}

/// The channel gets another name, other events and another secret, and is removed.
async fn changed(uma: &Home, receiver: &WebhookReceiver, id: &str) -> Result<()> {
    let update = ["channel", "update", "ops", "--name", "alarms", "--event", "sandbox.error"];
    ensure!(uma.told(&update, None).await? == id, "another channel");
    let all = uma.json(&["channel", "ls"]).await?;
    let alarms = with(&all, "name", "alarms")?;
    ensure!(alarms["id"] == id && alarms["events"] == json!(["sandbox.error"]), "{all}");
    let config = json!({"url": receiver.url(), "secret": "correct horse battery"}).to_string();
    ensure!(uma.told(&["channel", "configure", "alarms"], Some(&config)).await? == id, "a secret is shown");
    ensure!(uma.told(&["channel", "rm", "alarms"], None).await? == "alarms", "another channel");
    uma.get(&format!("/v1/channels/{id}")).await?.expect_error(404, "not_found")?;
    ensure!(uma.json(&["channel", "ls"]).await? == json!([]), "it is still listed");
    Ok(())
}

/// The sandbox that runs is counted.
async fn counted(uma: &Home) -> Result<()> {
    let mut last = Value::Null;
    let some = async || {
        last = uma.json(&["usage"]).await.ok()?;
        (last["total"]["vcpu_seconds"].as_u64()? > 0).then(|| last["total"].clone())
    };
    let total = wait_until("usage of a sandbox that runs", SOON, some).await;
    let total = total.with_context(|| format!("it is {last}"))?;
    let amount = |name: &str| total[name].as_u64().unwrap_or_default();
    let of_cpu = amount("vcpu_seconds");
    ensure!(amount("memory_mb_seconds") >= 256 * of_cpu && amount("disk_mb_seconds") > 0, "{total}");
    let csv = uma.told(&["usage", "--csv"], None).await?;
    let seconds = |line: &str| line.split(',').nth(1).and_then(|field| field.parse::<u64>().ok());
    ensure!(csv.starts_with("date,vcpu_seconds,memory_mb_seconds,disk_mb_seconds"), "{csv}");
    ensure!(csv.lines().filter_map(seconds).sum::<u64>() >= of_cpu, "{csv} and not {total}");
    let table = uma.told(&["usage"], None).await?;
    ensure!(table.contains("VCPU HOURS") && table.lines().any(|row| row.starts_with("total")), "{table}");
    let now = uma.json(&["usage", "--now", "5m"]).await?;
    ensure!(now["current"] == json!({"running": 1, "vcpus": 1, "memory_mb": 256}), "{now}");
    uma.misused(&["usage", "--now", "--csv"], "cannot be used with").await?;
    uma.misused(&["usage", "--from", "2026-02-30"], "--from").await?;
    uma.refused(&["usage", "--from", "2026-02-02", "--to", "2026-02-01"], None, &["later than"]).await
}

/// What was done is recorded with names, is found by filters, and comes out whole in exports.
async fn recorded(uma: &Home, id: &str) -> Result<()> {
    let all = uma.json(&["audit", "-n", "200"]).await?;
    let count = all.as_array().map_or(0, Vec::len);
    let created = with(&all, "action", "sandbox.create")?;
    ensure!(created["actor"]["name"] == "Uma" && created["actor"]["kind"] == "user", "{created}");
    ensure!(created["resource"]["id"] == id && created["outcome"] == "succeeded", "{created}");
    ensure!(created["address"].as_str().is_some_and(|address| address.starts_with("127.")), "{created}");
    let refused = with(&all, "action", "api_key.revoke")?;
    ensure!(refused["outcome"] == "refused" && refused["error_code"] == "not_found", "{refused}");
    for action in ["sandbox.delete", "channel.create", "channel.update", "channel.delete"] {
        with(&all, "action", action)?;
    }
    let user = text(&created["actor"], "id")?;
    for (filter, wanted) in [
        (&["--action", "sandbox.create"][..], Some(1)),
        (&["--action", "sandbox.create", "--action", "api_key.revoke"], Some(2)),
        (&["--outcome", "refused", "--resource", UNKNOWN], Some(1)),
        (&["--resource", id, "--actor", user.as_str(), "--actor-kind", "user"], None),
        (&["--resource-kind", "channel", "--from", "1h"], None),
        (&["--actor-kind", "api_key"], Some(0)),
        (&["--to", "1d"], Some(0)),
    ] {
        let found = uma.json(&[&["audit"][..], filter].concat()).await?;
        let number = found.as_array().map_or(0, Vec::len);
        let fits = wanted.map_or(number > 0 && number < count, |wanted| number == wanted);
        ensure!(fits, "{filter:?}: {number} of {count}: {found}");
    }
    let table = uma.told(&["audit", "--action", "sandbox.create"], None).await?;
    let row = table.lines().nth(1).unwrap_or_default();
    ensure!(
        ["user Uma", "sandbox.create", "succeeded", "127."].iter().all(|part| row.contains(part)),
        "{table}"
    );
    let newest = uma.run(&["audit", "-n", "1"], None).await?;
    let lines = String::from_utf8_lossy(&newest.stdout).lines().count();
    ensure!(lines == 2 && stderr(&newest).contains("There is more"), "{newest:?}");

    let csv = uma.told(&["audit", "--export", "csv"], None).await?;
    ensure!(csv.starts_with("id,at,team_id,actor_kind,actor_id,actor_name,action"), "{csv}");
    let line = csv.lines().find(|line| line.contains(",sandbox.create,")).context("it is not exported")?;
    ensure!(line.contains(",Uma,") && line.contains(id) && csv.lines().count() > count, "{csv}");
    let jsonl = uma.told(&["audit", "--export", "jsonl", "--action", "sandbox.create"], None).await?;
    let exported: Value = serde_json::from_str(&jsonl).with_context(|| jsonl.clone())?;
    ensure!(exported == *created, "{exported} instead of {created}");
    uma.misused(&["audit", "--outcome", "maybe"], "refused").await?;
    uma.misused(&["audit", "--export", "xml"], "csv or jsonl").await
}

/// What who runs the server did is in the log of the platform, which its administrators alone read.
async fn of_the_platform(stack: &Stack, uma: &Home) -> Result<()> {
    let args = ["--json", "audit", "--platform", "--action", "user.create", "-n", "200"];
    uma.refused(&args[1..], None, &["platform.admin", "forbidden"]).await?;
    let log: Value = serde_json::from_str(&told(stack, &args, None).await?)?;
    let is_hers = |record: &&Value| record["resource"]["name"] == UMA;
    let record = log.as_array().into_iter().flatten().find(is_hers).context("it is not recorded")?;
    ensure!(record["actor"]["kind"] == "system" && record["outcome"] == "succeeded", "{record}");
    Ok(())
}
