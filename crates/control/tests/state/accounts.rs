// SPDX-License-Identifier: Apache-2.0
//! Cases of accounts: sign-up by a real SMTP server, sign-in, forgotten passwords, and deletion.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::{Admin, Limits, MailSettings, SmtpTls};
use wrenn_testkit::{Api, MailServer, ReceivedMail, Reply};

use crate::{fixture::Fixture, log_scan, people::User, stores::Stores};

pub(crate) const PASSWORD: &str = "correct horse battery";

/// A fixture whose second server, which is returned, sends mail to this one.
async fn with_mail(stores: &Arc<Stores>, name: &str, mail: &MailServer) -> Result<(Fixture, Api)> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let api = serve_with_mail(&mut fixture, mail).await?;
    Ok((fixture, api))
}

/// Starts another server, which sends mail to this one, and returns a client of it without a key.
pub(crate) async fn serve_with_mail(fixture: &mut Fixture, mail: &MailServer) -> Result<Api> {
    fixture.mail = MailSettings::default();
    fixture.mail.host = Some("127.0.0.1".into());
    fixture.mail.port = mail.port();
    fixture.mail.tls = SmtpTls::None;
    fixture.mail.public_url = Some("https://wrenn.example.com".into());
    Ok(fixture.serve().await?.with_key(""))
}

/// Sends a request of a session.
pub(crate) async fn as_user(
    api: &Api,
    method: Method,
    path: &str,
    token: &str,
    body: Option<&Value>,
) -> Result<Reply> {
    let request = api.request(method, path).bearer_auth(token);
    api.send(match body {
        Some(body) => request.json(body),
        None => request,
    })
    .await
}

async fn me(api: &Api, token: &str) -> Result<Reply> {
    as_user(api, Method::GET, "/v1/me", token, None).await
}

pub(crate) async fn sign_up(api: &Api, email: &str) -> Result<Reply> {
    log_scan::look_for(PASSWORD);
    let body = json!({"email": email, "password": PASSWORD, "name": "Ada"});
    api.post("/v1/auth/signup", &body).await?.expect(201)
}

pub(crate) async fn login(api: &Api, email: &str, password: &str) -> Result<Reply> {
    log_scan::look_for(password);
    api.post("/v1/auth/login", &json!({"email": email, "password": password})).await
}

pub(crate) fn token_of(reply: &Reply) -> Result<String> {
    let token = reply.json()["token"].as_str().context("no token")?.to_owned();
    log_scan::look_for(&token);
    Ok(token)
}

/// Returns the token of a mail's link.
fn link_of(mail: &ReceivedMail) -> Result<String> {
    let link = mail.token()?;
    log_scan::look_for(&link);
    Ok(link)
}

/// Signs a user up, and returns the token of the session.
pub(crate) async fn new_user(api: &Api, mail: &MailServer, email: &str) -> Result<String> {
    sign_up(api, email).await?;
    let link = link_of(&mail.wait(email, 1).await?)?;
    token_of(&api.post("/v1/auth/activate", &json!({"token": link})).await?.expect(200)?)
}

