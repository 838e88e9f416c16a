// SPDX-License-Identifier: Apache-2.0
//! Every operation of the OpenAPI document, called by those who may not: without a key, with keys that are not
//! valid, and with a key of another team. The operations come from the document that the server itself serves,
//! so that a new route cannot be forgotten.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, RequestBuilder, multipart};
use serde_json::Value;
use wrenn_control::Limits;
use wrenn_testkit::Api;

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Time without a byte after which an event stream counts as silent.
const SILENCE: Duration = Duration::from_millis(500);

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    facts: Value,
}

pub(crate) async fn no_operation_serves_those_who_may_not(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let document = fixture.api.get("/openapi.json").await?.expect(200)?.json();
    let sandbox = fixture.create().await?;
    let operations = operations(&document)?;
    ensure!(operations.len() >= 11, "{} operations", operations.len());
    for (number, operation) in operations.iter().enumerate() {
        let checked = check(&fixture, &document, operation, &sandbox, number).await;
        checked.with_context(|| format!("{} {}", operation.method, operation.path))?;
    }
    let alive = fixture.record(&sandbox).await?;
    ensure!(alive["status"] == "running", "it was changed: {alive}");
    fixture.stop().await
}

fn operations(document: &Value) -> Result<Vec<Operation>> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().context("no paths")? {
        for (method, facts) in item.as_object().context("no operations")? {
            let (method, facts) = (method.to_uppercase().parse()?, facts.clone());
            all.push(Operation { method, path: path.clone(), facts });
        }
    }
    Ok(all)
}

async fn check(
    fixture: &Fixture,
    document: &Value,
    operation: &Operation,
    sandbox: &str,
    number: usize,
) -> Result<()> {
    let ask = |key: &str| request(document, operation, &fixture.api.with_key(key), sandbox);
    if operation.facts["security"].as_array().context("no security")?.is_empty() {
        fixture.api.send(ask("")?).await?.expect(200)?;
        return Ok(());
    }
    let permission = operation.facts["x-permission"].as_str();
    ensure!(permission.is_some_and(|name| name.contains('.')), "it names no permission");
    let (revoked, of_deleted_team) = (format!("wrn_revoked{number}"), format!("wrn_deleted{number}"));
    team(fixture, &revoked, "now()", "NULL").await?;
    team(fixture, &of_deleted_team, "NULL", "now()").await?;
    for key in ["", "garbage", "wrn_00000000000000000000000000000000", &revoked, &of_deleted_team] {
        let reply = fixture.api.send(ask(key)?).await?;
        reply.expect_error(401, "unauthorized").with_context(|| format!("with the key {key:?}"))?;
    }
    let stranger = format!("wrn_stranger{number}");
    team(fixture, &stranger, "NULL", "NULL").await?;
    as_stranger(fixture, operation, ask(&stranger)?, &stranger, sandbox)
        .await
        .context("with another team's key")
}

/// Creates a team with a key, each of which may be revoked or deleted.
async fn team(fixture: &Fixture, key: &str, revoked_at: &str, deleted_at: &str) -> Result<()> {
    let statement = format!(
        "WITH team AS (INSERT INTO teams (id, name, deleted_at) VALUES (gen_random_uuid(), '{key}', {deleted_at}) RETURNING id)
         INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256, revoked_at)
         SELECT gen_random_uuid(), id, '{key}', 'wrn_', sha256('{key}'::bytea), {revoked_at} FROM team"
    );
    fixture.sql(&statement).await
}

