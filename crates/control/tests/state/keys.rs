// SPDX-License-Identifier: Apache-2.0
//! Cases of API keys that are revoked while their streams are open.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use wrenn_control::{Admin, Limits};
use wrenn_testkit::Events;

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Event streams and commands of a revoked key are ended; those of another key of the team go on.
pub(crate) async fn a_revoked_key_ends_its_streams(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let limits = Limits { key_check: Duration::from_millis(100), ..Limits::default() };
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
