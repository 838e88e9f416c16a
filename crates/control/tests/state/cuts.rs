// SPDX-License-Identifier: Apache-2.0
//! The connection to PostgreSQL breaks at every statement of a sign-up, an activation, an invitation, and the deletion of a team and of
//! an account, before the statement and after it: nothing is ever half done, and the operation can be repeated. The short form has a
//! sample of the statements.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use axum::body::{Body, to_bytes};
use http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::sync::Mutex;
use tower::ServiceExt as _;
use uuid::Uuid;
use wrenn_api::{TeamId, UserId};
use wrenn_control::{HttpService, Limits, SmtpTls};
use wrenn_testkit::short_or_long;

use crate::{
    cutter::{Cutter, Seen, When},
    fixture::Fixture,
    stores::Stores,
};

/// More statements than an operation has.
const MOST: usize = 60;
/// The least number that one has: of a transaction with two changes.
const LEAST: usize = 4;
/// Number of statements that the short form cuts at, besides those around each COMMIT, where it is decided what is done.
const SAMPLE: usize = LEAST;

/// A server without workers, whose statements are those of its requests alone, and the proxy between it and its database.
struct Cut {
    fixture: Fixture,
    cutter: Cutter,
    service: HttpService,
    /// Connection that is never cut, for what is prepared and looked at: one for each query would take longer than the query.
    direct: Mutex<PgConnection>,
}

/// Status and body of a response.
struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// An operation that is cut.
trait Operation {
    /// What it is done to.
    type Subject;

    /// Makes a subject that nothing else has to do with.
    async fn prepare(&self, cut: &Cut, name: &str) -> Result<Self::Subject>;

    /// Does it.
    async fn act(&self, cut: &Cut, subject: &Self::Subject) -> Result<Answer>;

    /// Whether an answer is one to a success, or tells that it was done before.
    fn is_success(&self, answer: &Answer) -> bool;

    /// Query for what has become of it: `done`, `undone`, or `half`.
    fn state(&self, subject: &Self::Subject) -> String;
}

impl Cut {
    async fn start(stores: &Arc<Stores>, name: &str) -> Result<Self> {
        let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
        // No mail is sent, because no worker runs.
        fixture.mail.public_url = Some("http://wrenn.test".to_owned());
        fixture.mail.host = Some("127.0.0.1".to_owned());
        fixture.mail.tls = SmtpTls::None;
        let cutter = Cutter::start(stores.postgres_socket()).await?;
        let (builder, _) = fixture.builder_at(cutter.url(name))?;
        let service = builder.build().await?.router();
        let direct = Mutex::new(stores.connect(name).await?);
        Ok(Self { fixture, cutter, service, direct })
    }

