// SPDX-License-Identifier: Apache-2.0
//! Users of the platform: made by who runs the server, signed in by one-time links, shut out and deleted by administrators.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::Value;
use wrenn_testkit::Stack;

use super::home::{Home, signed_in, text, with};
use crate::cases::{
    cli::{stderr, wrenn},
    people::{SIGN_IN, as_user, told},
};

/// Administrator of the platform.
const ADA: &str = "ada@users.example";
/// Another user.
const BEN: &str = "ben@users.example";
/// Sign-in by a link.
const BY_LINK: [&str; 3] = ["login", "--link", "--stdin"];

/// A link signs in once and a later one ends it; an administrator shuts a user out, lets them in again, and deletes them, at
/// once.
pub(crate) async fn users_are_made_shut_out_and_deleted(stack: Arc<Stack>) -> Result<()> {
    let ada = an_administrator(&stack).await?;
    let ben = signed_in(&stack, BEN, "Ben").await?;
    ben.refused(&["user", "ls"], None, &["platform.admin", "forbidden"]).await?;
    ben.refused(&["user", "admin", BEN], None, &["forbidden"]).await?;
    let all = ada.json(&["user", "ls"]).await?;
    let (one, other) = (with(&all, "email", ADA)?, with(&all, "email", BEN)?);
    ensure!(one["is_admin"] == true && other["is_admin"] == false && other["status"] == "active", "{all}");
    let id = text(other, "id")?;
    let table = ada.told(&["user", "ls"], None).await?;
    let row = table.lines().find(|line| line.contains(BEN)).context("not listed")?;
    ensure!(row.starts_with(&id) && row.contains("Ben") && row.contains("active"), "{row}");

    let disabled = ada.told(&["user", "disable", BEN], None).await?;
    ensure!(disabled.contains("disabled"), "{disabled}");
    ben.refused(&["whoami"], None, &["unauthorized"]).await?;
    ben.get("/v1/me").await?.expect(401)?;
    let link = wrenn(&stack, &["user", "link", BEN], None).await?;
    ensure!(link.status.code() == Some(1) && stderr(&link).contains(BEN), "{link:?}");
    ensure!(ada.json(&["user", "enable", &id]).await?["status"] == "active", "{BEN} is still shut out");
    // What was ended stays so.
    ben.get("/v1/me").await?.expect(401)?;
    let link = told(&stack, &["user", "link", BEN], None).await?;
    ben.told(&BY_LINK, Some(&link)).await?;

    ada.told(&["user", "admin", BEN], None).await?;
    with(&ben.json(&["user", "ls"]).await?, "email", ADA)?;
    ada.told(&["user", "admin", BEN, "--revoke"], None).await?;
    ben.refused(&["user", "ls"], None, &["forbidden"]).await?;

    // Without a terminal nobody can be asked.
    ada.refused(&["user", "rm", BEN], None, &[BEN, "--yes"]).await?;
    ben.get("/v1/me").await?.expect(200)?;
    ensure!(ada.told(&["user", "rm", BEN, "--yes"], None).await? == id, "another id");
    ben.get("/v1/me").await?.expect(401)?;
    ada.refused(
        &["user", "disable", "nobody@users.example"],
        None,
        &["nobody@users.example", "wrenn user ls"],
    )
    .await?;
    // The key that `wrenn up` has written administers the platform, too.
    let token = ada.token()?;
    told(&stack, &["user", "rm", ADA, "--yes"], None).await?;
    as_user(&stack, Method::GET, "/v1/me", &token, &Value::Null).await?.expect(401).map(drop)
}

/// Makes an administrator, who signs in by the second of two links.
async fn an_administrator(stack: &Arc<Stack>) -> Result<Home> {
    let made = wrenn(stack, &["user", "create", ADA, "--name", "Ada", "--admin"], None).await?;
    let says = stderr(&made);
    ensure!(made.status.success() && says.contains(ADA) && says.contains("works once"), "{made:?}");
    let first = String::from_utf8(made.stdout)?;
    let begin = format!("{}{SIGN_IN}", stack.url());
    ensure!(first.lines().count() == 1 && first.starts_with(&begin), "{first}");
    let other: Value = serde_json::from_str(&told(stack, &["--json", "user", "link", ADA], None).await?)?;
    let link = text(&other, "link")?;
    ensure!(other["email"] == ADA && link.starts_with(&begin), "{other}");

    let home = Home::new(stack)?;
    home.refused(&BY_LINK, Some(&first), &["used before", "invalid_token"]).await?;
    ensure!(!home.file().exists(), "something is kept of a sign-in that failed");
    let says = home.told(&BY_LINK, Some(&link)).await?;
    ensure!(says.contains(ADA) && says.contains(&stack.url()), "{says}");
    let second = Home::new(stack)?;
    second.refused(&BY_LINK, Some(&link), &["used before", "invalid_token"]).await?;
    ensure!(!second.file().exists(), "something is kept of a link that was used");

    let me = home.json(&["whoami"]).await?;
    let (user, team) = (&me["user"], &me["team"]);
    ensure!(me["sign_in"] == "token" && me["url"] == stack.url(), "{me}");
    ensure!(user["email"] == ADA && user["is_admin"] == true && user["has_password"] == false, "{me}");
    ensure!(team["name"] == "Ada's team" && team["role"] == "owner", "{me}");
    let says = home.told(&["whoami"], None).await?;
    ensure!(["Ada's team", "administers the platform"].iter().all(|part| says.contains(part)), "{says}");
    Ok(home)
}