/// A sign-up becomes an account by the link in its mail, once. Nobody else learns that there is one.
pub(crate) async fn a_user_signs_up_by_mail(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mail = MailServer::start().await?;
    let (fixture, api) = with_mail(stores, name, &mail).await?;
    let email = "ada.signup@example.com";
    // The first server has no SMTP server.
    let body = json!({"email": email, "password": PASSWORD, "name": "Ada"});
    let refused = fixture.api.with_key("").post("/v1/auth/signup", &body).await?;
    refused.expect_error(503, "mail_unavailable")?;
    let first = sign_up(&api, "ADA.signup@Example.com").await?.json();
    login(&api, email, PASSWORD).await?.expect_error(401, "unauthorized")?;
    let received = mail.wait(email, 1).await?;
    ensure!(received.header("Subject") == "Activate your Wrenn account", "{}", received.text);
    ensure!(received.header("Message-ID").ends_with("@wrenn.example.com>"), "{}", received.text);
    let link = json!({"token": link_of(&received)?});
    let token = token_of(&api.post("/v1/auth/activate", &link).await?.expect(200)?)?;
    api.post("/v1/auth/activate", &link).await?.expect_error(400, "invalid_token")?;
    let user = me(&api, &token).await?.expect(200)?.json();
    ensure!(user["email"] == email && user["role"] == "owner" && user["has_password"] == true, "{user}");
    // Also with the other server, and with an API key one is no user.
    me(&fixture.api.with_key(""), &token).await?.expect(200)?;
    fixture.api.get("/v1/me").await?.expect_error(403, "forbidden")?;
    let again = sign_up(&api, email).await?.json();
    ensure!(again == first, "{again} and {first}");
    let told = mail.wait(email, 2).await?;
    ensure!(told.header("Subject") == "You have a Wrenn account already", "{}", told.text);
    ensure!(told.token().is_err(), "{}", told.text);
    // Unknown address and wrong password are the same.
    let wrong = login(&api, email, "wrong horse battery").await?.expect_error(401, "unauthorized")?.json();
    let unknown =
        login(&api, "nobody.signup@example.com", PASSWORD).await?.expect_error(401, "unauthorized")?;
    ensure!(wrong["error"] == unknown.json()["error"], "{wrong}");
    let second = token_of(&login(&api, email, PASSWORD).await?.expect(200)?)?;
    as_user(&api, Method::POST, "/v1/auth/logout", &second, None).await?.expect(204)?;
    me(&api, &second).await?.expect_error(401, "unauthorized")?;
    me(&api, &token).await?.expect(200)?;
    // Neither passwords nor tokens are stored.
    let stored = fixture.value("SELECT string_agg(u::text, ' ') FROM users u").await?;
    ensure!(stored.contains("$argon2id$") && !stored.contains(PASSWORD), "{stored}");
    fixture.stop().await
}

/// A link activates the name and password of the sign-up that it was sent for, whoever signed up with the address later.
pub(crate) async fn a_link_activates_its_own_sign_up(stores: &Arc<Stores>, name: &str) -> Result<()> {
    const OF_STRANGER: &str = "a horse of a stranger";
    let mail = MailServer::start().await?;
    let (fixture, api) = with_mail(stores, name, &mail).await?;
    let email = "ada.twice@example.com";
    let activate = async |link: &str| api.post("/v1/auth/activate", &json!({"token": link})).await;
    sign_up(&api, email).await?;
    let own = link_of(&mail.wait(email, 1).await?)?;
    let body = json!({"email": email, "password": OF_STRANGER, "name": "Eve"});
    api.post("/v1/auth/signup", &body).await?.expect(201)?;
    let of_stranger = link_of(&mail.wait(email, 2).await?)?;
    let user = activate(&own).await?.expect(200)?.json();
    ensure!(user["name"] == "Ada", "{user}");
    activate(&of_stranger).await?.expect_error(400, "invalid_token")?;
    login(&api, email, OF_STRANGER).await?.expect_error(401, "unauthorized")?;
    login(&api, email, PASSWORD).await?.expect(200)?;
    fixture.stop().await
}

/// A mail that cannot be sent waits, with a link that is made only when it is sent.
pub(crate) async fn mails_wait_for_their_server(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut mail = MailServer::stopped()?;
    let (fixture, api) = with_mail(stores, name, &mail).await?;
    let email = "ada.waits@example.com";
    sign_up(&api, email).await?;
    fixture.wait_value("SELECT coalesce(max(error) <> '', false)::text FROM mails", "true").await?;
    mail.run().await?;
    fixture.sql("UPDATE mails SET next_attempt_at = now()").await?;
    let link = json!({"token": link_of(&mail.wait(email, 1).await?)?});
    fixture.wait_value("SELECT count(*)::text FROM mails", "0").await?;
    api.post("/v1/auth/activate", &link).await?.expect(200)?;
    fixture.stop().await
}

