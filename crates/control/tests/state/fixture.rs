// SPDX-License-Identifier: Apache-2.0
//! A control plane with a database of its own, and with fake agents.

use std::{
    net::{self, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use wrenn_api::SandboxId;
use wrenn_control::{Admin, Config, Limits, ProxySettings, Server, ServerBuilder, Settings};
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::{Api, Reply, wait_until};

use crate::{agent::Agent, certificates::certificates, stores::Stores};

/// Time limit that is only reached on failures.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) stores: Arc<Stores>,
    pub(crate) database: String,
    pub(crate) api: Api,
    pub(crate) agents: Vec<Arc<Agent>>,
    servers: Vec<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    tls: wrenn_control::AgentTls,
    limits: Limits,
    _dir: tempfile::TempDir,
}

fn free_address() -> Result<SocketAddr> {
    Ok(net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Fixture {
    /// Starts a server with this many agents, and waits until all are online.
    pub(crate) async fn start(
        stores: &Arc<Stores>,
        database: &str,
        agents: usize,
        limits: Limits,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (tls, agent_tls) = certificates(dir.path()).map_err(|error| anyhow!(error))?;
        let agent_tls = Arc::new(agent_tls);
        stores.create(database).await?;
        let url = stores.database_url(database);
        let admin = Admin::new(&url)?;
        admin.migrate().await?;
        let mut started = Vec::new();
        for _ in 0..agents {
            let agent = Agent::start(agent_tls.clone()).await?;
            admin.ensure_host(agent.id, agent.address).await?;
            started.push(agent);
        }
        let key = admin.ensure_api_key(None).await?;
        let mut fixture = Self {
            stores: stores.clone(),
            database: database.to_owned(),
            api: Api::new("", &key),
            agents: started,
            servers: Vec::new(),
            tls,
            limits,
            _dir: dir,
        };
        fixture.api = fixture.serve().await?;
        let online = async || {
            let health = fixture.api.get("/health").await.ok()?.json();
            (health["hosts_online"] == agents).then_some(())
        };
        wait_until("all hosts online", SOON, online).await?;
        Ok(fixture)
    }

    fn builder(&self) -> Result<(ServerBuilder, SocketAddr)> {
        let listen = free_address()?;
        let proxy = ProxySettings { listen: free_address()?, ..ProxySettings::default() };
        let config = Config {
            settings: Settings { listen, limits: self.limits.clone(), proxy },
            database_url: self.stores.database_url(&self.database),
            redis_url: self.stores.redis_url(),
            agent_tls: self.tls.clone(),
        };
        Ok((Server::builder(config), listen))
    }

    /// Starts another server with the same database, and returns a client of it.
    pub(crate) async fn serve(&mut self) -> Result<Api> {
        self.serve_with(|builder| builder).await
    }

    /// Starts another server, built with more than usual.
    pub(crate) async fn serve_with(
        &mut self,
        add: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Result<Api> {
        let (builder, listen) = self.builder()?;
        let (builder, shutdown) = (add(builder), CancellationToken::new());
        let stop = shutdown.clone();
        let server = tokio::spawn(async move { builder.build().await?.run(stop).await });
        self.servers.push((shutdown, server));
        let api = Api::new(&format!("http://{listen}"), self.api.key());
        let healthy = async || api.get("/health").await.ok().filter(|reply| reply.status == 200);
        wait_until("health", SOON, healthy).await?;
        Ok(api)
    }

    /// Returns why a server cannot be built.
    pub(crate) async fn build_error(
        &self,
        add: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Result<String> {
        let (builder, _) = self.builder()?;
        let error = add(builder).build().await.err().context("it was built")?;
        Ok(format!("{error:#}"))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        for (shutdown, server) in self.servers {
            shutdown.cancel();
            server.await?.context("the server failed")?;
        }
        Ok(())
    }

    pub(crate) fn agent(&self) -> &Arc<Agent> {
        &self.agents[0]
    }

    pub(crate) async fn sql(&self, statements: &str) -> Result<()> {
        self.stores.execute(&self.database, statements).await
    }

    /// Returns the first row of a query.
    pub(crate) async fn value(&self, query: &str) -> Result<String> {
        Ok(self.stores.column(&self.database, query).await?.into_iter().next().unwrap_or_default())
    }

    /// Waits until a query's first row has this value.
    pub(crate) async fn wait_value(&self, query: &str, expected: &str) -> Result<()> {
        let mut last = String::new();
        let is = async || {
            last = self.value(query).await.ok()?;
            (last == expected).then_some(())
        };
        let found = wait_until(query, SOON, is).await;
        found.with_context(|| format!("it gave {last:?} instead of {expected:?}"))
    }

    /// Creates a sandbox with a key and a raw body.
    pub(crate) async fn ask(&self, key: &str, body: &str) -> Result<Reply> {
        self.ask_of(&self.api, "/v1/sandboxes", key, body).await
    }

    /// Sends a raw body with a key to a server.
    pub(crate) async fn ask_of(&self, api: &Api, path: &str, key: &str, body: &str) -> Result<Reply> {
        let request = api.request(Method::POST, path).header("Idempotency-Key", key);
        api.send(request.header("Content-Type", "application/json").body(body.to_owned())).await
    }

    /// Sends a raw body of a media type, or none of both.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<(&str, &str)>) -> Result<Reply> {
        let request = self.api.request(method, path);
        let request = match body {
            Some((kind, body)) => request.header("Content-Type", kind).body(body.to_owned()),
            None => request,
        };
        self.api.send(request).await
    }

    /// Sends JSON text.
    pub(crate) async fn send_json(&self, method: Method, path: &str, body: &str) -> Result<Reply> {
        self.send(method, path, Some(("application/json", body))).await
    }

    /// Pauses a sandbox, and returns the response.
    pub(crate) async fn pause(&self, id: &str) -> Result<Value> {
        let paused = self.send(Method::POST, &format!("/v1/sandboxes/{id}/pause"), None).await?;
        Ok(paused.expect(200)?.json())
    }

    /// Returns everything that the database has of a sandbox.
    pub(crate) async fn row(&self, id: &str) -> Result<String> {
        let uuid = id.parse::<SandboxId>()?.uuid();
        self.value(&format!("SELECT row_to_json(s)::text FROM sandboxes s WHERE id = '{uuid}'")).await
    }

    pub(crate) async fn create(&self) -> Result<String> {
        self.api.create(&json!({"memory_mb": 256})).await
    }

    pub(crate) async fn record(&self, id: &str) -> Result<Value> {
        Ok(self.api.get(&format!("/v1/capsules/{id}")).await?.expect(200)?.json())
    }

    /// Waits until a sandbox has this status, and returns its record.
    pub(crate) async fn wait_status(&self, id: &str, status: &str) -> Result<Value> {
        let is = async || self.record(id).await.ok().filter(|record| record["status"] == status);
        wait_until(&format!("{id} {status}"), SOON, is).await
    }

    /// Waits until the reconciler has completed this many further rounds of the host.
    pub(crate) async fn rounds(&self, agent: &Agent, rounds: usize) -> Result<()> {
        // The current round may have started before.
        let until = agent.now().lists.1 + rounds + 1;
        let done = async || (agent.now().lists.1 >= until).then_some(());
        wait_until("rounds of the reconciler", SOON, done).await
    }
}

/// Sends JSON with these further header lines over a connection of its own, and leaves the response to the caller.
pub(crate) async fn post_unread(api: &Api, path: &str, fields: &str, body: &str) -> Result<TcpStream> {
    let address = api.url().trim_start_matches("http://");
    let (key, length) = (api.key(), body.len());
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {key}\r\n{fields}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request.as_bytes()).await?;
    connection.flush().await?;
    Ok(connection)
}

/// Returns an unused sandbox id.
pub(crate) fn new_id() -> String {
    wrenn_api::SandboxId::new().to_string()
}

pub(crate) const RUNNING: SandboxState = SandboxState::SANDBOX_STATE_RUNNING;
pub(crate) const UNKNOWN: SandboxState = SandboxState::SANDBOX_STATE_UNKNOWN;
