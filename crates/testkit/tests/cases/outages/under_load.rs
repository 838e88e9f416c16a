// SPDX-License-Identifier: Apache-2.0
//! PostgreSQL and Redis are restarted while sandboxes come and go: no answer is wrong, no event is lost, and no delivery is doubled.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use futures::future::{try_join_all, try_join4};
use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use wrenn_api::ErrorCode;
use wrenn_testkit::{
    Event, Events, ReceivedWebhook, Reply, Stack, WebhookReceiver, kinds_once, short_or_long, told_in_order,
    wait_until,
};

use super::super::support::{delete_wholly, listed, nothing_remains, record};

/// Number of sandboxes that come and go at a time.
const WORKERS: usize = 3;
/// Time limit of one answer, and of the repetitions of a request that cannot be done now.
const ANSWER: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause before a list or a stream is asked for again, so that the guests have the processor.
const PAUSE: Duration = Duration::from_millis(100);
/// Time without events after which the stream is opened anew, after the last event.
const SILENCE: Duration = Duration::from_secs(2);
/// Number of deliveries to one channel that are in work at a time (docs/channels.md).
const AT_ONCE: usize = 2;
/// The events of a sandbox that came and went.
const LIFE: [&str; 4] = ["sandbox.starting", "sandbox.running", "sandbox.stopping", "sandbox.stopped"];

/// Number of times that both are restarted.
fn rounds() -> usize {
    short_or_long(1, 4)
}

/// What comes and goes.
#[derive(Default)]
struct Load {
    /// Ids of all sandboxes that were made.
    made: Mutex<BTreeSet<String>>,
    /// Ids of those that are there for certain.
    there: Mutex<BTreeSet<String>>,
    /// Number of sandboxes that have come and gone.
    lives: AtomicUsize,
    over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits until as many sandboxes have come and gone as there are workers.
    async fn goes_on(&self) -> Result<()> {
        let until = self.lives.load(Ordering::Relaxed) + WORKERS;
        let enough = async || (self.lives.load(Ordering::Relaxed) >= until).then_some(());
        wait_until("sandboxes to come and go", PATIENCE, enough).await
    }
}

/// Sends a request until the answer is no failure of the moment. Each failure has to have a code that is known.
async fn insist(stack: &Stack, request: impl Fn() -> RequestBuilder) -> Result<Reply> {
    let mut last = String::new();
    let answered = async || {
        let reply = match stack.api.send(request().timeout(ANSWER)).await {
            // The create with this key whose answer was lost may still be in work.
            Ok(reply) if reply.status >= 500 || reply.code() == "idempotency_in_progress" => reply,
            answered => return Some(answered),
        };
        last = format!("{}: {}", reply.status, String::from_utf8_lossy(&reply.bytes));
        let has_code = reply.code().parse::<ErrorCode>().is_ok();
        (!has_code).then(|| Err(anyhow!("a failure without a code")))
    };
    let found = wait_until("an answer that is no failure", PATIENCE, answered).await;
    found.and_then(|answer| answer).with_context(|| format!("the last failure was {last:?}"))
}

/// Returns whether a sandbox runs, as far as that is known: a host that stands still for long is taken for lost, and found again.
fn is_there(sandbox: &Value) -> bool {
    sandbox["status"] == "running" || sandbox["status"] == "missing"
}

/// Returns whether these are the events of a sandbox that came and went. Its host may have been taken for lost meanwhile.
fn is_life(mut kinds: Vec<&str>) -> bool {
    kinds.retain(|kind| *kind != "sandbox.missing");
    kinds.dedup();
    kinds == LIFE
}

