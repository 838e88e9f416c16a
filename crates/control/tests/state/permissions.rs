// SPDX-License-Identifier: Apache-2.0
//! Every operation of the OpenAPI document, called with each role, with keys of each single scope and by an administrator of the
//! platform: who lacks the permission of the operation is refused, and who has it is not.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use wrenn_control::{Admin, Limits, Permission};
use wrenn_testkit::Api;

use crate::{
    fixture::Fixture,
    stores::Stores,
    walk::{self, Operation, Owned},
};

/// Permissions that a role lacks, of those that are about a team.
const LACKED: [(&str, &[&str]); 3] = [
    ("owner", &[]),
    ("admin", &["team.delete"]),
    (
        "member",
        &["team.delete", "team.update", "member.manage", "key.manage", "channel.manage", "audit.read"],
    ),
];

/// Somebody who calls.
struct Caller {
    what: String,
    credential: Credential,
    permissions: BTreeSet<&'static str>,
}

enum Credential {
    Key(String),
    Token(String),
}

impl Caller {
    /// Adds the credential to a request without one.
    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.credential {
            Credential::Key(key) => request.header("X-API-Key", key),
            Credential::Token(token) => request.bearer_auth(token),
        }
    }
}

pub(crate) async fn callers_may_do_what_their_permissions_say(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let owned = walk::owned(&fixture).await?;
    let (_, operations) = walk::document(&fixture).await?;
    let admin = Admin::new(&stores.database_url(name))?;
    let mut callers = Vec::new();
    for (role, lacked) in LACKED {
        let permissions = of_team().filter(|name| !lacked.contains(name)).chain(["account.self"]).collect();
        let credential = Credential::Token(token(&fixture, &admin, role, false).await?);
        callers.push(Caller { what: format!("the role {role}"), credential, permissions });
        if role == "member" {
            let credential = Credential::Token(token(&fixture, &admin, role, true).await?);
            let lacks = |name: &&str| !lacked.contains(name);
            let permissions = of_team().filter(lacks).chain(["account.self", "platform.admin"]).collect();
            callers.push(Caller { what: "an administrator".to_owned(), credential, permissions });
        }
    }
    for permission in Permission::EVERY.iter().filter(|one| **one != Permission::AccountSelf) {
        let (key, scope) = (format!("wrn_only_{permission}"), permission.as_str());
        let statement = format!(
            "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256, scopes, is_admin)
             SELECT gen_random_uuid(), id, '{scope}', 'wrn_', sha256('{key}'::bytea), ARRAY['{scope}'], {}
             FROM teams WHERE name = 'default'",
            *permission == Permission::PlatformAdmin
        );
        fixture.sql(&statement).await?;
        let (what, credential) = (format!("the scope {scope}"), Credential::Key(key));
        callers.push(Caller { what, credential, permissions: [scope].into() });
    }
    let nobody = fixture.api.with_key("");
    for operation in operations.iter().filter(|operation| operation.permission().is_some()) {
        for caller in &callers {
            let checked = check(&nobody, operation, caller, &owned).await;
            checked.with_context(|| format!("{} {} by {}", operation.method, operation.path, caller.what))?;
        }
    }
    let alive = fixture.record(&owned.sandbox).await?;
    ensure!(alive["status"] == "running", "it was changed: {alive}");
    fixture.stop().await
}

/// Names of the permissions that are about a team.
fn of_team() -> impl Iterator<Item = &'static str> {
    let names = Permission::EVERY.iter().map(|permission| permission.as_str());
    names.filter(|name| !["account.self", "platform.admin"].contains(name))
}

/// Makes a user with a role in the team of the fixture, and signs them in for it.
async fn token(fixture: &Fixture, admin: &Admin, role: &str, is_admin: bool) -> Result<String> {
    let email = format!("{role}-{is_admin}@wrenn.test");
    let link = admin.create_user(&email, role, false).await?;
    // Who becomes an administrator of the platform by the operator may get the first team.
    let statement = format!(
        "UPDATE users SET is_admin = {is_admin} WHERE email = '{email}';
         INSERT INTO team_members (team_id, user_id, role) SELECT t.id, u.id, '{role}' FROM teams t, users u
             WHERE t.name = 'default' AND u.email = '{email}'"
    );
    fixture.sql(&statement).await?;
    let request = fixture.api.with_key("").request(Method::POST, "/v1/auth/sign-in-link");
    let request = request.json(&json!({"token": link.token().reveal()}));
    let signed_in = fixture.api.send(request).await?.expect(200)?.json();
    let token = signed_in["token"].as_str().context("no token")?.to_owned();
    let team = walk::team(fixture).await?;
    let request = fixture.api.with_key("").request(Method::POST, "/v1/auth/switch-team").bearer_auth(&token);
    fixture.api.send(request.json(&json!({"team_id": team}))).await?.expect(200)?;
    Ok(token)
}

async fn check(nobody: &Api, operation: &Operation, caller: &Caller, owned: &Owned) -> Result<()> {
    let permission = operation.permission().context("no permission")?;
    let request = caller.sign(nobody.request(operation.method.clone(), &walk::path(operation, owned)?));
    if permission != "caller.any" && !caller.permissions.contains(permission) {
        nobody.send(request).await?.expect_error(403, "forbidden")?;
        return Ok(());
    }
    // What changes something is not tried: the handlers have tests of their own.
    if operation.method != Method::GET {
        return Ok(());
    }
    let status = request.send().await?.status().as_u16();
    ensure!(![401, 403].contains(&status), "status {status}");
    Ok(())
}