    /// Sends a request with a credential, which is a header and its value.
    async fn send(
        &self,
        method: Method,
        path: &str,
        credential: Option<(&str, &str)>,
        body: &Value,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header("host", "wrenn.test");
        if let Some((name, value)) = credential {
            request = request.header(name, value);
        }
        let request = if body.is_null() {
            request.body(Body::empty())?
        } else {
            request.header("content-type", "application/json").body(Body::from(body.to_string()))?
        };
        let Ok(response) = self.service.clone().oneshot(request).await;
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1 << 20).await?;
        Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }

    /// Runs statements.
    async fn sql(&self, statements: &str) -> Result<()> {
        let mut direct = self.direct.lock().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut *direct).await?;
        Ok(())
    }

    async fn state(&self, query: &str, expected: &[&str]) -> Result<()> {
        let mut direct = self.direct.lock().await;
        let found = sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()));
        let state: String = found.fetch_one(&mut *direct).await?;
        ensure!(expected.contains(&state.as_str()), "it is {state}, not {expected:?}: {query}");
        Ok(())
    }

    /// Does an operation again and again, cut at one statement after the other, until it is done before it is cut.
    async fn everywhere<O: Operation>(&self, operation: &O) -> Result<()> {
        let sample = if short_or_long(true, false) {
            self.sample(operation).await.context("uncut")?
        } else {
            BTreeSet::new()
        };
        for when in [When::Before, When::After] {
            let is_cut = async |statements: usize| {
                let seen = self.at(operation, when, statements).await;
                anyhow::Ok(seen.with_context(|| format!("{when:?} {statements}"))?.was_cut)
            };
            let (mut cut, mut statements) = (BTreeSet::new(), 0);
            while is_cut(statements).await? {
                cut.insert(statements);
                // The statements after the sample are those of an operation that takes more than it took for the sample.
                statements = sample.range(statements + 1..).next().copied().unwrap_or(statements + 1);
                ensure!(statements < MOST, "it never ends");
            }
            // If it takes fewer, the last one is before those of the sample.
            while statements > 0 && !cut.contains(&(statements - 1)) {
                statements -= 1;
                if is_cut(statements).await? {
                    cut.insert(statements);
                    break;
                }
            }
            ensure!(cut.len() >= LEAST, "only {} statements were cut", cut.len());
        }
        Ok(())
    }

    /// Chooses statements of an operation: the first, the last, some between them, and those around each COMMIT.
    async fn sample<O: Operation>(&self, operation: &O) -> Result<BTreeSet<usize>> {
        // The first time has the statements of new connections, too.
        self.at(operation, When::Before, MOST).await?;
        let seen = self.at(operation, When::After, MOST).await?;
        ensure!(!seen.was_cut && seen.statements >= LEAST, "{seen:?}");
        ensure!(!seen.commits.is_empty(), "no COMMIT was seen: {seen:?}");
        let last = seen.statements - 1;
        let spread = (0..SAMPLE).map(|number| number * last / (SAMPLE - 1));
        let around = seen.commits.iter().flat_map(|commit| commit.saturating_sub(1)..=(commit + 1).min(last));
        Ok(spread.chain(around).collect())
    }

    /// Does an operation that is cut after this number of statements; returns whether it was cut, and what was seen until then.
    async fn at<O: Operation>(&self, operation: &O, when: When, statements: usize) -> Result<Seen> {
        let name = format!("{when:?}{statements}").to_lowercase();
        let subject = operation.prepare(self, &name).await?;
        let query = operation.state(&subject);
        self.state(&query, &["undone"]).await?;
        self.cutter.arm(statements, when);
        let first = operation.act(self, &subject).await;
        let seen = self.cutter.disarm();
        let first = first?;
        if !seen.was_cut {
            ensure!(operation.is_success(&first), "uncut: {}: {}", first.status, first.body);
        } else if !operation.is_success(&first) {
            ensure!(
                first.status == 503 && first.code() == "service_unavailable",
                "{}: {}",
                first.status,
                first.body
            );
        }
        let expected: &[&str] = if operation.is_success(&first) { &["done"] } else { &["done", "undone"] };
        self.state(&query, expected).await?;
        let again = operation.act(self, &subject).await?;
        ensure!(operation.is_success(&again), "again: {}: {}", again.status, again.body);
        self.state(&query, &["done"]).await?;
        Ok(seen)
    }

    /// Inserts an active user with a team, who is its owner.
    async fn user(&self, name: &str) -> Result<(Uuid, Uuid)> {
        let (user, team) = (UserId::new().uuid(), TeamId::new().uuid());
        let statement = format!(
            "INSERT INTO users (id, email, name, status, activated_at)
                 VALUES ('{user}', '{name}@wrenn.test', '{name}', 'active', now());
             INSERT INTO teams (id, name, slug) VALUES ('{team}', '{name}', '{name}');
             INSERT INTO team_members (team_id, user_id, role) VALUES ('{team}', '{user}', 'owner');
             INSERT INTO one_time_links (secret_sha256, kind, subject, expires_at)
                 VALUES (sha256('{name}-link'), 'sign_in', '{user}', now() + interval '1 hour')"
        );
        self.sql(&statement).await?;
        Ok((user, team))
    }

    /// Signs in a user of [`Self::user`], and returns the header of their token.
    async fn sign_in(&self, name: &str) -> Result<String> {
        let body = json!({"token": format!("{name}-link")});
        let answer = self.send(Method::POST, "/v1/auth/sign-in-link", None, &body).await?;
        let token = answer.body["token"].as_str();
        Ok(format!("Bearer {}", token.with_context(|| format!("{}: {}", answer.status, answer.body))?))
    }
}

struct SignUp;

impl Operation for SignUp {
    type Subject = String;

    async fn prepare(&self, _: &Cut, name: &str) -> Result<String> {
        Ok(format!("{name}@wrenn.test"))
    }

