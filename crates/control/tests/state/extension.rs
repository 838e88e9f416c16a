// SPDX-License-Identifier: Apache-2.0
//! The program of `examples/enterprise`, as a server of its own; and extensions that know callers, whose hooks fail, or
//! that cannot be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use enterprise::{Enterprise, VCPUS};
use futures::future::{self, BoxFuture};
use reqwest::{Method, header::HeaderMap};
use serde_json::json;
use sqlx::PgConnection;
use wrenn_api::{ErrorCode, Event, TeamId};
use wrenn_control::{
    Authenticator, Caller, Extension, Fault, Hooks, Limits, Migrations, Permission, Permissions, Principal,
    Services,
};
use wrenn_testkit::{Events, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    second,
    stores::Stores,
};

/// Number of servers that run the program's worker, by the lock that they hold.
const WORKERS: &str =
    "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) + objid::bigint = hashtextextended('wrenn worker daily starts', 0)";

/// Its route needs a key, gets the caller, and is documented; one of its servers sums up what the hook has recorded, and the other one
/// goes on when that one is gone; its hook refuses a create with a code of its own.
pub(crate) async fn another_program_has_a_route_a_worker_tables_and_hooks(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.serve_with(|builder| builder.with_extension(Enterprise)).await?;
    let api = fixture.serve_with(|builder| builder.with_extension(Enterprise)).await?;
    // It has no hooks.
    fixture.stop_first().await?;
    second::wait_until_over().await;
    let path = "/v1/enterprise/starts";
    api.with_key("").get(path).await?.expect_error(401, "unauthorized")?;
    let document = api.get("/openapi.json").await?.json();
    let operation = &document["paths"][path]["get"];
    ensure!(
        operation["x-permission"] == "sandbox.read" && operation["security"][0].is_object(),
        "{operation}"
    );
    // The history of its migrations is in its own schema.
    let applied = fixture.value("SELECT count(*)::text FROM enterprise._sqlx_migrations").await?;
    ensure!(applied == "1", "{applied} migrations");
    fixture.wait_value(WORKERS, "1").await?;
    let starts = async |expected: i64| {
        let counted = async || (api.get(path).await.ok()?.json()[0]["starts"] == expected).then_some(());
        wait_until("the starts of the day", SOON, counted).await
    };
    let id = api.create(&json!({"memory_mb": 256})).await?;
    starts(1).await?;
    let refused = api.post("/v1/sandboxes", &json!({"vcpus": VCPUS + 1})).await?;
    let refused = refused.expect_error(403, "plan_exceeded")?.json();
    ensure!(refused["error"]["message"].as_str().is_some_and(|told| told.contains("vcpus")), "{refused}");
    ensure!(fixture.value("SELECT count(*)::text FROM sandboxes").await? == "1", "it was made");
    fixture.stop_first().await?;
    let pause = api.request(reqwest::Method::POST, &format!("/v1/sandboxes/{id}/pause"));
    api.send(pause).await?.expect(200)?;
    api.post(&format!("/v1/sandboxes/{id}/resume"), &json!({})).await?.expect(200)?;
    starts(2).await?;
    fixture.stop().await
}

/// Records each event, and fails for those of one team as long as it is told to.
struct Records {
    fails: Arc<AtomicBool>,
    team: TeamId,
}

impl Extension for Records {
    fn name(&self) -> &'static str {
        "records"
    }

    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        Some(Arc::new(Self { fails: self.fails.clone(), team: self.team }))
    }
}

impl Hooks for Records {
    fn on_event<'a>(
        &'a self,
        transaction: &'a mut PgConnection,
        team: TeamId,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let Event::Sandbox(event) = event else { return Ok(()) };
            let record = "INSERT INTO records (sandbox, kind) VALUES ($1, $2)";
            let record = sqlx::query(record).bind(event.sandbox.id.uuid()).bind(event.kind.to_string());
            record.execute(transaction).await?;
            if team == self.team && self.fails.load(Ordering::Relaxed) {
                return Err(Fault::new(ErrorCode::InternalError, "it is told to fail"));
            }
            Ok(())
        })
    }
}

