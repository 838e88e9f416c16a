// SPDX-License-Identifier: Apache-2.0
//! Case of usage while servers are killed: it is to the second what the events of the sandboxes say.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;
use wrenn_control::Limits;
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::{Api, Event, Events, short_or_long, wait_until};

use crate::{
    agent::OPEN,
    fixture::{Fixture, RUNNING, SOON},
    second::Second,
    stores::Stores,
};

const PAUSED: SandboxState = SandboxState::SANDBOX_STATE_PAUSED;

/// Kills a server amid a pause, a resume, a delete and a create, which another one then finishes or undoes.
async fn kill_amid_transitions(fixture: &Fixture) -> Result<()> {
    let (agent, size) = (fixture.agent(), json!({"vcpus": 2, "memory_mb": 512}));
    let (running, paused, unwanted) =
        (fixture.api.create(&size).await?, fixture.api.create(&size).await?, fixture.create().await?);
    fixture.pause(&paused).await?;
    let (builder, listen) = fixture.builder_at(fixture.stores.database_url(&fixture.database))?;
    let server = Second::start(builder)?;
    let api = Api::new(&format!("http://{listen}"), fixture.api.key());
    let healthy = async || api.get("/health").await.ok().filter(|reply| reply.status == 200);
    wait_until("health", SOON, healthy).await?;

    let ask = |request: RequestBuilder| {
        let api = api.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { api.send(request).await }))
    };
    let usual = agent.now().takes;
    agent.life_gate.forget_permits(usize::MAX);
    agent.destroy_gate.forget_permits(usize::MAX);
    let post = |path: &str| api.request(Method::POST, path);
    let mut asked = vec![
        ask(post(&format!("/v1/sandboxes/{running}/pause")).json(&json!({}))),
        ask(post(&format!("/v1/sandboxes/{paused}/resume")).json(&json!({}))),
        ask(api.request(Method::DELETE, &format!("/v1/sandboxes/{unwanted}"))),
    ];
    let on_the_way = "SELECT coalesce(string_agg(status, ' ' ORDER BY status), '') FROM sandboxes
        WHERE status IN ('starting', 'pausing', 'resuming', 'stopping')";
    fixture.wait_value(on_the_way, "pausing resuming stopping").await?;
    agent.now().takes = SOON;
    asked.push(ask(post("/v1/sandboxes").json(&size)));
    fixture.wait_value(on_the_way, "pausing resuming starting stopping").await?;
    drop(server);
    drop(asked);

    // A host goes on without the server that called it.
    agent.now().takes = usual;
    agent.has(&running, PAUSED);
    agent.has(&paused, RUNNING);
    agent.life_gate.add_permits(OPEN);
    agent.destroy_gate.add_permits(OPEN);
    fixture.wait_value(on_the_way, "").await
}

/// Deletes all sandboxes, and returns how many there have ever been.
async fn delete_all(fixture: &Fixture) -> Result<usize> {
    let listed = fixture.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    for sandbox in listed.as_array().context("no list")? {
        fixture.api.remove(sandbox["id"].as_str().context("no id")?).await?;
    }
    fixture.wait_value("SELECT count(*)::text FROM sandboxes WHERE status <> 'stopped'", "0").await?;
    Ok(fixture.value("SELECT count(*)::text FROM sandboxes").await?.parse()?)
}

/// Reads the stream until so many sandboxes are stopped; returns the events of each, without those that came twice.
async fn lives(events: &mut Events, count: usize) -> Result<Vec<Vec<Event>>> {
    let (mut lives, mut stopped) = (BTreeMap::<String, Vec<Event>>::new(), 0);
    while stopped < count {
        let event = events.next(SOON).await.with_context(|| format!("{stopped} of {count} are stopped"))?;
        let id = event.data["sandbox"]["id"].as_str().with_context(|| format!("{event:?}"))?;
        let life = lives.entry(id.to_owned()).or_default();
        if life.iter().any(|told| told.kind == event.kind && told.data == event.data) {
            continue;
        }
        stopped += usize::from(event.kind == "sandbox.stopped");
        life.push(event);
    }
    Ok(lives.into_values().collect())
}

/// Products of microseconds with virtual CPUs, with MiB of memory and with MiB of disk.
type Used = [i64; 3];

/// What the events of a sandbox say that it used.
fn used(life: &[Event]) -> Result<Used> {
    let at = |event: &Event| -> Result<DateTime<Utc>> {
        Ok(event.data["at"].as_str().context("no time")?.parse()?)
    };
    let (mut used, mut has_run) = ([0; 3], false);
    for pair in life.windows(2) {
        let (event, sandbox) = (&pair[0], &pair[0].data["sandbox"]);
        let took = (at(&pair[1])? - at(event)?).num_microseconds().context("it took too long")?;
        ensure!(took >= 0, "{pair:?} are not in order");
        has_run |= event.kind == "sandbox.running";
        let runs = matches!(event.kind.as_str(), "sandbox.running" | "sandbox.pausing");
        let keeps = match event.kind.as_str() {
            "sandbox.stopping" | "sandbox.stopped" => false,
            "sandbox.error" => has_run,
            _ => true,
        };
        let parts = [("vcpus", runs), ("memory_mb", runs), ("disk_size_mb", keeps)];
        for (sum, (part, counts)) in used.iter_mut().zip(parts) {
            let amount = sandbox[part].as_i64().with_context(|| format!("no {part}: {sandbox}"))?;
            *sum += if counts { amount * took } else { 0 };
        }
    }
    Ok(used)
}

/// Whatever of the transitions of a server that is killed another one finishes or undoes, what was used is exactly what the sandboxes
/// had between the changes of their statuses, as they were told.
pub(crate) async fn it_is_what_the_events_say(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.lease = Duration::from_secs(6);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    for _ in 0..short_or_long(2, 10) {
        kill_amid_transitions(&fixture).await?;
    }
    let count = delete_all(&fixture).await?;
    let mut sums: Used = [0; 3];
    for life in lives(&mut events, count).await? {
        let used = used(&life)?;
        sums.iter_mut().zip(used).for_each(|(sum, used)| *sum += used);
    }
    // The database keeps thousandths of seconds.
    let [vcpus, memory, disk] = sums.map(|sum| (sum + 500) / 1000 / 1000);
    ensure!(vcpus > 0 && disk > memory, "too little happened: {sums:?}");
    let usage = fixture.api.get("/v1/usage").await?.expect(200)?.json();
    let expected = json!({"vcpu_seconds": vcpus, "memory_mb_seconds": memory, "disk_mb_seconds": disk});
    ensure!(usage["total"] == expected, "{} instead of {expected}, of {sums:?}", usage["total"]);
    let open = fixture.value("SELECT count(*)::text FROM usage_spans WHERE ended_at = 'infinity'").await?;
    ensure!(open == "0", "{open} sandboxes that are gone go on using something");
    fixture.stop().await
}
