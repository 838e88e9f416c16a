// SPDX-License-Identifier: Apache-2.0
//! The operations of the OpenAPI document that the server itself serves, for tests that walk through all of them: a new route cannot
//! be forgotten.

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, RequestBuilder, multipart};
use serde_json::Value;
use wrenn_api::{
    ApiKeyId, BuildId, ChannelId, DeliveryId, InvitationId, SandboxId, SessionId, TeamId, UserId,
};
use wrenn_testkit::Api;

use crate::fixture::{Fixture, SOON};

/// An operation of the document.
pub(crate) struct Operation {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) facts: Value,
}

/// What the team has that others ask for.
pub(crate) struct Owned {
    pub(crate) sandbox: String,
    pub(crate) build: String,
    pub(crate) team: String,
}

impl Operation {
    /// Name of the permission that it needs; none if anybody may call it.
    pub(crate) fn permission(&self) -> Option<&str> {
        self.facts["x-permission"].as_str()
    }

    /// Whether its response does not end by itself.
    pub(crate) fn is_stream(&self) -> bool {
        self.facts["responses"]["200"]["content"]["text/event-stream"].is_object()
    }

    /// Whether it acts in the team that its path names.
    pub(crate) fn is_in_team(&self) -> bool {
        self.path.starts_with("/v1/teams/{")
    }
}

/// Reads the document of a server.
pub(crate) async fn document(fixture: &Fixture) -> Result<(Value, Vec<Operation>)> {
    let document = fixture.api.get("/openapi.json").await?.expect(200)?.json();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().context("no paths")? {
        for (method, facts) in item.as_object().context("no operations")? {
            let (method, facts) = (method.to_uppercase().parse()?, facts.clone());
            all.push(Operation { method, path: path.clone(), facts });
        }
    }
    ensure!(all.len() >= 11, "{} operations", all.len());
    Ok((document, all))
}

/// Returns the path of an operation, with what the team owns, or else with what nobody has.
pub(crate) fn path(operation: &Operation, owned: &Owned) -> Result<String> {
    let template = operation.path.as_str();
    let of_builds = ["/v1/templates/", "/v1/admin/builds"].iter().any(|start| template.starts_with(start));
    let (team, sandbox) = (owned.team.clone(), owned.sandbox.clone());
    let id = match template {
        _ if of_builds => owned.build.clone(),
        _ if template.contains("/api-keys/") => ApiKeyId::new().to_string(),
        _ if operation.is_in_team() => team,
        _ if template.starts_with("/v1/admin/teams/") => TeamId::new().to_string(),
        _ if template.starts_with("/v1/admin/users/") => UserId::new().to_string(),
        _ if template.starts_with("/v1/admin/") => SandboxId::new().to_string(),
        _ if template.contains("/sessions/") => SessionId::new().to_string(),
        _ if template.contains("/channels/") => ChannelId::new().to_string(),
        _ => sandbox,
    };
    let name = if template.starts_with("/v1/templates/") { "web" } else { "nobodys" };
    let last = InvitationId::new().to_string();
    let path = template.replace("{id}", &id).replace("{name}", name).replace("{tag}", "latest");
    let path =
        path.replace("{selector}", "nobodys").replace("{port}", "8000").replace("{provider}", "github");
    let path = path
        .replace("{user_id}", &UserId::new().to_string())
        .replace("{delivery}", &DeliveryId::new().to_string());
    let path = path.replace("{invitation_id}", &last).replace("{invitation}", &last);
    ensure!(!path.contains('{'), "this test does not know a parameter of {template}: teach it");
    Ok(path)
}

/// Builds a valid request, with the examples of the document.
pub(crate) fn request(
    document: &Value,
    operation: &Operation,
    api: &Api,
    owned: &Owned,
) -> Result<RequestBuilder> {
    let parameters = operation.facts["parameters"].as_array().into_iter().flatten();
    let needed = parameters.filter(|one| one["in"] == "query" && one["required"] == true);
    let pair = |one: &Value| Some((one["name"].as_str()?.to_owned(), one["example"].as_str()?.to_owned()));
    let query: Vec<_> = needed.filter_map(pair).collect();
    let request = api.request(operation.method.clone(), &path(operation, owned)?).query(&query).timeout(SOON);
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
        *id = owned.sandbox.as_str().into();
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

/// Gives the team of the fixture a sandbox and a template.
pub(crate) async fn owned(fixture: &Fixture) -> Result<Owned> {
    Ok(Owned { sandbox: fixture.create().await?, build: build(fixture).await?, team: team(fixture).await? })
}

/// Id of the team of the fixture.
pub(crate) async fn team(fixture: &Fixture) -> Result<String> {
    let uuid = fixture.value("SELECT id::text FROM teams WHERE name = 'default'").await?;
    Ok(TeamId::from(uuid.parse::<uuid::Uuid>()?).to_string())
}

/// Gives the team a template, and returns the build that made it.
async fn build(fixture: &Fixture) -> Result<String> {
    let (build, host) = (BuildId::new(), fixture.agent().id.uuid());
    let id = build.uuid();
    let statement = format!(
        "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, version, ended_at)
             SELECT '{id}', id, 'web', 'latest', '', '{{}}', 1, 512, 5120, 'succeeded', 1, now() FROM teams
             WHERE name = 'default';
         INSERT INTO template_versions (team_id, name, version, build_id, key, host_id, image_id, size_mb, vcpus, memory_mb,
             disk_size_mb, envs, default_user, workdir)
             SELECT id, 'web', 1, '{id}', 'key', '{host}', gen_random_uuid(), 912, 1, 512, 5120, '{{}}', 'root', '/' FROM teams
             WHERE name = 'default';
         INSERT INTO template_tags (team_id, name, tag, version) SELECT id, 'web', 'latest', 1 FROM teams
             WHERE name = 'default'"
    );
    fixture.sql(&statement).await?;
    Ok(build.to_string())
}
