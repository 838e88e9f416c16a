// SPDX-License-Identifier: Apache-2.0
//! The program of `examples/enterprise`, as a server of its own; and extensions whose hooks fail, or that cannot be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use enterprise::{Enterprise, VCPUS};
use futures::future::BoxFuture;
use serde_json::json;
use sqlx::PgConnection;
use wrenn_api::{ErrorCode, Event, TeamId};
use wrenn_control::{Extension, Fault, Hooks, Limits, Migrations, Services};
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

/// The events of a team for which a hook fails wait until it succeeds, those of other teams do not, and each is recorded once and in
/// order.
pub(crate) async fn events_wait_for_a_hook_that_fails(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.sql("CREATE TABLE records (entry bigserial, sandbox uuid, kind text)").await?;
    let stranger = "wrn_stranger0000000000000000000000";
    crate::unauthorized::team(&fixture, stranger, "NULL", "NULL").await?;
    let team = fixture.value("SELECT id::text FROM teams WHERE name = 'default'").await?;
    let (fails, team) = (Arc::new(AtomicBool::new(true)), TeamId::from(team.parse::<uuid::Uuid>()?));
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
