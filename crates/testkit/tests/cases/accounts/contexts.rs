// SPDX-License-Identifier: Apache-2.0
//! `wrenn context`: several servers, which of them a command uses, and what flags and variables change about that.

use std::sync::Arc;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::Value;
use wrenn_testkit::Stack;

use super::home::{Home, NO_KEY, WORK, signed_in};
use crate::cases::{
    cli::{output_of, stderr},
    people::as_user,
};

/// Context of an API key.
const OPS: &str = "ops";
/// Address that nobody listens on.
const NOBODY: &str = "http://127.0.0.1:1";

/// Runs `wrenn whoami` with these variables and options; returns the context, and by what it signs in.
async fn used(home: &Home, variables: &[(&str, &str)], options: &[&str]) -> Result<(String, String)> {
    let mut command = home.command(&[&["--json", "whoami"][..], options].concat())?;
    command.envs(variables.iter().copied());
    let output = output_of(command, None).await?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{variables:?} {options:?}: {told}{}", stderr(&output));
    let me: Value = serde_json::from_str(&told)?;
    let text = |name: &str| me[name].as_str().unwrap_or_default().to_owned();
    Ok((text("context"), text("sign_in")))
}

/// Returns what `wrenn whoami` says of its failure with these variables and options.
async fn failure(home: &Home, variables: &[(&str, &str)], options: &[&str]) -> Result<String> {
    let mut command = home.command(&[&["whoami"][..], options].concat())?;
    command.envs(variables.iter().copied());
    let output = output_of(command, None).await?;
    ensure!(output.status.code() == Some(1), "{variables:?} {options:?}: {output:?}");
    Ok(stderr(&output))
}

/// Names of the contexts as `wrenn context ls` has them, and the one that is used.
async fn listed(home: &Home) -> Result<(Vec<String>, Vec<String>)> {
    let all = home.json(&["context", "ls"]).await?;
    let names = |only_used: bool| {
        let wanted = all.as_array().into_iter().flatten().filter(|one| !only_used || one["current"] == true);
        wanted.filter_map(|one| one["name"].as_str()).map(str::to_owned).collect()
    };
    Ok((names(false), names(true)))
}

/// Sessions and keys of several servers are listed without their secrets, chosen and forgotten. What is kept for a server goes to
/// no other one, and flags are stronger than variables, which are stronger than the context in use.
pub(crate) async fn servers_are_kept_apart(stack: Arc<Stack>) -> Result<()> {
    let home = signed_in(&stack, "carla@contexts.example", "Carla").await?;
    let (url, key) = (stack.url(), stack.api.key());
    // The same server by another name is another one.
    let other_url = url.replace("127.0.0.1", "localhost");
    let other = other_url.trim_start_matches("http://").replace(':', "-");
    let by_key = ["login", "--key", "--stdin", "--url"];
    home.told(&[&by_key[..], &[url.as_str(), "--use-context", OPS]].concat(), Some(key)).await?;
    ensure!(used(&home, &[], &[]).await? == (OPS.to_owned(), "api_key".to_owned()), "not the latest one");
    home.told(&[&by_key[..], &[other_url.as_str()]].concat(), Some(key)).await?;
    ensure!(
        listed(&home).await? == (names(&["default", &other, OPS, WORK]), names(&[&other])),
        "other names"
    );
    ensure!(home.told(&["context", "use", WORK], None).await? == WORK, "another name");
    let table = home.told(&["context", "ls"], None).await?;
    let row = table.lines().find(|line| line.starts_with('*')).unwrap_or_default();
    ensure!(row.contains(WORK) && row.contains(&url) && row.contains("carla@contexts.example"), "{table}");
    ensure!(!table.contains(key) && !table.contains(&home.token()?), "a secret is in {table}");

    strengths(&home, &url, &other_url, key).await?;

    let all = format!("default, {other}, {OPS}, {WORK}");
    for wrong in [
        &["context", "use", "nowhere"][..],
        &["context", "rm", OPS, "nowhere"],
        &["ls", "--use-context", "nowhere"],
    ] {
        home.refused(wrong, None, &["nowhere", &all]).await?;
    }
    ensure!(used(&home, &[], &["--use-context", OPS]).await?.0 == OPS, "removed amid a failure");
    let output = home.run(&["--json", "context", "use", "nowhere"], None).await?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        told["error"]["code"] == "invalid_configuration" && output.status.code() == Some(1),
        "{output:?}"
    );

    let kept = home.get("/v1/me").await?.expect(200)?;
    ensure!(kept.json()["email"] == "carla@contexts.example", "{}", kept.json());
    let token = home.token()?;
    let removed = home.run(&["context", "rm", WORK, OPS], None).await?;
    ensure!(removed.stdout == format!("{WORK}\n{OPS}\n").as_bytes(), "{removed:?}");
    ensure!(stderr(&removed).contains("context default is used"), "{removed:?}");
    ensure!(listed(&home).await? == (names(&["default", &other]), names(&["default"])), "other names");
    home.refused(&["whoami"], None, &["no API key", "wrenn login"]).await?;
    ensure!(used(&home, &[], &["--use-context", &other]).await?.1 == "api_key", "it is gone, too");
    // It is forgotten, and goes on.
    as_user(&stack, Method::GET, "/v1/me", &token, &Value::Null).await?.expect(200).map(drop)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// What is stronger: flags, then variables, then the context in use, which is [`WORK`].
async fn strengths(home: &Home, url: &str, other_url: &str, key: &str) -> Result<()> {
    for (variables, options, expected) in [
        (&[("WRENN_CONTEXT", OPS)][..], &["--use-context", WORK][..], (WORK, "token")),
        (&[("WRENN_CONTEXT", OPS)], &[], (OPS, "api_key")),
        (&[], &["--use-context", OPS], (OPS, "api_key")),
        (&[], &[], (WORK, "token")),
        (&[("WRENN_API_KEY", key)], &[], (WORK, "api_key")),
        (&[("WRENN_API_KEY", NO_KEY)], &["--api-key", key], (WORK, "api_key")),
        (&[("WRENN_URL", NOBODY)], &["--url", url], (WORK, "token")),
        (&[("WRENN_URL", NOBODY), ("WRENN_API_KEY", key)], &["--url", other_url], (WORK, "api_key")),
        (&[("WRENN_URL", NOBODY), ("WRENN_API_KEY", NO_KEY)], &["--use-context", OPS], (OPS, "api_key")),
        (
            &[("WRENN_URL", NOBODY), ("WRENN_API_KEY", NO_KEY), ("WRENN_CONTEXT", "nowhere")],
            &["--use-context", WORK],
            (WORK, "token"),
        ),
    ] {
        let (context, sign_in) = used(home, variables, options).await?;
        let found = (context.as_str(), sign_in.as_str());
        ensure!(found == expected, "{variables:?} {options:?}: {found:?} instead of {expected:?}");
    }
    let elsewhere = format!("is not sent to {other_url}");
    for (variables, options, says) in [
        (
            &[("WRENN_CONTEXT", WORK)][..],
            &["--use-context", "nowhere"][..],
            "there is no context \"nowhere\"",
        ),
        (&[("WRENN_API_KEY", NO_KEY)], &[], "unauthorized"),
        (&[("WRENN_URL", NOBODY)], &[], "is not sent to http://127.0.0.1:1"),
        (&[], &["--url", other_url], elsewhere.as_str()),
        (&[("WRENN_CONTEXT", "nowhere")], &[], "there is no context \"nowhere\""),
    ] {
        let text = failure(home, variables, options).await?;
        ensure!(text.contains(says), "{variables:?} {options:?}: {text}");
    }
    Ok(())
}
