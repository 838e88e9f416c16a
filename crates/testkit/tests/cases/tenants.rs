// SPDX-License-Identifier: Apache-2.0
//! Isolation between teams; paged lists.

use std::sync::Arc;

use anyhow::{Context, Result};
use reqwest::{Method, multipart};
use serde_json::{Value, json};
use wrenn_testkit::{Api, Stack};

/// Creates a team and returns its client.
fn team(stack: &Stack, name: &str) -> Result<Api> {
    let key = format!("wrn_test{name}");
    stack.sql(&format!(
        "WITH team AS (INSERT INTO teams (id, name) VALUES (gen_random_uuid(), '{name}') RETURNING id)
         INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256)
         SELECT gen_random_uuid(), id, '{name}', 'wrn_test', sha256('{key}'::bytea) FROM team"
    ))?;
    Ok(stack.api.with_key(&key))
}

fn ids(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|sandbox| sandbox["id"].as_str()).map(str::to_owned).collect()
}

/// A sandbox of another team is reported as not found.
pub(crate) async fn another_teams_sandbox_does_not_exist(stack: Arc<Stack>) -> Result<()> {
    let other = team(&stack, "stranger")?;
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    stack.api.write(&id, "secret", b"x".to_vec()).await?.expect(204)?;
    for root in ["/v1/sandboxes", "/v1/capsules"] {
        let path = format!("{root}/{id}");
        let form = multipart::Form::new().text("path", "new").part("file", multipart::Part::bytes(vec![1]));
        let requests = [
            other.request(Method::GET, &path),
            other.request(Method::POST, &format!("{path}/exec")).json(&json!({"cmd": "true"})),
            other.request(Method::GET, &format!("{path}/exec/stream")),
            other.request(Method::POST, &format!("{path}/files/read")).json(&json!({"path": "secret"})),
            other.request(Method::POST, &format!("{path}/files/write")).multipart(form),
            other.request(Method::DELETE, &path),
        ];
        for (number, request) in requests.into_iter().enumerate() {
            let reply = other.send(request).await?;
            reply.expect_error(404, "not_found").with_context(|| format!("request {number} below {root}"))?;
        }
    }
    for list in ["/v1/sandboxes", "/v1/sandboxes?status=running"] {
        let seen = other.get(list).await?.expect(200)?.json();
        anyhow::ensure!(seen == json!([]), "the stranger sees {seen}");
    }
    let alive = stack.api.exec(&id, &["cat", "secret"]).await?;
    anyhow::ensure!(alive["stdout"] == "x", "{alive}");
    stack.api.remove(&id).await?;
    let seen = other.get("/v1/sandboxes?status=stopped").await?.expect(200)?.json();
    anyhow::ensure!(seen == json!([]), "the stranger sees {seen}");
    Ok(())
}

/// Pages have the requested size and a cursor to the next page, newest first.
pub(crate) async fn lists_come_in_pages(stack: Arc<Stack>) -> Result<()> {
    let api = team(&stack, "pages")?;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.insert(0, api.create(&json!({"memory_mb": 128})).await?);
    }
    let first = api.get("/v1/sandboxes?limit=2").await?.expect(200)?;
    let cursor = first.headers.get("x-next-cursor").context("no x-next-cursor")?.to_str()?.to_owned();
    anyhow::ensure!(ids(&first.json()) == made[..2], "the first page: {}", first.json());
    let second = api.get(&format!("/v1/sandboxes?limit=2&cursor={cursor}")).await?.expect(200)?;
    anyhow::ensure!(ids(&second.json()) == made[2..], "the second page: {}", second.json());
    anyhow::ensure!(!second.headers.contains_key("x-next-cursor"), "the last page has a next one");
    let whole = api.get("/v1/sandboxes?limit=3").await?.expect(200)?;
    anyhow::ensure!(
        ids(&whole.json()) == made && !whole.headers.contains_key("x-next-cursor"),
        "{}",
        whole.json()
    );
    for query in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=",
        "cursor=x",
        "cursor=",
        "status=none",
        "page=2",
        "limit=1&limit=2",
    ] {
        let reply = api.get(&format!("/v1/sandboxes?{query}")).await?;
        reply.expect_error(400, "invalid_request").with_context(|| query.to_owned())?;
    }
    for id in made {
        api.remove(&id).await?;
    }
    Ok(())
}
