// SPDX-License-Identifier: Apache-2.0
//! `wrenn key`: keys that do what their scopes say, are listed without their secret and revoked at once; and the way out of who has
//! lost all of them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, wait_until};

use super::home::{Home, signed_in, text, with};
use crate::cases::cli::stderr;

/// Maker of keys.
const KAY: &str = "kay@keys.example";
/// Id of no key.
const UNKNOWN: &str = "key00000000000000000000000a1";
/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(30);

/// Signs in by a key at a home of its own, as a program would.
async fn program(stack: &Arc<Stack>, key: &str) -> Result<Home> {
    let home = Home::new(stack)?;
    home.told(&["login", "--key", "--stdin", "--url", &stack.url()], Some(key)).await?;
    Ok(home)
}

/// Creates a key; returns its id and its secret, which is alone on standard output.
async fn created(home: &Home, args: &[&str]) -> Result<(String, String)> {
    let made = home.run(&[&["key", "create"][..], args].concat(), None).await?;
    let (secret, says) = (String::from_utf8(made.stdout.clone())?, stderr(&made));
    let digits = secret.trim_end().strip_prefix("wrn_").unwrap_or_default();
    let is_key = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(made.status.success() && is_key, "{args:?}: {made:?}");
    ensure!(says.contains("this one time") && !says.contains(secret.trim()), "{args:?}: {says}");
    let id =
        says.split_whitespace().find(|word| word.len() > 3 && word.starts_with("key")).context("no id")?;
    Ok((id.to_owned(), secret.trim().to_owned()))
}

/// A key is shown once and listed by its prefix with scopes, maker, last use and end; it does what its scopes say and no more; and
/// it is refused as soon as it is revoked.
pub(crate) async fn keys_do_what_their_scopes_say(stack: Arc<Stack>) -> Result<()> {
    let kay = signed_in(&stack, KAY, "Kay").await?;
    let (id, secret) = created(&kay, &["ci", "--scope", "sandbox.read", "--expires", "90d"]).await?;
    let table = kay.told(&["key", "ls"], None).await?;
    let row = table.lines().find(|line| line.starts_with(&id)).context("it is not listed")?;
    let prefix = format!("{}…", &secret[..8]);
    for part in ["ci", &prefix, "sandbox.read", KAY, "never"] {
        ensure!(row.contains(part), "no {part}: {row}");
    }
    ensure!(!row.trim_end().ends_with("never") && !table.contains(&secret), "no end, or the secret: {table}");
    ensure!(kay.json(&["key", "ls"]).await?[0]["last_used_at"].is_null(), "it is used already");

    let ci = program(&stack, &secret).await?;
    ci.told(&["ls", "-q"], None).await?;
    ci.refused(&["create"], None, &["sandbox.create", "forbidden"]).await?;
    ci.refused(&["key", "ls"], None, &["key.read", "forbidden"]).await?;
    let used = async || {
        let all = kay.json(&["key", "ls"]).await.ok()?;
        all[0]["last_used_at"].is_string().then_some(())
    };
    wait_until("the last use of the key", SOON, used).await?;

    for (args, says) in [
        (&["key", "create", "x", "--scope", "sandbox.fly"][..], "no permission of a key"),
        (&["key", "create", "x", "--scope", "platform.admin"], "which you do not have"),
        (&["key", "update", id.as_str()], "say what to change"),
        (&["key", "revoke", UNKNOWN], UNKNOWN),
    ] {
        kay.refused(args, None, &[says]).await?;
    }
    kay.misused(&["key", "create", "x", "--expires", "soon"], "90d").await?;
    kay.misused(&["key", "revoke", "ci"], "ci").await?;

    let end = "2099-01-31T09:30:00Z";
    let update = ["key", "update", &id, "--name", "nightly", "--scope", "key.read", "--expires", end];
    let changed = kay.json(&update).await?;
    ensure!(changed["name"] == "nightly" && changed["scopes"] == json!(["key.read"]), "{changed}");
    ensure!(text(&changed, "expires_at")?.starts_with("2099-01-31T09:30:00"), "{changed}");
    ci.refused(&["ls"], None, &["sandbox.read", "forbidden"]).await?;
    ensure!(!ci.told(&["key", "ls"], None).await?.contains(&secret), "a key sees its secret");
    // A key that may not see sandboxes is one nevertheless.
    program(&stack, &secret).await?;

    ensure!(kay.told(&["key", "revoke", &id], None).await? == id, "another id");
    ci.refused(&["key", "ls"], None, &["unauthorized"]).await?;
    kay.refused(&["key", "revoke", &id], None, &[&id, "not_found"]).await?;
    ensure!(kay.json(&["key", "ls"]).await? == json!([]), "it is still listed");
    Ok(())
}

/// Who runs the server makes a key in its database, without any, and revokes it there.
pub(crate) async fn a_lost_key_is_no_dead_end(stack: Arc<Stack>) -> Result<()> {
    let home = Home::new(&stack)?;
    home.refused(&["ls"], None, &["no API key", "wrenn key create --local"]).await?;
    home.misused(&["key", "create", "x", "--admin"], "--local").await?;
    let state = stack.state_dir.display().to_string();
    let local = ["--local", "--state-dir", &state];
    let (id, secret) = created(&home, &[&["found", "--admin"][..], &local].concat()).await?;
    let all = home.json(&[&["key", "ls"][..], &local].concat()).await?;
    ensure!(with(&all, "id", &id)?["name"] == "found", "{all}");

    let found = program(&stack, &secret).await?;
    with(&found.json(&["user", "ls"]).await?, "email", "admin@localhost")?;
    let me: Value = found.json(&["whoami"]).await?;
    let team = stack.api.get("/v1/teams").await?.expect(200)?.json();
    ensure!(me["team"]["id"] == team[0]["id"], "the team of another key: {me}, {team}");

    let revoke = [&["key", "revoke", id.as_str()][..], &local].concat();
    ensure!(home.told(&revoke, None).await? == id, "another id");
    // Servers look again within a second.
    let is_refused = async || found.refused(&["ls"], None, &["unauthorized"]).await.ok();
    wait_until("the refusal of a key that was revoked", SOON, is_refused).await?;
    home.refused(&revoke, None, &[&id, "it was revoked"]).await
}
