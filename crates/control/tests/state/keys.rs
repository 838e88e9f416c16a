// SPDX-License-Identifier: Apache-2.0
//! Cases of API keys: revoked while their streams are open, and giving no later end than their own.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use wrenn_control::{Admin, Limits};
use wrenn_testkit::{Api, Events};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Event streams and commands of a revoked key are ended; those of another key of the team go on.
pub(crate) async fn a_revoked_key_ends_its_streams(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.key_check = Duration::from_millis(100);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let id = fixture.create().await?;
    let database = stores.database_url(name);
    let revoked = Admin::new(&database)?.ensure_api_key(None).await?;
    let stranger = fixture.api.with_key(&revoked);
    let mut kept = Events::open(&fixture.api, None).await?;
    let mut ended = Events::open(&stranger, None).await?;

    let url = format!("{}/v1/sandboxes/{id}/exec/stream", fixture.api.url().replace("http", "ws"));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("x-api-key", revoked.parse()?);
    let (mut socket, _) = connect_async(request).await?;
    socket.send(Message::text(r#"{"type":"start","cmd":"sleep"}"#)).await?;
    let mut frame = async || -> Result<Option<Value>> {
        while let Some(frame) = timeout(SOON, socket.next()).await.context("no frame")? {
            if let Message::Text(text) = frame? {
                return Ok(Some(serde_json::from_str(&text)?));
            }
        }
        Ok(None)
    };
    let start = frame().await?.context("no start")?;
    ensure!(start["type"] == "start", "{start}");

    let hash = format!("sha256('{revoked}'::bytea)");
    fixture.sql(&format!("UPDATE api_keys SET revoked_at = now() WHERE secret_sha256 = {hash}")).await?;
    let last = frame().await?.context("the stream ended without an error")?;
    ensure!(last["type"] == "error" && last["code"] == "unauthorized", "{last}");
    ensure!(frame().await?.is_none(), "frames after the error");
    let end = ended.next(SOON).await.err().context("an event after the revocation")?;
    ensure!(end.to_string().contains("stream ended"), "{end:#}");

    fixture.api.remove(&id).await?;
    kept.until(&id, "sandbox.stopped").await.context("the stream of the other key")?;
    fixture.stop().await
}

/// A key that ends gives no later end than its own, neither to another key nor to itself; one that does not end gives any.
pub(crate) async fn a_key_gives_no_later_end_than_its_own(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let create = async |by: &Api, end: Option<&str>| {
        by.post("/v1/api-keys", &json!({"name": "ci", "scopes": ["key.manage"], "expires_at": end})).await
    };
    let change = async |by: &Api, id: &str, end: &str| {
        let path = format!("/v1/api-keys/{id}");
        by.send(by.request(Method::PATCH, &path).json(&json!({"expires_at": end}))).await
    };
    let (earlier, end, later) = ("2098-01-31T09:30:00Z", "2099-01-31T09:30:00Z", "2100-01-31T09:30:00Z");
    let made = create(&fixture.api, Some(end)).await?.expect(201)?.json();
    let (key, id, end) =
        (text(&made["key"])?, text(&made["api_key"]["id"])?, text(&made["api_key"]["expires_at"])?);
    let api = fixture.api.with_key(&key);

    create(&api, Some(later)).await?.expect_error(403, "forbidden")?;
    create(&api, Some(earlier)).await?.expect(201)?;
    create(&api, Some(end.as_str())).await?.expect(201)?;
    let endless = create(&api, None).await?.expect(201)?.json();
    ensure!(endless["api_key"]["expires_at"] == end.as_str(), "it outlives the key that made it: {endless}");
    let other = text(&endless["api_key"]["id"])?;
    for key in [&id, &other] {
        change(&api, key, later).await?.expect_error(403, "forbidden")?;
        change(&fixture.api, key, later).await?.expect(200)?;
        change(&fixture.api, key, &end).await?.expect(200)?;
    }
    change(&api, &id, earlier).await?.expect(200)?;
    change(&api, &id, &end).await?.expect_error(403, "forbidden")?;
    fixture.stop().await
}
