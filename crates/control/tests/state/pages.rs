// SPDX-License-Identifier: Apache-2.0
//! Case of lists in pages.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wrenn_control::Limits;

use crate::{fixture::Fixture, stores::Stores};

fn ids(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|sandbox| sandbox["id"].as_str()).map(str::to_owned).collect()
}

/// Pages have the requested size and a cursor to the next page, newest first.
pub(crate) async fn lists_come_in_pages(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = &fixture.api;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.insert(0, fixture.create().await?);
    }
    let first = api.get("/v1/sandboxes?limit=2").await?.expect(200)?;
    let cursor = first.headers.get("x-next-cursor").context("no x-next-cursor")?.to_str()?.to_owned();
    ensure!(ids(&first.json()) == made[..2], "the first page: {}", first.json());
    let second = api.get(&format!("/v1/sandboxes?limit=2&cursor={cursor}")).await?.expect(200)?;
    ensure!(ids(&second.json()) == made[2..], "the second page: {}", second.json());
    ensure!(!second.headers.contains_key("x-next-cursor"), "the last page has a next one");
    let whole = api.get("/v1/sandboxes?limit=3").await?.expect(200)?;
    ensure!(ids(&whole.json()) == made && !whole.headers.contains_key("x-next-cursor"), "{}", whole.json());
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
    fixture.stop().await
}