/// Checks that another team sees and changes nothing of the sandbox.
async fn as_stranger(
    fixture: &Fixture,
    operation: &Operation,
    request: RequestBuilder,
    key: &str,
    sandbox: &str,
) -> Result<()> {
    let stranger = fixture.api.with_key(key);
    // What is in the path, or of whose sandbox it makes something, is another team's.
    if operation.path.contains('{') || operation.path == "/v1/snapshots" && operation.method == Method::POST {
        stranger.send(request).await?.expect_error(404, "not_found")?;
        return Ok(());
    }
    let success = operation.facts["responses"].as_object().context("no responses")?;
    let (status, success) =
        success.iter().find(|(status, _)| status.starts_with('2')).context("no success")?;
    let content = &success["content"];
    if content["text/event-stream"].is_object() {
        let silent = is_silent(request.header("Last-Event-ID", "0")).await?;
        ensure!(silent, "it gets events");
        let owner = fixture.api.request(Method::GET, &operation.path).header("Last-Event-ID", "0");
        ensure!(!is_silent(owner).await?, "the owner gets none either");
        return Ok(());
    }
    let reply = stranger.send(request).await?.expect(status.parse()?)?.json();
    match &content["application/json"]["schema"] {
        list if list["type"] == "array" => {
            // The platform's templates are for everybody.
            let owned = |one: &&Value| one["kind"] != "base";
            let foreign = reply.as_array().is_some_and(|all| all.iter().any(|one| owned(&one)));
            ensure!(reply.is_array() && !foreign, "it sees {reply}");
        }
        // What it makes is its own.
        _ if operation.method == Method::POST => {
            let made = reply["id"].as_str().context("no id")?;
            ensure!(made != sandbox, "it got the sandbox of the other team");
            fixture.api.get(&format!("{}/{made}", operation.path)).await?.expect_error(404, "not_found")?;
        }
        other => bail!("this test does not know what another team may see of {other}: teach it"),
    }
    Ok(())
}

/// Returns whether a stream sends nothing for a while.
async fn is_silent(request: RequestBuilder) -> Result<bool> {
    let mut response = request.send().await?;
    ensure!(response.status() == 200, "status {}", response.status());
    Ok(tokio::time::timeout(SILENCE, response.chunk()).await.is_err())
}

/// Builds a valid request, with the examples of the document.
fn request(document: &Value, operation: &Operation, api: &Api, sandbox: &str) -> Result<RequestBuilder> {
    let path = operation.path.replace("{id}", sandbox).replace("{name}", "nobodys");
    let path = path.replace("{selector}", "nobodys").replace("{port}", "8000");
    ensure!(!path.contains('{'), "this test does not know a parameter of the path: teach it");
    let parameters = operation.facts["parameters"].as_array().into_iter().flatten();
    let needed = parameters.filter(|one| one["in"] == "query" && one["required"] == true);
    let pair = |one: &Value| Some((one["name"].as_str()?.to_owned(), one["example"].as_str()?.to_owned()));
    let query: Vec<_> = needed.filter_map(pair).collect();
    let request = api.request(operation.method.clone(), &path).query(&query).timeout(SOON);
    let Some(content) = operation.facts["requestBody"]["content"].as_object() else { return Ok(request) };
    let (kind, content) = content.iter().next().context("no content")?;
    if ["application/octet-stream", "application/x-tar"].contains(&kind.as_str()) {
        return Ok(request.body("content"));
    }
    // One that may be left out has null as an alternative.
    let choices = content["schema"]["oneOf"].as_array().map_or_else(Vec::new, Clone::clone);
    let schema = choices.iter().chain([&content["schema"]]).find_map(|schema| schema["$ref"].as_str());
    let schema = schema.context("no schema")?.trim_start_matches('#');
    let mut example = document.pointer(schema).context("a schema that is not there")?["example"].clone();
    if let Some(id) = example.get_mut("sandbox_id") {
        *id = sandbox.into();
    }
    match kind.as_str() {
        "application/json" => Ok(request.json(&example)),
        "multipart/form-data" => {
            let parts = example.as_object().context("no example of the form")?;
            let form = parts.iter().fold(multipart::Form::new(), |form, (name, value)| {
                form.text(name.clone(), value.as_str().unwrap_or_default().to_owned())
            });
            Ok(request.multipart(form))
        }
        other => bail!("this test cannot make a body of the type {other}: teach it"),
    }
}