/// A reset password ends all sessions. For an unknown address nothing is sent, and the answer is the same.
pub(crate) async fn a_reset_password_ends_all_sessions(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mail = MailServer::start().await?;
    let (fixture, api) = with_mail(stores, name, &mail).await?;
    let email = "ada.reset@example.com";
    let token = new_user(&api, &mail, email).await?;
    for address in ["nobody.reset@example.com", email] {
        api.post("/v1/auth/password-reset", &json!({"email": address})).await?.expect(204)?;
    }
    let link = link_of(&mail.wait(email, 2).await?)?;
    ensure!(mail.to("nobody.reset@example.com").is_empty(), "a stranger got a mail");
    let path = "/v1/auth/password-reset/confirm";
    let confirm = |password: &str| json!({"token": link.as_str(), "new_password": password});
    api.post(path, &confirm("short")).await?.expect_error(400, "invalid_request")?;
    api.post(path, &confirm("staple battery")).await?.expect(204)?;
    api.post(path, &confirm("staple battery 2")).await?.expect_error(400, "invalid_token")?;
    me(&api, &token).await?.expect_error(401, "unauthorized")?;
    login(&api, email, PASSWORD).await?.expect_error(401, "unauthorized")?;
    let token = token_of(&login(&api, email, "staple battery").await?.expect(200)?)?;
    let told = mail.wait(email, 3).await?;
    ensure!(told.header("Subject") == "Your Wrenn password was changed", "{}", told.text);
    // A change ends the other sessions only.
    let other = token_of(&login(&api, email, "staple battery").await?.expect(200)?)?;
    let change = |current: &str| json!({"current_password": current, "new_password": PASSWORD});
    let path = "/v1/me/password";
    let wrong = as_user(&api, Method::POST, path, &token, Some(&change(PASSWORD))).await?;
    wrong.expect_error(403, "wrong_password")?;
    as_user(&api, Method::POST, path, &token, Some(&change("staple battery"))).await?.expect(204)?;
    me(&api, &other).await?.expect_error(401, "unauthorized")?;
    let sessions = as_user(&api, Method::GET, "/v1/me/sessions", &token, None).await?.expect(200)?.json();
    let sessions = sessions.as_array().context("no list")?;
    ensure!(sessions.len() == 1 && sessions[0]["is_current"] == true, "{sessions:?}");
    fixture.stop().await
}

/// A user takes another name, which is shown from then on, without space around it. What is no name changes nothing.
pub(crate) async fn a_user_takes_another_name(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let user = User::new(&fixture, "ada", false).await?;
    let rename = async |other: &str| user.send(Method::PATCH, "/v1/me", Some(&json!({"name": other}))).await;
    let before = user.get("/v1/me").await?.expect(200)?.json();
    ensure!(before["name"] == "ada", "{before}");
    let renamed = rename(" Ada Lovelace ").await?.expect(200)?.json();
    ensure!(renamed["name"] == "Ada Lovelace" && renamed["email"] == before["email"], "{renamed}");
    rename("  ").await?.expect_error(400, "invalid_request")?;
    let shown = user.get("/v1/me").await?.expect(200)?.json();
    ensure!(shown == renamed, "{shown}");
    fixture.stop().await
}

/// Nobody tries many passwords at one account, not even at once.
pub(crate) async fn passwords_are_not_guessed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let api = fixture.api.with_key("");
    for email in ["ada.guess@example.com", "nobody.guess@example.com"] {
        if email.starts_with("ada") {
            Admin::new(&stores.database_url(name))?.create_user(email, "Ada", false).await?;
        }
        let tries = (0..14).map(|number| {
            let (api, password) = (api.clone(), format!("wrong horse {number}"));
            async move { login(&api, email, &password).await }
        });
        let mut refused = 0;
        for reply in futures::future::join_all(tries).await {
            let reply = reply?;
            if reply.status == 429 {
                reply.expect_error(429, "too_many_attempts")?;
                refused += 1;
            } else {
                reply.expect_error(401, "unauthorized")?;
            }
        }
        ensure!(refused == 4, "{email}: {refused} of 14 were refused");
    }
    fixture.stop().await
}