    async fn act(&self, cut: &Cut, email: &String) -> Result<Answer> {
        let body = json!({"email": email, "password": "correct horse battery staple", "name": "Ada"});
        cut.send(Method::POST, "/v1/auth/signup", None, &body).await
    }

    fn is_success(&self, answer: &Answer) -> bool {
        answer.status == 201
    }

    /// Each has its mail.
    fn state(&self, email: &String) -> String {
        format!(
            "SELECT CASE WHEN signed <> mailed THEN 'half' WHEN signed = 0 THEN 'undone' ELSE 'done' END
             FROM (SELECT (SELECT count(*) FROM sign_ups WHERE email = '{email}') AS signed,
                 (SELECT count(*) FROM mails WHERE recipient = '{email}') AS mailed) counts"
        )
    }
}

struct Activation;

impl Operation for Activation {
    type Subject = (Uuid, String);

    async fn prepare(&self, cut: &Cut, name: &str) -> Result<(Uuid, String)> {
        let id = Uuid::now_v7();
        let statement = format!(
            "INSERT INTO sign_ups (id, email, name, password_hash, expires_at)
                 VALUES ('{id}', '{name}@wrenn.test', 'Ada', 'none', now() + interval '1 hour');
             INSERT INTO one_time_links (secret_sha256, kind, subject, expires_at)
                 VALUES (sha256('{name}-link'), 'activation', '{id}', now() + interval '1 hour')"
        );
        cut.sql(&statement).await?;
        Ok((id, name.to_owned()))
    }

    async fn act(&self, cut: &Cut, (_, name): &(Uuid, String)) -> Result<Answer> {
        let body = json!({"token": format!("{name}-link")});
        cut.send(Method::POST, "/v1/auth/activate", None, &body).await
    }

    /// A link works once.
    fn is_success(&self, answer: &Answer) -> bool {
        [200, 201].contains(&answer.status) || answer.code() == "invalid_token"
    }

    fn state(&self, (id, name): &(Uuid, String)) -> String {
        format!(
            "SELECT CASE WHEN users = 1 AND teams = 1 AND sessions = 1 AND sign_ups = 0 AND links = 0 THEN 'done'
                 WHEN users = 0 AND sign_ups = 1 AND links = 1 THEN 'undone' ELSE 'half' END
             FROM (SELECT (SELECT count(*) FROM users WHERE email = '{name}@wrenn.test') AS users,
                 (SELECT count(*) FROM team_members m JOIN users u ON u.id = m.user_id WHERE email = '{name}@wrenn.test') AS teams,
                 (SELECT count(*) FROM sessions s JOIN users u ON u.id = s.user_id WHERE email = '{name}@wrenn.test') AS sessions,
                 (SELECT count(*) FROM sign_ups WHERE id = '{id}') AS sign_ups,
                 (SELECT count(*) FROM one_time_links WHERE subject = '{id}') AS links) counts"
        )
    }
}

struct Invitation {
    team: TeamId,
    token: String,
}

impl Operation for Invitation {
    type Subject = String;

    async fn prepare(&self, _: &Cut, name: &str) -> Result<String> {
        Ok(format!("{name}@wrenn.test"))
    }

    async fn act(&self, cut: &Cut, email: &String) -> Result<Answer> {
        let path = format!("/v1/teams/{}/invitations", self.team);
        let body = json!({"email": email, "role": "member"});
        cut.send(Method::POST, &path, Some(("authorization", &self.token)), &body).await
    }

    fn is_success(&self, answer: &Answer) -> bool {
        answer.status == 201 || answer.status == 409
    }

    fn state(&self, email: &String) -> String {
        format!(
            "SELECT CASE WHEN invited = 0 AND mailed = 0 THEN 'undone' WHEN invited = 1 AND mailed > 0 THEN 'done'
                 ELSE 'half' END
             FROM (SELECT (SELECT count(*) FROM invitations WHERE email = '{email}') AS invited,
                 (SELECT count(*) FROM mails WHERE recipient = '{email}') AS mailed) counts"
        )
    }
}

struct TeamDeletion;

impl Operation for TeamDeletion {
    type Subject = Uuid;

