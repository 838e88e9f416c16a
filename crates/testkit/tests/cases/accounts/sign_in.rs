// SPDX-License-Identifier: Apache-2.0
//! `wrenn login` by password, typed or from standard input, and by API key; `wrenn logout`; and what is kept of it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::Value;
use wrenn_testkit::Stack;

use super::home::{Home, NO_KEY, signed_in};
use crate::cases::{cli::stderr, people::as_user, user_terminal::UserTerminal};

/// User who signs in.
const EVE: &str = "eve@sign-in.example";
const FIRST_PASSWORD: &str = "correct horse battery";
const PASSWORD: &str = "staple correct horse";

/// A password is set, changed, and signs in from standard input and as it is typed, unseen. A wrong one leaves nothing. Who signs
/// out ends that session alone.
pub(crate) async fn passwords_are_typed_and_sessions_end(stack: Arc<Stack>) -> Result<()> {
    let by_link = signed_in(&stack, EVE, "Eve").await?;
    let change = ["user", "password", "--stdin"];
    let says = by_link.told(&change, Some(FIRST_PASSWORD)).await?;
    ensure!(says.contains("is changed") && says.contains(EVE), "{says}");
    by_link.refused(&change, Some(&format!("{PASSWORD}\n{PASSWORD}\n")), &["password"]).await?;
    by_link.refused(&change, Some("short"), &["standard input needs"]).await?;
    by_link.told(&change, Some(&format!("{FIRST_PASSWORD}\n{PASSWORD}\n"))).await?;
    by_link.get("/v1/me").await?.expect(200)?;

    let url = stack.url();
    let login = ["login", "--url", &url, "--email", EVE];
    let by_input = Home::new(&stack)?;
    by_input.refused(&login, None, &["no terminal", "--stdin"]).await?;
    let from_input = [&login[..], &["--stdin"]].concat();
    by_input.refused(&from_input, Some(FIRST_PASSWORD), &["password is wrong", "unauthorized"]).await?;
    ensure!(!by_input.file().exists(), "something is kept of a sign-in that failed");
    let says = by_input.told(&from_input, Some(&format!("{PASSWORD}\n"))).await?;
    ensure!(says.contains(EVE) && says.contains(&url), "{says}");
    is_private(&by_input)?;
    ensure!(!fs::read_to_string(by_input.file())?.contains(PASSWORD), "the password is kept");

    let typed = Home::new(&stack)?;
    let mut terminal = UserTerminal::of(&typed.command(&["login", "--url", &url])?)?;
    terminal.shows("e-mail address: ").await?;
    terminal.type_keys(&format!("{EVE}\r"))?;
    terminal.shows("password: ").await?;
    terminal.hides_keys().await?;
    terminal.type_keys(&format!("{PASSWORD}\r"))?;
    let shown = terminal.ends(0).await?;
    ensure!(shown.contains("signed in") && !shown.contains(PASSWORD), "{shown}");

    let token = typed.token()?;
    let says = typed.told(&["logout"], None).await?;
    ensure!(says.contains("signed out") && says.contains(&url), "{says}");
    as_user(&stack, Method::GET, "/v1/me", &token, &Value::Null).await?.expect(401)?;
    ensure!(!fs::read_to_string(typed.file())?.contains(&token), "the token is still kept");
    typed.refused(&["logout"], None, &["nobody is signed in"]).await?;
    typed.refused(&["whoami"], None, &["not signed in", "wrenn login"]).await?;
    for other in [&by_link, &by_input] {
        other.get("/v1/me").await?.expect(200)?;
    }
    Ok(())
}

/// A key that is valid is kept, also if it may not see sandboxes. What others can read is refused. A key that is forgotten stays
/// valid.
pub(crate) async fn keys_are_kept_and_forgotten(stack: Arc<Stack>) -> Result<()> {
    let (home, url, key) = (Home::new(&stack)?, stack.url(), stack.api.key());
    let login = ["login", "--key", "--stdin", "--url", &url];
    home.refused(&login, Some(NO_KEY), &["unauthorized"]).await?;
    home.refused(&login, Some("\n"), &["API key is needed"]).await?;
    ensure!(!home.file().exists(), "something is kept of a sign-in that failed");
    home.misused(&["login", "--key", "--email", EVE], "cannot be used with").await?;
    let says = home.told(&login, Some(key)).await?;
    ensure!(says.contains(&url) && !says.contains(key), "{says}");
    is_private(&home)?;
    let me = home.json(&["whoami"]).await?;
    ensure!(me["sign_in"] == "api_key" && me["user"].is_null() && me["team"]["id"].is_string(), "{me}");

    fs::set_permissions(home.file(), Permissions::from_mode(0o640))?;
    home.refused(&["ls"], None, &["chmod 600"]).await?;
    fs::set_permissions(home.file(), Permissions::from_mode(0o600))?;

    let out = home.run(&["logout"], None).await?;
    ensure!(out.status.success() && stderr(&out).contains("stays valid"), "{out:?}");
    ensure!(!fs::read_to_string(home.file())?.contains(key), "the key is still kept");
    stack.api.get("/v1/sandboxes").await?.expect(200)?;
    home.refused(&["ls"], None, &["not signed in"]).await
}

/// Fails unless only the owner can read what is kept.
fn is_private(home: &Home) -> Result<()> {
    let mode = fs::metadata(home.file())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has the mode {mode:o}", home.file().display());
    Ok(())
}