/// Returns the team of the fixture's key.
async fn default_team(fixture: &Fixture) -> Result<TeamId> {
    let team = fixture.value("SELECT id::text FROM teams WHERE name = 'default'").await?;
    Ok(team.parse::<uuid::Uuid>()?.into())
}

/// The events of a team for which a hook fails wait until it succeeds, those of other teams do not, and each is recorded once and in
/// order.
pub(crate) async fn events_wait_for_a_hook_that_fails(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.sql("CREATE TABLE records (entry bigserial, sandbox uuid, kind text)").await?;
    let stranger = "wrn_stranger0000000000000000000000";
    crate::unauthorized::team(&fixture, stranger, "NULL", "NULL").await?;
    let (fails, team) = (Arc::new(AtomicBool::new(true)), default_team(&fixture).await?);
    let records = Records { fails: fails.clone(), team };
    let api = fixture.serve_with(|builder| builder.with_extension(records)).await?;
    fixture.stop_first().await?;
    second::wait_until_over().await;
    let mut events = Events::open(&api, None).await?;
    let held = api.create(&json!({"memory_mb": 256})).await?;
    let other = api.with_key(stranger);
    let mut of_other = Events::open(&other, None).await?;
    let free = other.create(&json!({"memory_mb": 256})).await?;
    of_other.until(&free, "sandbox.running").await?;
    ensure!(events.next(Duration::from_secs(1)).await.is_err(), "an event was told before its hook");
    let recorded = "SELECT coalesce(string_agg(kind, ' ' ORDER BY entry), '') FROM records WHERE sandbox = ";
    let of = |id: &str| anyhow::Ok(format!("{recorded}'{}'", id.parse::<wrenn_api::SandboxId>()?.uuid()));
    let kinds = "sandbox.starting sandbox.running";
    let (of_held, of_free) = (fixture.value(&of(&held)?).await?, fixture.value(&of(&free)?).await?);
    ensure!(of_held.is_empty() && of_free == kinds, "{of_held}; {of_free}");
    // The stream is opened anew, because the wait above has ended amid one.
    let mut events = Events::open(&api, None).await?;
    fails.store(false, Ordering::Relaxed);
    events.until(&held, "sandbox.running").await?;
    ensure!(fixture.value(&of(&held)?).await? == kinds, "not each once");
    fixture.stop().await
}

/// The badge that [`Badges`] knows.
const BADGE: &str = "badge-of-ada";
/// Who has it.
const ADA: uuid::Uuid = uuid::Uuid::from_u128(0xada);

/// Knows who has a badge, which is in a header: they see and create sandboxes of a team.
#[derive(Clone, Copy)]
struct Badges {
    team: TeamId,
}

impl Extension for Badges {
    fn name(&self) -> &'static str {
        "badges"
    }

    fn authenticators(&self, _: &Services) -> Vec<Arc<dyn Authenticator>> {
        let badges: Arc<dyn Authenticator> = Arc::new(*self);
        vec![badges]
    }
}

impl Authenticator for Badges {
    fn caller<'a>(&'a self, headers: &'a HeaderMap) -> BoxFuture<'a, Result<Option<Caller>, Fault>> {
        let badge = headers.get("x-badge").map(|badge| badge.to_str().unwrap_or_default());
        let known = match badge {
            None => Ok(None),
            Some(BADGE) => {
                let ada = Principal::Extension { name: "badges", id: ADA };
                let permissions = [Permission::SandboxRead, Permission::SandboxCreate];
                Ok(Some(Caller::new(ada, self.team, permissions.into_iter().collect::<Permissions>())))
            }
            Some(_) => Err(Fault::new(ErrorCode::Unauthorized, "nobody has this badge: ask for another one")),
        };
        Box::pin(future::ready(known))
    }
}

