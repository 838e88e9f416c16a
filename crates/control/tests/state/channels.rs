// SPDX-License-Identifier: Apache-2.0
//! Cases of channels: events reach receivers in order, however servers and receivers fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use axum::{Router, extract::State};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tokio_util::task::AbortOnDropHandle;
use wrenn_control::{Limits, new_channel_key};
use wrenn_testkit::{ReceivedWebhook, WebhookReceiver, told_in_order, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    log_scan, second,
    stores::Stores,
};

/// Types of all events of these cases.
const ALL: [&str; 7] = [
    "sandbox.starting",
    "sandbox.running",
    "sandbox.pausing",
    "sandbox.paused",
    "sandbox.resuming",
    "sandbox.stopping",
    "sandbox.stopped",
];

/// A secret that is looked for in the log.
const SECRET: &str = "hush-webhook-0123456789abcdef";

/// Returns an address that nobody listens on.
async fn free_address() -> Result<SocketAddr> {
    static GIVEN: AtomicU8 = AtomicU8::new(1);
    let last = GIVEN.fetch_add(1, Ordering::Relaxed);
    Ok(TcpListener::bind((Ipv4Addr::new(127, 2, 0, last), 0)).await?.local_addr()?)
}

/// Where the answer to a request goes.
type Answer = oneshot::Sender<StatusCode>;

/// A receiver whose answers the case gives.
struct Asking {
    requests: mpsc::UnboundedReceiver<Answer>,
    _serving: AbortOnDropHandle<()>,
}

