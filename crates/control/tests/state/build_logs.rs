// SPDX-License-Identifier: Apache-2.0
//! Case of the log of a build, as a client follows it. The log is put into the database as a worker does it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use wrenn_api::BuildId;
use wrenn_control::{Admin, Limits};
use wrenn_testkit::{Event, Events};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Adds an entry.
async fn write(fixture: &Fixture, build: BuildId, step: u32, text: &str) -> Result<()> {
    let id = build.uuid();
    fixture
        .sql(&format!(
            "INSERT INTO build_logs (build_id, step, stream, text) VALUES ('{id}', {step}, 'stdout', '{text}')"
        ))
        .await
}

/// Reads the next entry, and returns its text.
async fn text(log: &mut Events) -> Result<String> {
    let Event { id, kind, data } = log.next(SOON).await?;
    ensure!(
        kind == "log" && data["offset"].as_i64() == id.parse().ok() && data["stream"] == "stdout",
        "{id} {kind} {data}"
    );
    Ok(data["text"].as_str().context("no text")?.to_owned())
}

/// A log comes as far as it is, goes on while the build runs, is resumed anywhere, and ends with the build.
pub(crate) async fn a_log_is_followed_to_its_end(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.key_check = Duration::from_millis(100);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let build = BuildId::new();
    let (id, path) = (build.uuid(), format!("/v1/templates/builds/{build}/logs"));
    fixture
        .sql(&format!(
            "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, lease_until)
             SELECT '{id}', id, 'web', 'latest', '', '{{}}', 1, 512, 5120, 'running', now() + interval '1 hour' FROM teams
             WHERE name = 'default'"
        ))
        .await?;
    write(&fixture, build, 1, "one").await?;
    write(&fixture, build, 2, "two").await?;
    let at = |query: &str| format!("{path}{query}");
    let mut log = Events::open_at(&fixture.api, &path, None).await?;
    let first = log.next(SOON).await?;
    ensure!(first.kind == "log" && first.data["text"] == "one" && first.data["step"] == 1, "{first:?}");
    ensure!(text(&mut log).await? == "two");
    let mut of_step = Events::open_at(&fixture.api, &at("?step=2"), None).await?;
    ensure!(text(&mut of_step).await? == "two");
    // More than come at a time.
    let many = format!(
        "INSERT INTO build_logs (build_id, step, stream, text)
         SELECT '{id}', 2, 'stdout', n::text FROM generate_series(1, 1200) AS all_of(n) ORDER BY all_of.n"
    );
    fixture.sql(&many).await?;
    for n in 1..=1200 {
        let got = text(&mut log).await?;
        ensure!(got == n.to_string(), "{got} instead of {n}");
    }

    // A key that is revoked gets no more.
    let revoked = Admin::new(&stores.database_url(name))?.ensure_api_key(None).await?;
    let mut ended = Events::open_at(&fixture.api.with_key(&revoked), &at("?step=1"), None).await?;
    ensure!(text(&mut ended).await? == "one");
    let hash = format!("sha256('{revoked}'::bytea)");
    fixture.sql(&format!("UPDATE api_keys SET revoked_at = now() WHERE secret_sha256 = {hash}")).await?;
    let end = ended.next(SOON).await.err().context("an event after the revocation")?;
    ensure!(end.to_string().contains("stream ended"), "{end:#}");

    write(&fixture, build, 3, "last").await?;
    let succeeded = "UPDATE builds SET status = 'succeeded', version = 7, ended_at = now()";
    fixture.sql(&format!("{succeeded} WHERE id = '{id}'")).await?;
    ensure!(text(&mut log).await? == "last");
    let end = log.next(SOON).await?;
    ensure!(end.kind == "end" && end.data["status"] == "succeeded" && end.data["version"] == 7, "{end:?}");
    ensure!(log.next(SOON).await.is_err_and(|error| error.to_string().contains("stream ended")));
    // After the last entry there is only the end, also for who follows one step.
    let mut again = Events::open_at(&fixture.api, &path, Some(&end.id)).await?;
    ensure!(again.next(SOON).await?.kind == "end");
    let mut rest = Events::open_at(&fixture.api, &at("?offset=1&step=3"), None).await?;
    ensure!(text(&mut rest).await? == "last" && rest.next(SOON).await?.kind == "end");
    // What a client has seen counts more than where it began.
    let mut resumed = Events::open_at(&fixture.api, &at("?offset=0"), Some(&first.id)).await?;
    ensure!(text(&mut resumed).await? == "two");

    for query in ["?step=-1", "?step=1001", "?offset=-1", "?offset=x", "?offset=1&offset=2", "?from=1"] {
        let reply = fixture.api.get(&at(query)).await?;
        reply.expect_error(400, "invalid_request").with_context(|| query.to_owned())?;
    }
    let nobodys = format!("/v1/templates/builds/{}/logs", BuildId::new());
    fixture.api.get(&nobodys).await?.expect_error(404, "not_found")?;
    fixture.api.get("/v1/templates/builds/sb03/logs").await?.expect_error(400, "invalid_request")?;
    fixture.stop().await
}