/// Whom only an extension knows does what it lets them do, for its team and by its name. It is not asked about who has a
/// key.
pub(crate) async fn an_extension_knows_callers_of_its_own(stores: &Arc<Stores>, name: &str) -> Result<()> {
    const WRONG: &str = "badge-of-nobody";
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let stranger = "wrn_stranger0000000000000000000000";
    crate::unauthorized::team(&fixture, stranger, "NULL", "NULL").await?;
    let badges = Badges { team: default_team(&fixture).await? };
    let api = fixture.serve_with(|builder| builder.with_extension(badges)).await?;
    let nobody = api.with_key("");
    let path = "/v1/sandboxes";
    // With a key, or without one if it is empty.
    let list = async |key: &str, badge: &str| {
        let api = api.with_key(key);
        api.send(api.request(Method::GET, path).header("X-Badge", badge)).await
    };
    let new = nobody.request(Method::POST, path).header("X-Badge", BADGE).json(&json!({"memory_mb": 256}));
    let made = nobody.send(new).await?.expect(201)?.json();
    let listed = list("", BADGE).await?.expect(200)?.json();
    ensure!(made["id"].is_string() && listed[0]["id"] == made["id"], "{made} and {listed}");
    // The team of the badge is that of the fixture's key.
    let of_team = api.get(path).await?.expect(200)?.json();
    ensure!(of_team[0]["id"] == made["id"], "{of_team}");
    let acts = "/v1/audit-logs?action=sandbox.create";
    let acts = fixture.api.get(acts).await?.expect(200)?.json();
    let actor = json!({"kind": "extension", "id": ADA.to_string(), "name": "badges"});
    ensure!(acts[0]["actor"] == actor && acts[0]["outcome"] == "succeeded", "{acts}");

    let lacks = nobody.request(Method::GET, "/v1/snapshots").header("X-Badge", BADGE);
    let refused = nobody.send(lacks).await?.expect_error(403, "forbidden")?.json();
    let told = refused["error"]["message"].as_str();
    ensure!(told.is_some_and(|told| told.contains("snapshot.read")), "{refused}");
    list("", WRONG).await?.expect_error(401, "unauthorized")?;
    nobody.get(path).await?.expect_error(401, "unauthorized")?;
    let without = fixture.api.with_key("");
    let unknown = without.request(Method::GET, path).header("X-Badge", BADGE);
    without.send(unknown).await?.expect_error(401, "unauthorized")?;

    for badge in [BADGE, WRONG] {
        let of_stranger = list(stranger, badge).await?.expect(200)?.json();
        ensure!(of_stranger == json!([]), "the key's team has {of_stranger}");
        list("garbage", badge).await?.expect_error(401, "unauthorized")?;
    }
    fixture.stop().await
}

/// An extension with a schema that is not its own.
struct Intruder;

static NO_MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate::Migrator::DEFAULT;

impl Extension for Intruder {
    fn name(&self) -> &'static str {
        "intruder"
    }

    fn migrations(&self) -> Option<Migrations> {
        Some(Migrations::new("public", &NO_MIGRATIONS))
    }
}

/// A route that anybody could call.
struct Open;

impl Extension for Open {
    fn name(&self) -> &'static str {
        "open"
    }

    fn routes(&self) -> utoipa_axum::router::OpenApiRouter<Services> {
        utoipa_axum::router::OpenApiRouter::new().routes(utoipa_axum::routes!(anybody))
    }
}

#[utoipa::path(get, path = "/anybody", responses((status = 200)))]
async fn anybody() {}

/// A route without a permission, and a schema that is the server's own, are refused when the server is built.
pub(crate) async fn an_extension_that_cannot_be_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let error = fixture.build_error(|builder| builder.with_extension(Open)).await?;
    ensure!(error.contains("/anybody") && error.contains("needs("), "{error}");
    let error = fixture.build_error(|builder| builder.with_extension(Intruder)).await?;
    ensure!(error.contains("intruder") && error.contains("\"public\""), "{error}");
    fixture.stop().await
}
