// SPDX-License-Identifier: Apache-2.0
//! API keys that who runs Wrenn makes and revokes in the database, without a server.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use wrenn_api::{CreateApiKey, TeamId};
use wrenn_control::{Admin, Limits};
use wrenn_testkit::wait_until;

use crate::{fixture::Fixture, stores::Stores};

/// Time within which every server refuses a revoked key: a second, and some for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

fn key(name: &str, scopes: Option<&[&str]>) -> CreateApiKey {
    let scopes = scopes.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    CreateApiKey { name: name.to_owned(), scopes, expires_at: None }
}

/// Who has lost all keys makes another one, which is in the audit log and can be revoked.
pub(crate) async fn a_lost_key_is_no_dead_end(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let admin = Admin::new(&stores.database_url(name))?;
    let made = admin.create_key(None, &key("found", Some(&["sandbox.read"])), false).await?;
    let id = made.api_key.id;
    let api = fixture.api.with_key(made.key.reveal());
    api.get("/v1/sandboxes").await?.expect(200)?;
    api.get("/v1/api-keys").await?.expect_error(403, "forbidden")?;
    let listed = admin.list_keys(None).await?;
    ensure!(listed.first().is_some_and(|key| key.id == id && key.name == "found"), "{listed:?}");
    ensure!(admin.list_keys(Some(TeamId::new())).await.is_err(), "a team that is not there has keys");
    for wrong in [key("x", Some(&["account.self"])), key("x", Some(&[])), key(" x", None)] {
        ensure!(admin.create_key(None, &wrong, false).await.is_err(), "{wrong:?} was made");
    }
    let log = fixture.api.get("/v1/audit-logs?action=api_key.create").await?.expect(200)?.json();
    ensure!(log[0]["actor"]["kind"] == "system" && log[0]["resource"]["name"] == "found", "{log}");

    admin.revoke_key(None, id).await?;
    let refused = async || api.get("/v1/sandboxes").await.ok().filter(|reply| reply.status == 401).map(drop);
    wait_until("the revoked key is refused", AT_ONCE, refused).await?;
    ensure!(admin.revoke_key(None, id).await.is_err(), "it is revoked twice");

    let root = admin.create_key(None, &key("root", None), true).await?;
    fixture.api.with_key(root.key.reveal()).get("/v1/admin/teams").await?.expect(200)?;
    fixture.stop().await
}