/// Lets one sandbox come and go. What an answer says has to be true.
async fn live(stack: &Stack, load: &Load, key: &str) -> Result<()> {
    let (api, body) = (&stack.api, json!({"memory_mb": 256}));
    // By its key, a create whose first answer was a failure makes no second sandbox.
    let create = || api.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", key).json(&body);
    let made = insist(stack, create).await.context("create")?.expect(201)?.json();
    ensure!(is_there(&made) && made["memory_mb"] == 256, "{made}");
    let id = made["id"].as_str().context("no id")?;
    ensure!(lock(&load.made).insert(id.to_owned()), "{id} was made twice");
    lock(&load.there).insert(id.to_owned());

    let path = format!("/v1/sandboxes/{id}");
    let get = || api.request(Method::GET, &path);
    let seen = insist(stack, get).await.context("get")?.expect(200)?.json();
    ensure!(seen["id"] == id && is_there(&seen), "{seen}");
    let command = json!({"cmd": "echo", "args": [id]});
    let exec = || api.request(Method::POST, &format!("{path}/exec")).json(&command);
    let ran = insist(stack, exec).await.context("exec")?.expect(200)?.json();
    ensure!(ran["exit_code"] == 0 && ran["stdout"] == format!("{id}\n"), "{ran}");

    lock(&load.there).remove(id);
    let delete = || api.request(Method::DELETE, &path);
    insist(stack, delete).await.context("delete")?.expect(204)?;
    load.lives.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Lets sandboxes come and go, one after the other, until it is over.
async fn work(stack: &Stack, load: &Load, worker: usize) -> Result<()> {
    let mut number = 0;
    while !load.is_over() {
        number += 1;
        let key = format!("outage-{worker}-{number}");
        live(stack, load, &key).await.with_context(|| format!("sandbox {number} of worker {worker}"))?;
    }
    Ok(())
}

/// Lists sandboxes until it is over: whatever is there before and after a list is in it.
async fn list(stack: &Stack, load: &Load) -> Result<()> {
    while !load.is_over() {
        let before = lock(&load.there).clone();
        let list = || stack.api.request(Method::GET, "/v1/sandboxes?limit=100");
        let listed = insist(stack, list).await.context("list")?.expect(200)?.json();
        let all = listed.as_array().context("no list")?.iter();
        let ids: BTreeSet<&str> = all.filter_map(|sandbox| sandbox["id"].as_str()).collect();
        let after = lock(&load.there).clone();
        let mut both = before.intersection(&after);
        ensure!(both.all(|id| ids.contains(id.as_str())), "{before:?} and {after:?}, but {ids:?} are listed");
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Restarts PostgreSQL and Redis while the load goes on, and ends it.
async fn restart(stack: &Stack, load: &Load) -> Result<()> {
    for _ in 0..rounds() {
        load.goes_on().await?;
        stack.kill_and_wait("postgres").await?;
        load.goes_on().await.context("after the restart of PostgreSQL")?;
        // A kill could cost it what it has not yet written to its file.
        stack.end_and_wait("redis-server", Signal::TERM).await?;
        load.goes_on().await.context("after the restart of Redis")?;
    }
    load.over.store(true, Ordering::Relaxed);
    Ok(())
}

/// A reader of the event stream, which goes on after the last event whenever the stream ends.
struct Reader {
    /// Id of the last event.
    last: String,
    /// Events by sandbox.
    told: BTreeMap<String, Vec<Event>>,
}

/// Returns the two numbers of the id of an event.
fn place(id: &str) -> Result<(u64, u64)> {
    let (time, sequence) = id.split_once('-').unwrap_or((id, "0"));
    Ok((time.parse()?, sequence.parse()?))
}

impl Reader {
    /// Reads until the stream ends or is silent for a while.
    async fn read(&mut self, stack: &Stack) -> Result<()> {
        let opened = timeout(ANSWER, Events::open(&stack.api, Some(&self.last))).await;
        let mut events = match opened.context("the event stream does not answer")? {
            Ok(events) => events,
            Err(error) => {
                let told = format!("{error:#}");
                ensure!(told.contains("no event stream: 503"), "{told}");
                sleep(PAUSE).await;
                return Ok(());
            }
        };
        while let Ok(event) = events.next(SILENCE).await {
            ensure!(event.kind != "resync", "Redis was ended in order, and events are missing: {event:?}");
            ensure!(place(&event.id)? > place(&self.last)?, "{} comes after {}", event.id, self.last);
            self.last.clone_from(&event.id);
            if let Some(id) = event.data["sandbox"]["id"].as_str() {
                self.told.entry(id.to_owned()).or_default().push(event);
            }
        }
        Ok(())
    }

    /// Reads as long as the load goes on.
    async fn follow(&mut self, stack: &Stack, load: &Load) -> Result<()> {
        while !load.is_over() {
            self.read(stack).await?;
        }
        Ok(())
    }

    /// Reads until the end of each of these sandboxes is told, and checks that its whole life is.
    async fn finish(&mut self, stack: &Stack, made: &BTreeSet<String>) -> Result<()> {
        let begun = Instant::now();
        let has_ended = |told: &Vec<Event>| told.last().is_some_and(|event| event.kind == "sandbox.stopped");
        while !made.iter().all(|id| self.told.get(id).is_some_and(has_ended)) {
            ensure!(begun.elapsed() < PATIENCE, "of {made:?} there is only {:#?}", self.told);
            self.read(stack).await?;
        }
        for id in made {
            let events = self.told.get(id).map(Vec::as_slice).unwrap_or_default();
            ensure!(is_life(kinds_once(events)), "the stream has {events:#?}");
        }
        Ok(())
    }
}

/// Checks that each event has one delivery, and that hardly any delivery was made again: only those whose answer could not be recorded
/// because the database was gone, or came too late because the machine stood still.
fn check_deliveries(got: &[ReceivedWebhook]) -> Result<()> {
    let mut deliveries = BTreeMap::<String, BTreeSet<&str>>::new();
    for one in got {
        let event = one.body()["id"].to_string();
        deliveries.entry(event).or_default().insert(one.header("x-wrenn-delivery"));
    }
    let doubled: Vec<_> = deliveries.iter().filter(|(_, ids)| ids.len() != 1).collect();
    ensure!(doubled.is_empty(), "events with several deliveries: {doubled:?}");
    let again = got.len() - deliveries.len();
    ensure!(
        again <= rounds() * AT_ONCE + deliveries.len() / 4,
        "{again} of {} deliveries were made again",
        deliveries.len()
    );
    Ok(())
}

/// Waits until all is delivered, and checks what the receiver got of these sandboxes.
async fn finish_deliveries(stack: &Stack, receiver: &WebhookReceiver, made: &BTreeSet<String>) -> Result<()> {
    let mut waiting = String::new();
    let delivered = async || {
        let left = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM deliveries WHERE status <> 'delivered')";
        waiting = stack.sql(left).ok()?;
        (waiting == "0|0").then_some(())
    };
    // What a server has begun and could not record is made again half a minute later.
    let all = wait_until("all events to be delivered", PATIENCE, delivered).await;
    all.with_context(|| format!("in the outbox and in the queue are {waiting}"))?;
    let got = receiver.got();
    check_deliveries(&got)?;
    let told = told_in_order(&got);
    for id in made {
        let kinds = told.get(id).map(Vec::as_slice).unwrap_or_default();
        ensure!(is_life(kinds.iter().map(String::as_str).collect()), "of {id} the receiver got {kinds:?}");
    }
    Ok(())
}

/// Deletes what creates have left whose record was written and not confirmed, so that nobody called the host: each is an error.
async fn delete_unconfirmed(stack: &Stack, before: &[String]) -> Result<()> {
    for id in listed(stack).await?.iter().filter(|id| !before.contains(id)) {
        let left = record(stack, id).await.context("no record")?;
        ensure!(left["status"] == "error" && left["started_at"].is_null(), "nobody was told of {left}");
        delete_wholly(stack, id).await?;
    }
    Ok(())
}

/// While sandboxes come and go, PostgreSQL is killed and Redis is restarted. Every answer is right or says that it cannot be done now;
/// a reader of the stream and a receiver of webhooks are told the whole life of each sandbox, in order.
pub(crate) async fn stores_restart_under_load(stack: Arc<Stack>) -> Result<()> {
    let (server, before) = (stack.child("server")?, listed(&stack).await?);
    let receiver = WebhookReceiver::start((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let channel = json!({"name": "outages", "provider": "webhook", "events": LIFE,
        "config": {"url": format!("http://{}/", receiver.address())}});
    let channel = stack.api.post("/v1/channels", &channel).await?.expect(201)?.json();
    let channel = channel["id"].as_str().context("no channel")?;

    let load = Load::default();
    let mut reader = Reader { last: "0".to_owned(), told: BTreeMap::new() };
    let workers = try_join_all((0..WORKERS).map(|worker| work(&stack, &load, worker)));
    let restarts = restart(&stack, &load);
    try_join4(workers, list(&stack, &load), reader.follow(&stack, &load), restarts).await?;

    let made = lock(&load.made).clone();
    println!("  {} sandboxes came and went", made.len());
    reader.finish(&stack, &made).await?;
    finish_deliveries(&stack, &receiver, &made).await?;
    for id in &made {
        nothing_remains(&stack, id).await?;
    }
    delete_unconfirmed(&stack, &before).await?;
    ensure!(stack.child("server")? == server, "the control plane was restarted");
    stack.api.delete(&format!("/v1/channels/{channel}")).await?.expect(204)?;
    Ok(())
}
