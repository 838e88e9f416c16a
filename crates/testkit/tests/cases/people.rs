// SPDX-License-Identifier: Apache-2.0
//! People: the first administrator signs in by the link of `wrenn up`, and a second user comes by mail and goes.

use std::{process::Output, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_testkit::{MailServer, Reply, Setup, Stack, wait_until};

use super::{
    cli::{stderr, wrenn},
    support::end,
};

/// What is before the token of a link to sign in.
pub(crate) const SIGN_IN: &str = "/account/sign-in#token=";
/// The second user.
const GRACE: &str = "grace@example.com";
const PASSWORD: &str = "correct horse battery";
/// Time within which what was taken away is gone everywhere.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A user who is invited sees what the team has, and who is removed sees nothing, also on an open stream.
pub(crate) async fn a_second_user_is_invited_and_removed() -> Result<()> {
    let mail = MailServer::start().await?;
    let env = [
        ("WRENN_SERVER_SMTP_HOST", "127.0.0.1".to_owned()),
        ("WRENN_SERVER_SMTP_PORT", mail.port().to_string()),
        ("WRENN_SERVER_SMTP_TLS", "none".to_owned()),
        ("WRENN_SERVER_PUBLIC_URL", "http://wrenn.test".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let stack = Arc::new(Stack::start_with(Setup { env, ..Setup::default() }).await?);
    let result = story(&stack, &mail).await;
    end(Arc::into_inner(stack).context("the case still holds it")?, result).await
}

async fn story(stack: &Arc<Stack>, mail: &MailServer) -> Result<()> {
    the_first_administrator_signs_in(stack).await?;
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    // The command line acts for the administrator now, whose team is that of the key.
    ensure!(
        told(stack, &["ls", "-q"], None).await? == id,
        "the administrator does not see the team's sandbox"
    );
    let grace = signed_up(stack, mail).await?;
    ensure!(!sees(stack, &grace, &id).await?, "a stranger sees a sandbox");
    told(stack, &["team", "invite", GRACE], None).await?;
    let token = mail.wait(GRACE, 2).await?.token()?;
    let team =
        as_user(stack, Method::POST, "/v1/invitations/accept", &grace, &json!({"token": token})).await?;
    let team = team.expect(200)?.json();
    let switch = json!({"team_id": team["id"]});
    as_user(stack, Method::POST, "/v1/auth/switch-team", &grace, &switch).await?.expect(200)?;
    ensure!(sees(stack, &grace, &id).await?, "a member does not see the team's sandbox");
    let members = told(stack, &["team", "members"], None).await?;
    ensure!(members.contains(GRACE), "{members}");

    let request = stack.api.with_key("").request(Method::GET, "/v1/events/stream").bearer_auth(&grace);
    let mut stream = request.send().await?;
    ensure!(stream.status() == 200, "no event stream: {}", stream.status());
    told(stack, &["team", "remove", GRACE], None).await?;
    let blind = async || sees(stack, &grace, &id).await.ok().filter(|sees| !sees).map(drop);
    wait_until("who is removed sees nothing", AT_ONCE, blind).await?;
    let ended = async {
        // It ends, or breaks off.
        while let Ok(Some(_)) = stream.chunk().await {}
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.context("the stream goes on")?;
    stack.api.remove(&id).await?;

    told(stack, &["logout"], None).await?;
    let me: Value = serde_json::from_str(&told(stack, &["whoami", "--json"], None).await?)?;
    ensure!(me["sign_in"] == "api_key", "{me}");
    Ok(())
}

/// The link that `wrenn up` prints signs in once, and another one signs a browser in.
async fn the_first_administrator_signs_in(stack: &Arc<Stack>) -> Result<()> {
    let printed = async || {
        let log = String::from_utf8_lossy(&stack.up_log()).into_owned();
        log.split_whitespace().find(|word| word.contains(SIGN_IN)).map(str::to_owned)
    };
    let link = wait_until("the link of the first administrator", Duration::from_secs(30), printed).await?;
    let url = stack.url();
    let login = ["login", "--link", "--stdin", "--url", &url];
    told(stack, &login, Some(&link)).await?;
    let me: Value = serde_json::from_str(&told(stack, &["whoami", "--json"], None).await?)?;
    ensure!(me["user"]["is_admin"] == true && me["sign_in"] == "token", "{me}");
    let again = wrenn(stack, &login, Some(&link)).await?;
    ensure!(again.status.code() == Some(1) && stderr(&again).contains("invalid_token"), "{}", stderr(&again));

    let link = told(stack, &["user", "link", "admin@localhost"], None).await?;
    let (_, token) = link.split_once(SIGN_IN).context("no link")?;
    let open = stack.api.with_key("");
    let body = json!({"token": token, "cookie": true});
    let signed_in = open.post("/v1/auth/sign-in-link", &body).await?.expect(200)?;
    let cookies: Vec<_> =
        signed_in.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()).collect();
    let session = cookies.iter().find(|cookie| cookie.starts_with("wrenn_session=")).context("no cookie")?;
    ensure!(session.contains("HttpOnly") && signed_in.json()["token"].is_null(), "{session}");
    let cookies: Vec<_> = cookies.iter().filter_map(|cookie| cookie.split(';').next()).collect();
    let by_cookie = |method, path: &str| open.request(method, path).header("Cookie", cookies.join("; "));
    open.send(by_cookie(Method::GET, "/v1/me")).await?.expect(200)?;
    open.send(by_cookie(Method::POST, "/v1/auth/logout")).await?.expect(403)?;
    let csrf = signed_in.json()["csrf_token"].as_str().context("no CSRF token")?.to_owned();
    open.send(by_cookie(Method::POST, "/v1/auth/logout").header("X-CSRF-Token", csrf)).await?.expect(204)?;
    open.send(by_cookie(Method::GET, "/v1/me")).await?.expect(401)?;
    Ok(())
}

/// Signs the second user up by mail; returns the token of the session.
async fn signed_up(stack: &Stack, mail: &MailServer) -> Result<String> {
    let open = stack.api.with_key("");
    let new = json!({"email": GRACE, "password": PASSWORD, "name": "Grace"});
    open.post("/v1/auth/signup", &new).await?.expect(201)?;
    let link = json!({"token": mail.wait(GRACE, 1).await?.token()?});
    let signed_in = open.post("/v1/auth/activate", &link).await?.expect(200)?.json();
    Ok(signed_in["token"].as_str().context("no token")?.to_owned())
}

/// Returns whether a user sees a sandbox in the list, and then also by its id.
async fn sees(stack: &Stack, token: &str, id: &str) -> Result<bool> {
    let list = as_user(stack, Method::GET, "/v1/sandboxes", token, &Value::Null).await?;
    let listed = list.json().as_array().is_some_and(|all| all.iter().any(|sandbox| sandbox["id"] == id));
    let one = as_user(stack, Method::GET, &format!("/v1/sandboxes/{id}"), token, &Value::Null).await?;
    ensure!(listed == (one.status == 200), "list {}, sandbox {}", list.json(), one.json());
    Ok(listed)
}

/// Sends a request with the token of a user's session.
pub(crate) async fn as_user(
    stack: &Stack,
    method: Method,
    path: &str,
    token: &str,
    body: &Value,
) -> Result<Reply> {
    let api = stack.api.with_key("");
    let request = api.request(method, path).bearer_auth(token);
    api.send(if body.is_null() { request } else { request.json(body) }).await
}

/// Runs `wrenn` as the user who ran `wrenn up`. It succeeds; returns its output.
pub(crate) async fn told(stack: &Stack, args: &[&str], input: Option<&str>) -> Result<String> {
    let output: Output = wrenn(stack, args, input).await?;
    ensure!(output.status.success(), "wrenn {}: {}", args.join(" "), stderr(&output));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
