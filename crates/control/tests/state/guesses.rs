// SPDX-License-Identifier: Apache-2.0
//! Cases of limits on what can be guessed, and on mails that strangers cause. All cases share the counters: each has
//! addresses and users of its own.

use std::sync::Arc;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::{Api, MailServer, Reply};

use crate::{
    accounts::{PASSWORD, serve_with_mail},
    fixture::Fixture,
    people::User,
    stores::Stores,
};

/// A fixture whose second server, which is returned, believes the cases where their requests come from. It has an SMTP
/// server, which does not run: no case makes it send a mail.
async fn behind_a_proxy(stores: &Arc<Stores>, name: &str) -> Result<(Fixture, Api)> {
    let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    fixture.proxy.trusted = Some("127.0.0.0/8".to_owned());
    let api = serve_with_mail(&mut fixture, &MailServer::stopped()?).await?;
    Ok((fixture, api))
}

async fn post_from(api: &Api, address: &str, path: &str, body: &Value) -> Result<Reply> {
    api.send(api.request(Method::POST, path).header("X-Forwarded-For", address).json(body)).await
}

/// Makes as many attempts as there may be, which are answered with this status, and one more, which is refused.
async fn exhaust(limit: usize, status: u16, attempt: impl AsyncFn(usize) -> Result<Reply>) -> Result<()> {
    for number in 0..limit {
        let answered = attempt(number).await?.expect(status);
        answered.with_context(|| format!("attempt {number} of {limit}"))?;
    }
    refused(attempt(limit).await?).with_context(|| format!("more than {limit} attempts"))
}

fn refused(reply: Reply) -> Result<()> {
    reply.expect_error(429, "too_many_attempts").map(drop)
}

/// Nobody tries many links from one address, of whichever kind. Another address goes on.
pub(crate) async fn links_are_not_guessed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, api) = behind_a_proxy(stores, name).await?;
    let links = [
        ("/v1/auth/activate", json!({"token": "guessed"})),
        ("/v1/auth/sign-in-link", json!({"token": "guessed"})),
        ("/v1/auth/password-reset/confirm", json!({"token": "guessed", "new_password": PASSWORD})),
    ];
    let attempt = async |number: usize| {
        let (path, body) = &links[number % links.len()];
        post_from(&api, "192.0.2.1", path, body).await
    };
    exhaust(60, 400, attempt).await?;
    for (path, body) in &links {
        refused(post_from(&api, "192.0.2.1", path, body).await?).context(*path)?;
        let other = post_from(&api, "192.0.2.2", path, body).await?;
        other.expect_error(400, "invalid_token").context(*path)?;
    }
    fixture.stop().await
}

/// Strangers cause few mails: to one address from wherever, and from one address to whomever. Others go on.
pub(crate) async fn strangers_cause_few_mails(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, api) = behind_a_proxy(stores, name).await?;
    let reset = async |from: &str, to: &str| {
        post_from(&api, from, "/v1/auth/password-reset", &json!({"email": to})).await
    };
    let sign_up = async |from: &str, to: &str| {
        let body = json!({"email": to, "password": PASSWORD, "name": "Ada"});
        post_from(&api, from, "/v1/auth/signup", &body).await
    };
    let (to, other) = ("nobody.mails@example.com", "nobody.other.mails@example.com");
    exhaust(5, 204, async |number: usize| reset(&format!("192.0.2.{}", 10 + number), to).await).await?;
    refused(sign_up("192.0.2.16", to).await?)?;
    reset("192.0.2.15", other).await?.expect(204)?;

    let from = "192.0.2.20";
    let recipient = |number: usize| format!("nobody.{number}.mails@example.com");
    exhaust(20, 204, async |number: usize| reset(from, &recipient(number)).await).await?;
    refused(sign_up(from, &recipient(21)).await?)?;
    reset("192.0.2.21", &recipient(20)).await?.expect(204)?;
    fixture.stop().await
}

/// Sign-ins of one address are counted, to whichever accounts. Another address goes on.
pub(crate) async fn sign_ins_of_one_address_are_counted(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, api) = behind_a_proxy(stores, name).await?;
    let sign_in = async |from: &str, account: usize| {
        let email = format!("nobody.{account}.counted@example.com");
        post_from(&api, from, "/v1/auth/login", &json!({"email": email, "password": PASSWORD})).await
    };
    let from = "192.0.2.30";
    // Those beyond what one account allows count, too, and take no time.
    exhaust(10, 401, async |_: usize| sign_in(from, 0).await).await?;
    for _ in 11..59 {
        refused(sign_in(from, 0).await?)?;
    }
    sign_in(from, 1).await?.expect_error(401, "unauthorized").context("the last one")?;
    refused(sign_in(from, 2).await?)?;
    sign_in("192.0.2.31", 2).await?.expect_error(401, "unauthorized")?;
    fixture.stop().await
}

/// What users guess is counted for each of them: their present password, which somebody else with their session may not
/// know, and links of invitations. A team sends few invitations to one address.
pub(crate) async fn what_users_guess_is_counted(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let ada = User::new(&fixture, "ada.guesses", false).await?;
    let bob = User::new(&fixture, "bob.guesses", false).await?;
    let (password, accept) = ("/v1/me/password", "/v1/invitations/accept");
    for user in [&ada, &bob] {
        user.post(password, &json!({"new_password": PASSWORD})).await?.expect(204)?;
    }
    let change = |current: &str| json!({"current_password": current, "new_password": "staple battery horse"});
    let delete = async |current: &str| {
        let body = json!({"confirmation": ada.email, "current_password": current});
        ada.send(Method::DELETE, "/v1/me", Some(&body)).await
    };
    let guess = async |number: usize| {
        let current = format!("wrong horse {number}");
        match number % 2 {
            0 => ada.post(password, &change(&current)).await,
            _ => delete(&current).await,
        }
    };
    exhaust(10, 403, guess).await.context("passwords")?;
    // Also the right one.
    refused(ada.post(password, &change(PASSWORD)).await?)?;
    refused(delete(PASSWORD).await?)?;
    ada.get("/v1/me").await?.expect(200)?;
    bob.post(password, &change(PASSWORD)).await?.expect(204)?;

    let link = json!({"token": "guessed"});
    exhaust(60, 400, async |_: usize| ada.post(accept, &link).await).await.context("invitations")?;
    bob.post(accept, &link).await?.expect_error(400, "invalid_token")?;

    let path = format!("/v1/teams/{}/invitations", bob.team);
    let invite = async |email: &str| bob.post(&path, &json!({"email": email, "role": "member"})).await;
    let invited = async |_: usize| invite("nobody.guesses@example.com").await;
    exhaust(10, 201, invited).await.context("invited again and again")?;
    invite("nobody.other.guesses@example.com").await?.expect(201)?;
    fixture.stop().await
}