/// A deleted user is gone at once, with their teams and keys, and may come again. Who owns a team of others must hand it over.
pub(crate) async fn a_deleted_user_is_gone_at_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mail = MailServer::start().await?;
    let (fixture, api) = with_mail(stores, name, &mail).await?;
    let (ada, bob) = ("ada.gone@example.com", "bob.gone@example.com");
    let token = new_user(&api, &mail, ada).await?;
    new_user(&api, &mail, bob).await?;
    let delete = async |body: &Value| as_user(&api, Method::DELETE, "/v1/me", &token, Some(body)).await;
    let right = json!({"confirmation": "Ada.gone@example.com", "current_password": PASSWORD});
    delete(&json!({"confirmation": bob, "current_password": PASSWORD}))
        .await?
        .expect_error(400, "invalid_request")?;
    delete(&json!({"confirmation": ada, "current_password": "wrong"}))
        .await?
        .expect_error(403, "wrong_password")?;
    let of_bob = format!(
        "FROM (SELECT id FROM users WHERE email = '{bob}') b,
             (SELECT team_id FROM team_members m JOIN users u ON u.id = m.user_id WHERE email = '{ada}') t"
    );
    fixture
        .sql(&format!(
            "INSERT INTO team_members (team_id, user_id, role) SELECT t.team_id, b.id, 'member' {of_bob}"
        ))
        .await?;
    delete(&right).await?.expect_error(409, "owns_team_with_members")?;
    fixture.sql("DELETE FROM team_members WHERE role = 'member'").await?;
    delete(&right).await?.expect(204)?;
    me(&api, &token).await?.expect_error(401, "unauthorized")?;
    login(&api, ada, PASSWORD).await?.expect_error(401, "unauthorized")?;
    let teams = "SELECT count(*)::text FROM teams WHERE deleted_at IS NOT NULL";
    ensure!(fixture.value(teams).await? == "1", "the team is there");
    mail.wait(ada, 2).await?;
    sign_up(&api, ada).await?;
    let link = link_of(&mail.wait(ada, 3).await?)?;
    let token = token_of(&api.post("/v1/auth/activate", &json!({"token": link})).await?.expect(200)?)?;
    me(&api, &token).await?.expect(200)?;
    fixture.stop().await
}

/// The first administrator signs in by a link, which works once, in a browser, too, and is in the team of the first key.
pub(crate) async fn the_first_administrator_signs_in_by_a_link(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (api, admin) = (fixture.api.with_key(""), Admin::new(&stores.database_url(name))?);
    let earlier = admin.first_admin_link().await?.context("no link")?;
    let link = admin.first_admin_link().await?.context("no link")?;
    log_scan::look_for(earlier.token().reveal());
    log_scan::look_for(link.token().reveal());
    let url = link.url("https://wrenn.example.com");
    ensure!(
        url == format!("https://wrenn.example.com/account/sign-in#token={}", link.token().reveal()),
        "{url}"
    );
    let use_link =
        async |token: &str| api.post("/v1/auth/sign-in-link", &json!({"token": token, "cookie": true})).await;
    use_link(earlier.token().reveal()).await?.expect_error(400, "invalid_token")?;
    let entered = use_link(link.token().reveal()).await?.expect(200)?;
    use_link(link.token().reveal()).await?.expect_error(400, "invalid_token")?;
    ensure!(admin.first_admin_link().await?.is_none(), "there is another link");
    let (body, cookie) = (entered.json(), entered.headers["set-cookie"].to_str()?.to_owned());
    ensure!(
        body["token"].is_null() && cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap_or_default();
    log_scan::look_for(cookie.split_once('=').context("a cookie without a value")?.1);
    let with_cookie = |method, path| api.request(method, path).header("Cookie", cookie);
    let user = api.send(with_cookie(Method::GET, "/v1/me")).await?.expect(200)?.json();
    ensure!(user["is_admin"] == true && user["role"] == "owner", "{user}");
    let team =
        fixture.value("SELECT name FROM teams WHERE id <> '00000000-0000-0000-0000-000000000000'").await?;
    ensure!(team == "default", "{team}");
    api.send(with_cookie(Method::POST, "/v1/auth/logout")).await?.expect(403)?;
    let csrf = body["csrf_token"].as_str().context("no csrf_token")?;
    log_scan::look_for(csrf);
    let out = api.send(with_cookie(Method::POST, "/v1/auth/logout").header("X-CSRF-Token", csrf)).await?;
    out.expect(204)?;
    api.send(with_cookie(Method::GET, "/v1/me")).await?.expect_error(401, "unauthorized")?;
    fixture.stop().await
}