impl Asking {
    async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (asked, requests) = mpsc::unbounded_channel();
        let router = Router::new().fallback(ask).with_state(asked);
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { requests, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Waits for the next request.
    async fn next(&mut self) -> Result<Answer> {
        tokio::time::timeout(SOON, self.requests.recv()).await?.context("the receiver has ended")
    }
}

/// Asks the case for the answer to a request.
async fn ask(State(asked): State<mpsc::UnboundedSender<Answer>>, _text: String) -> StatusCode {
    let (answer, given) = oneshot::channel();
    let _ = asked.send(answer);
    given.await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn webhook(name: &str, address: SocketAddr, events: &[&str]) -> Value {
    json!({"name": name, "provider": "webhook", "config": {"url": format!("http://{address}/hook")}, "events": events})
}

/// Creates a channel, and returns its id and its secret.
async fn create(fixture: &Fixture, channel: &Value) -> Result<(String, String)> {
    let made = fixture.api.post("/v1/channels", channel).await?.expect(201)?.json();
    let text =
        |name: &str| made[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {made}"));
    let (id, secret) = (text("id")?, text("secret")?);
    log_scan::look_for(&secret);
    Ok((id, secret))
}

/// Returns the signature that a webhook has to have.
fn signature(secret: &str, got: &ReceivedWebhook) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = format!("{}.{}", got.header("x-wrenn-timestamp"), got.text);
    let tag = hmac::sign(&key, signed.as_bytes());
    let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// Lets receivers that failed be tried again soon: one that was down for long on a slow machine would be tried in minutes.
async fn try_again_soon(fixture: &Fixture) -> Result<()> {
    fixture.sql("UPDATE channel_lanes SET at = now() WHERE lease IS NULL").await?;
    fixture.sql("UPDATE channels SET retry_at = NULL, due_at = now()").await
}

/// A receiver that was down while two servers were killed gets every event, in the order of each sandbox; another one waits for
/// none of them.
pub(crate) async fn a_receiver_that_was_down_gets_every_event_in_order(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (down, up) = (free_address().await?, free_address().await?);
    let other = WebhookReceiver::start(up).await?;
    let (channel, _) = create(&fixture, &webhook("down", down, &ALL)).await?;
    create(&fixture, &webhook("up", up, &ALL)).await?;
    let (first, second) = (fixture.create().await?, fixture.create().await?);
    let path = format!("/v1/channels/{channel}");
    let fails = async || fixture.api.get(&path).await.ok()?.json()["failing_since"].is_string().then_some(());
    wait_until("a failure", SOON, fails).await?;

    let next = fixture.serve().await?;
    fixture.kill_first();
    fixture.api = next;
    fixture.pause(&first).await?;
    fixture.api.remove(&second).await?;
    let next = fixture.serve().await?;
    fixture.kill_first();
    fixture.api = next;
    fixture.api.remove(&first).await?;
    let ended = "SELECT count(*)::text FROM deliveries WHERE event = 'sandbox.stopped'";
    fixture.wait_value(ended, "4").await?;

    let receiver = WebhookReceiver::start(down).await?;
    try_again_soon(&fixture).await?;
    fixture.wait_value("SELECT count(*)::text FROM deliveries WHERE status <> 'delivered'", "0").await?;
    let of = |all: &[&str]| all.iter().map(|status| format!("sandbox.{status}")).collect::<Vec<_>>();
    let expected = BTreeMap::from([
        (first, of(&["starting", "running", "pausing", "paused", "stopping", "stopped"])),
        (second, of(&["starting", "running", "stopping", "stopped"])),
    ]);
    for (which, got) in [("down", receiver.got()), ("up", other.got())] {
        ensure!(told_in_order(&got) == expected, "the one that was {which} got {:#?}", told_in_order(&got));
    }
    let channel = fixture.api.get(&path).await?.expect(200)?.json();
    ensure!(channel["failing_since"].is_null(), "{channel}");
    fixture.stop().await
}

/// What nobody of the team does reaches a receiver that was down, too, and says why: what is deleted because nobody uses it, what an
/// administrator deletes, and what a host has lost.
pub(crate) async fn what_the_system_does_reaches_a_receiver_that_was_down(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let down = free_address().await?;
    create(&fixture, &webhook("down", down, &["sandbox.stopped", "sandbox.error"])).await?;
    let body = json!({"memory_mb": 256, "timeout_sec": 3600, "on_timeout": "delete"});
    let idle = fixture.api.create(&body).await?;
    let (lost, administered) = (fixture.create().await?, fixture.create().await?);
    fixture.sql("UPDATE sandboxes SET last_active_at = now() - interval '2 hours'").await?;
    fixture.wait_status(&idle, "stopped").await?;
    fixture.agent().now().sandboxes.remove(&lost);
    fixture.wait_status(&lost, "error").await?;
    fixture.api.delete(&format!("/v1/admin/sandboxes/{administered}")).await?.expect(204)?;
    fixture.wait_value("SELECT count(*)::text FROM deliveries", "3").await?;
    let next = fixture.serve().await?;
    fixture.kill_first();
    fixture.api = next;

    let receiver = WebhookReceiver::start(down).await?;
    try_again_soon(&fixture).await?;
    fixture.wait_value("SELECT count(*)::text FROM deliveries WHERE status <> 'delivered'", "0").await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bodies = receiver.got().iter().map(ReceivedWebhook::body).collect::<Vec<_>>();
    let told = bodies.iter().map(|body| [&body["resource"]["id"], &body["event"], &body["cause"]].map(text));
    let expected = [
        [idle.as_str(), "sandbox.stopped", "idle"],
        [administered.as_str(), "sandbox.stopped", "admin"],
        [lost.as_str(), "sandbox.error", "host"],
    ];
    let expected = BTreeSet::from(expected.map(|one| one.map(str::to_owned)));
    ensure!(told.collect::<BTreeSet<_>>() == expected, "{bodies:#?}");
    fixture.stop().await
}

/// What would wait for an hour goes to another receiver as soon as the channel leads there, also what a server works on.
pub(crate) async fn what_waits_goes_to_another_receiver_at_once(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (down, up) = (free_address().await?, free_address().await?);
    let events = ["sandbox.starting", "sandbox.running"];
    let (channel, _) = create(&fixture, &webhook("ops", down, &events)).await?;
    let (first, second) = (fixture.create().await?, fixture.create().await?);
    fixture.wait_value("SELECT count(*)::text FROM deliveries", "4").await?;
    fixture
        .sql(
            "UPDATE channels SET retry_at = now() + interval '1 hour', due_at = now() + interval '1 hour', failures = 9,
                 failing_since = now();
             UPDATE channel_lanes SET at = now() + interval '1 hour', lease = gen_random_uuid()",
        )
        .await?;
    let receiver = WebhookReceiver::start(up).await?;
    let config = json!({"config": {"url": format!("http://{up}/hook")}}).to_string();
    let configured =
        fixture.send_json(Method::PUT, &format!("/v1/channels/{channel}/config"), &config).await?;
    let configured = configured.expect(200)?.json();
    ensure!(configured["failing_since"].is_null(), "{configured}");
    fixture.wait_value("SELECT count(*)::text FROM deliveries WHERE status <> 'delivered'", "0").await?;
    let both = events.map(str::to_owned).to_vec();
    let expected = BTreeMap::from([(first, both.clone()), (second, both)]);
    let got = told_in_order(&receiver.got());
    ensure!(got == expected, "{got:#?}");
    fixture.stop().await
}

/// What came of an attempt does not count when another server has taken it over meanwhile.
pub(crate) async fn an_attempt_that_was_taken_over_does_not_count(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let address = free_address().await?;
    let mut receiver = Asking::start(address).await?;
    create(&fixture, &webhook("ops", address, &["sandbox.running"])).await?;
    fixture.create().await?;
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
        let answer = receiver.next().await?;
        fixture.sql("UPDATE channel_lanes SET lease = gen_random_uuid()").await?;
        ensure!(answer.send(status).is_ok(), "nobody waits for the answer");
        // Until the server has found out.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let state = "SELECT concat_ws(' ', d.status, d.error IS NULL, l.lease IS NULL, c.failures)
             FROM deliveries d, channel_lanes l, channels c";
        let state = fixture.value(state).await?;
        ensure!(state == "pending t f 0", "{state:?} after {status}");
        fixture.sql("UPDATE channels SET due_at = now(); UPDATE channel_lanes SET at = now()").await?;
    }
    ensure!(receiver.next().await?.send(StatusCode::OK).is_ok(), "nobody waits for the answer");
    let state = "SELECT concat_ws(' ', status, attempts) FROM deliveries";
    fixture.wait_value(state, "delivered 3").await?;
    ensure!(fixture.value("SELECT count(*)::text FROM channel_lanes").await? == "0");
    fixture.stop().await
}

/// At most 50,000 events wait for a channel, also if its receiver does not fail; the oldest are given up.
pub(crate) async fn what_waits_for_a_channel_is_bounded(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    create(&fixture, &webhook("slow", free_address().await?, &["sandbox.running"])).await?;
    fixture
        .sql(
            "UPDATE channels SET due_at = now() + interval '1 hour';
             INSERT INTO channel_lanes (channel_id, subject, at) SELECT id, 'one', now() + interval '1 hour' FROM channels;
             INSERT INTO deliveries (channel_id, occurrence, sequence, subject, event, payload)
             SELECT c.id, gen_random_uuid(), n, 'one', 'sandbox.running', '{}'::jsonb
             FROM channels c, generate_series(1, 50003) n",
        )
        .await?;
    // Another server begins a round at once.
    let next = fixture.serve().await?;
    fixture.stop_first().await?;
    fixture.api = next;
    let given_up = "SELECT coalesce(string_agg(sequence::text, ' ' ORDER BY sequence), '') FROM deliveries WHERE status = 'failed'";
    fixture.wait_value(given_up, "1 2 3").await?;
    ensure!(fixture.value("SELECT count(*)::text FROM channels WHERE failing_since IS NULL").await? == "1");
    fixture.stop().await
}

/// An event that its receiver does not take for a day is given up; the next one of its subject goes on, and what was
/// given up can be asked for again.
pub(crate) async fn what_is_not_taken_in_time_is_given_up(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let address = free_address().await?;
    let (channel, _) =
        create(&fixture, &webhook("ops", address, &["sandbox.starting", "sandbox.running"])).await?;
    let id = fixture.create().await?;
    let tried = "SELECT concat_ws(' ', count(*), count(error), count(attempted_at)) FROM deliveries";
    fixture.wait_value(tried, "2 1 1").await?;
    fixture
        .sql(
            "UPDATE deliveries SET queued_at = now() - CASE event WHEN 'sandbox.starting' THEN interval '25 hours'
                 ELSE interval '23 hours' END",
        )
        .await?;
    // Another server begins a round at once.
    let next = fixture.serve().await?;
    fixture.stop_first().await?;
    fixture.api = next;
    fixture.wait_value("SELECT event FROM deliveries WHERE status = 'failed'", "sandbox.starting").await?;
    let path = format!("/v1/channels/{channel}/deliveries");
    let listed = fixture.api.get(&path).await?.expect(200)?.json();
    let (waits, failed) = (&listed[0], &listed[1]);
    ensure!(waits["event"] == "sandbox.running" && waits["status"] == "pending", "{listed}");
    ensure!(failed["event"] == "sandbox.starting" && failed["status"] == "failed", "{listed}");
    ensure!(failed["ended_at"].is_string() && failed["next_attempt_at"].is_null(), "{listed}");
    let why = failed["error"].as_str().unwrap_or_default();
    ensure!(why.contains("cannot be reached"), "{listed}");

    let receiver = WebhookReceiver::start(address).await?;
    // The receiver would be left alone for a while.
    fixture
        .sql(
            "UPDATE channel_lanes SET at = now() WHERE lease IS NULL;
             UPDATE channels SET retry_at = NULL, due_at = now()",
        )
        .await?;
    let delivered = "SELECT count(*)::text FROM deliveries WHERE status = 'delivered'";
    fixture.wait_value(delivered, "1").await?;
    let got = told_in_order(&receiver.got());
    let mut expected = vec!["sandbox.running".to_owned()];
    ensure!(got == BTreeMap::from([(id.clone(), expected.clone())]), "{got:#?}");

    let failed = failed["id"].as_str().context("no id")?;
    fixture.send(Method::POST, &format!("{path}/{failed}/redeliver"), None).await?.expect(202)?;
    fixture.wait_value(delivered, "2").await?;
    let got = receiver.got();
    expected.push("sandbox.starting".to_owned());
    ensure!(told_in_order(&got) == BTreeMap::from([(id, expected)]), "{:#?}", told_in_order(&got));
    ensure!(got.iter().any(|one| one.header("x-wrenn-delivery") == failed), "another delivery");
    let listed = fixture.api.get(&path).await?.expect(200)?.json();
    let again = &listed[1];
    ensure!(again["id"] == failed && again["status"] == "delivered", "{listed}");
    ensure!(again["attempts"] == 1 && again["response_status"] == 200, "{listed}");
    ensure!(again["error"].is_null(), "{listed}");
    fixture.stop().await
}

/// Messages are signed with their time, logged, and sent again on demand with the same ids. Each occurrence has an id of its own.
pub(crate) async fn deliveries_are_signed_logged_and_repeated(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let address = free_address().await?;
    let receiver = WebhookReceiver::start(address).await?;
    let (channel, secret) =
        create(&fixture, &webhook("ops", address, &["sandbox.running", "sandbox.paused"])).await?;
    let path = format!("/v1/channels/{channel}");
    let shown = fixture.api.get(&path).await?.expect(200)?.json();
    ensure!(shown["secret"].is_null() && shown["config"].is_null(), "{shown}");
    let kept = fixture.value("SELECT encode(config, 'escape') FROM channels").await?;
    ensure!(!kept.contains(&secret) && !kept.contains(&address.to_string()), "it is kept in clear");

    let id = fixture.create().await?;
    for _ in 0..5 {
        fixture.pause(&id).await?;
        fixture.send(Method::POST, &format!("/v1/sandboxes/{id}/resume"), None).await?.expect(200)?;
    }
    let got = receiver.wait(11).await?;
    let ids: BTreeSet<String> = got.iter().map(|one| one.body()["id"].to_string()).collect();
    ensure!(ids.len() == 11, "{} ids of 11 occurrences", ids.len());
    for one in &got {
        ensure!(one.header("x-wrenn-signature") == signature(&secret, one), "the signature is not right");
        let body = one.body();
        ensure!(body["event"] == one.header("x-wrenn-event") && body["resource"]["id"] == id, "{body}");
        ensure!(body["cause"] == "user" && body["actor"]["type"] == "api_key", "{body}");
        ensure!(body["data"]["sandbox"]["id"] == id, "{body}");
    }

    let delivered = "SELECT count(*)::text FROM deliveries WHERE status = 'delivered'";
    fixture.wait_value(delivered, "11").await?;
    let first = fixture.api.get(&format!("{path}/deliveries?limit=10")).await?.expect(200)?;
    let cursor = first.headers.get("x-next-cursor").context("no cursor")?.to_str()?.to_owned();
    let rest = fixture.api.get(&format!("{path}/deliveries?limit=10&cursor={cursor}")).await?.expect(200)?;
    ensure!(!rest.headers.contains_key("x-next-cursor"), "there is a third page");
    let all: Vec<Value> =
        [first.json(), rest.json()].iter().filter_map(Value::as_array).flatten().cloned().collect();
    ensure!(all.len() == 11, "{all:#?}");
    let is_done =
        |one: &Value| one["status"] == "delivered" && one["attempts"] == 1 && one["response_status"] == 200;
    ensure!(all.iter().all(is_done), "{all:#?}");

    let last = all.last().and_then(|one| one["id"].as_str()).context("no delivery")?;
    let again = format!("{path}/deliveries/{last}/redeliver");
    fixture.send(Method::POST, &again, None).await?.expect(202)?;
    let got = receiver.wait(12).await?;
    let (before, after) = (&got[0], &got[11]);
    ensure!(
        before.header("x-wrenn-delivery") == last && after.header("x-wrenn-delivery") == last,
        "another delivery"
    );
    ensure!(before.text == after.text, "another body");
    fixture.wait_value(delivered, "11").await?;
    let unknown = format!("{path}/deliveries/{}/redeliver", wrenn_api::DeliveryId::new());
    fixture.send(Method::POST, &unknown, None).await?.expect_error(404, "not_found")?;

    fixture.api.delete(&path).await?.expect(204)?;
    fixture.api.get(&path).await?.expect_error(404, "not_found")?;
    fixture.api.delete(&path).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

/// The key of configurations is exchanged as docs/channels.md says: at each step events are delivered with the same secret, in the
/// end by a server that does not have the old key.
pub(crate) async fn a_key_is_exchanged_while_events_are_delivered(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    // It would not get the new key.
    second::wait_until_over().await;
    let receiver = WebhookReceiver::start(free_address().await?).await?;
    let channel = webhook("ops", receiver.address(), &["sandbox.running"]);
    let (_, secret) = create(&fixture, &channel).await?;
    // Recorded, and not only received: a server that ends in between leaves a delivery that is made again.
    let delivered = "SELECT count(*)::text FROM deliveries WHERE status = 'delivered'";
    fixture.create().await?;
    fixture.wait_value(delivered, "1").await?;
    let file = fixture.channel_key();
    let (old, new) = (fs::read_to_string(&file)?, new_channel_key(2)?);
    let sealed_with = "SELECT string_agg(key_number::text, ' ') FROM channels";
    ensure!(fixture.value(sealed_with).await? == "1", "another key: {}", fixture.value(sealed_with).await?);
    let steps = [(format!("{old}{new}"), "1"), (format!("{new}{old}"), "2"), (new, "2")];
    for (done, (keys, number)) in (1..).zip(steps) {
        fs::write(&file, keys)?;
        let next = fixture.serve().await?;
        fixture.stop_first().await?;
        fixture.api = next;
        // Once before the configuration is encrypted anew, if it is, and once afterwards.
        fixture.create().await?;
        fixture.wait_value(delivered, &(2 * done).to_string()).await?;
        fixture.wait_value(sealed_with, number).await?;
        fixture.create().await?;
        fixture.wait_value(delivered, &(2 * done + 1).to_string()).await?;
    }
    let got = receiver.got();
    ensure!(got.len() == 7, "{got:#?}");
    for one in got {
        ensure!(one.header("x-wrenn-signature") == signature(&secret, &one), "another secret");
    }
    let failed = "SELECT count(*)::text FROM deliveries WHERE error IS NOT NULL OR attempts <> 1";
    ensure!(fixture.value(failed).await? == "0", "attempts failed");
    fixture.stop().await
}

/// Targets in private networks, redirects, and what is not well formed are refused; a test tells what came of it.
pub(crate) async fn what_a_channel_cannot_be_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let address = free_address().await?;
    let receiver = WebhookReceiver::start(address).await?;
    let good = webhook("ops", address, &["sandbox.running"]);
    let with = |field: &str, value: Value| {
        let mut channel = good.clone();
        channel[field] = value;
        channel
    };
    let url = |url: &str| with("config", json!({ "url": url }));
    for wrong in [
        url("http://10.0.0.1/"),
        url("http://[::1]/"),
        url("http://[::ffff:10.0.0.1]/"),
        url("http://169.254.169.254/latest"),
        url("ftp://example.com/"),
        with("config", json!({"webhook_url": "https://example.com/"})),
        with("config", json!({})),
        with("events", json!([])),
        with("events", json!(["sandbox.flying"])),
        with("events", json!(["sandbox.pending"])),
        with("events", json!(["resync"])),
        with("provider", json!("pager")),
        with("name", json!("")),
    ] {
        let reply = fixture.api.post("/v1/channels", &wrong).await?;
        reply.expect_error(400, "invalid_request").with_context(|| wrong.to_string())?;
    }
    let (channel, _) = create(&fixture, &good).await?;
    fixture.api.post("/v1/channels", &with("name", json!(" OPS "))).await?.expect_error(409, "conflict")?;
    for number in 1..20 {
        create(&fixture, &with("name", json!(format!("ops{number}")))).await?;
    }
    let reply = fixture
        .api
        .post("/v1/channels", &with("name", json!("more")))
        .await?
        .expect_error(409, "conflict")?;
    ensure!(reply.json()["error"]["message"].as_str().is_some_and(|told| told.contains("20 channels")));
    let path = format!("/v1/channels/{channel}");
    let taken = fixture.send_json(Method::PATCH, &path, r#"{"name": "ops1"}"#).await?;
    taken.expect_error(409, "conflict")?;
    let changed =
        fixture.send_json(Method::PATCH, &path, r#"{"events": ["host.down", "sandbox.error"]}"#).await?;
    let changed = changed.expect(200)?.json();
    ensure!(
        changed["events"] == json!(["host.down", "sandbox.error"]) && changed["name"] == "ops",
        "{changed}"
    );
    log_scan::look_for(SECRET);
    let config =
        json!({"config": {"url": format!("http://{address}/{SECRET}"), "secret": SECRET}}).to_string();
    let configured =
        fixture.send_json(Method::PUT, &format!("{path}/config"), &config).await?.expect(200)?.json();
    ensure!(configured["secret"].is_null(), "a given secret is told: {configured}");

    let test =
        |path: &str| json!({"provider": "webhook", "config": {"url": format!("http://{address}{path}")}});
    let tested = fixture.api.post("/v1/channels/test", &test("/hook")).await?.expect(200)?.json();
    ensure!(tested == json!({"status": "ok"}), "{tested}");
    let reply =
        fixture.api.post("/v1/channels/test", &test("/away")).await?.expect_error(502, "channel_failed")?;
    ensure!(
        reply.json()["error"]["message"].as_str().is_some_and(|told| told.contains("307")),
        "{}",
        reply.json()
    );
    let got = receiver.got();
    ensure!(got.len() == 2 && got[0].body()["event"] == "channel.test", "{} messages", got.len());
    let url = format!("http://{}/{SECRET}", free_address().await?);
    let nobody = json!({"provider": "slack", "config": {"webhook_url": url}});
    let reply = fixture.api.post("/v1/channels/test", &nobody).await?.expect_error(502, "channel_failed")?;
    ensure!(!reply.json().to_string().contains(SECRET), "the URL is told: {}", reply.json());
    fixture.stop().await
}