    async fn prepare(&self, cut: &Cut, name: &str) -> Result<Uuid> {
        let (_, team) = cut.user(&format!("owner-{name}")).await?;
        let statement = format!(
            "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256)
                 VALUES (gen_random_uuid(), '{team}', '{name}', 'wrn_', sha256('{team}'))"
        );
        cut.sql(&statement).await?;
        Ok(team)
    }

    async fn act(&self, cut: &Cut, team: &Uuid) -> Result<Answer> {
        let path = format!("/v1/admin/teams/{}", TeamId::from(*team));
        let key = cut.fixture.api.key();
        cut.send(Method::DELETE, &path, Some(("x-api-key", key)), &Value::Null).await
    }

    fn is_success(&self, answer: &Answer) -> bool {
        answer.status == 204 || answer.code() == "not_found"
    }

    /// Its owner is told.
    fn state(&self, team: &Uuid) -> String {
        format!(
            "SELECT CASE WHEN deleted AND keys = 0 AND members = 0 AND mails = 1 THEN 'done'
                 WHEN NOT deleted AND keys = 1 AND members = 1 AND mails = 0 THEN 'undone' ELSE 'half' END
             FROM (SELECT deleted_at IS NOT NULL AS deleted,
                 (SELECT count(*) FROM api_keys k WHERE k.team_id = t.id AND k.revoked_at IS NULL) AS keys,
                 (SELECT count(*) FROM team_members m WHERE m.team_id = t.id) AS members,
                 (SELECT count(*) FROM mails WHERE recipient = t.name || '@wrenn.test') AS mails
                 FROM teams t WHERE id = '{team}') counts"
        )
    }
}

struct AccountDeletion;

impl Operation for AccountDeletion {
    type Subject = (Uuid, String, String);

    async fn prepare(&self, cut: &Cut, name: &str) -> Result<(Uuid, String, String)> {
        let name = format!("leaver-{name}");
        let (user, _) = cut.user(&name).await?;
        let token = cut.sign_in(&name).await?;
        Ok((user, name, token))
    }

    async fn act(&self, cut: &Cut, (_, name, token): &(Uuid, String, String)) -> Result<Answer> {
        let body = json!({"confirmation": format!("{name}@wrenn.test")});
        cut.send(Method::DELETE, "/v1/me", Some(("authorization", token)), &body).await
    }

    /// The session ends with the account.
    fn is_success(&self, answer: &Answer) -> bool {
        answer.status == 204 || answer.status == 401
    }

    /// The team goes along with its only member.
    fn state(&self, (user, name, _): &(Uuid, String, String)) -> String {
        format!(
            "SELECT CASE WHEN deleted AND sessions = 0 AND members = 0 AND teams = 0 AND mails = 1 THEN 'done'
                 WHEN NOT deleted AND sessions = 1 AND members = 1 AND teams = 1 AND mails = 0 THEN 'undone' ELSE 'half' END
             FROM (SELECT u.status = 'deleted' AS deleted,
                 (SELECT count(*) FROM sessions s WHERE s.user_id = u.id AND s.revoked_at IS NULL) AS sessions,
                 (SELECT count(*) FROM team_members m WHERE m.user_id = u.id) AS members,
                 (SELECT count(*) FROM teams t WHERE t.name = '{name}' AND t.deleted_at IS NULL) AS teams,
                 (SELECT count(*) FROM mails WHERE recipient = '{name}@wrenn.test') AS mails
                 FROM users u WHERE id = '{user}') counts"
        )
    }
}

pub(crate) async fn of_a_sign_up_and_its_activation(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let cut = Cut::start(stores, name).await?;
    cut.everywhere(&SignUp).await.context("sign-up")?;
    cut.sql("DELETE FROM sign_ups; DELETE FROM mails").await?;
    cut.everywhere(&Activation).await.context("activation")?;
    cut.fixture.stop().await
}

pub(crate) async fn of_an_invitation(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let cut = Cut::start(stores, name).await?;
    let (_, team) = cut.user("inviter").await?;
    let token = cut.sign_in("inviter").await?;
    cut.everywhere(&Invitation { team: team.into(), token }).await?;
    cut.fixture.stop().await
}

pub(crate) async fn of_deletions(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let cut = Cut::start(stores, name).await?;
    cut.everywhere(&TeamDeletion).await.context("of a team")?;
    cut.everywhere(&AccountDeletion).await.context("of an account")?;
    cut.fixture.stop().await
}
