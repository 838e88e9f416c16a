// SPDX-License-Identifier: Apache-2.0
//! A control plane with a database of its own, and with fake agents.

use std::{
    net::{self, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use wrenn_api::SandboxId;
use wrenn_control::{
    Admin, BuildSettings, Config, Limits, MailSettings, OAuthSettings, ProxySettings, Server, ServerBuilder,
    Settings, TemplateSettings,
};
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::{Api, Reply, wait_until};

use crate::{agent::Agent, certificates::certificates, log_scan, second, stores::Stores};

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
    /// Settings of builds, for servers that are started from now on.
    pub(crate) builds: BuildSettings,
    templates: TemplateSettings,
    /// The same of mail.
    pub(crate) mail: MailSettings,
    /// The same of sign-in by providers.
    pub(crate) oauth: OAuthSettings,
    /// The same of the proxy, but its address, which is another one of each server.
    pub(crate) proxy: ProxySettings,
    dir: tempfile::TempDir,
}

/// Returns two addresses that nobody listens on, with an IP address of their own: on a shared one, something else could get a port
/// before the server has it.
fn free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let [high, low] = GIVEN.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let free = || net::TcpListener::bind((Ipv4Addr::new(127, 1, high, low), 0));
    let (first, second) = (free()?, free()?);
    Ok((first.local_addr()?, second.local_addr()?))
}

/// File of the key that encrypts channels.
fn channel_key(dir: &Path) -> PathBuf {
    dir.join("channels.key")
}

impl Fixture {
    /// Starts a server with this many agents, and waits until all are online.
    pub(crate) async fn start(
        stores: &Arc<Stores>,
        database: &str,
        agents: usize,
        limits: Limits,
    ) -> Result<Self> {
        Self::start_with(stores, database, agents, limits, BuildSettings::default()).await
    }

    /// Starts a server with these settings of builds, too.
    pub(crate) async fn start_with(
        stores: &Arc<Stores>,
        database: &str,
        agents: usize,
        limits: Limits,
        builds: BuildSettings,
    ) -> Result<Self> {
        Self::start_of(stores, database, agents, limits, (builds, TemplateSettings::default())).await
    }

    /// Starts a server with these settings of templates, too.
    pub(crate) async fn start_of(
        stores: &Arc<Stores>,
        database: &str,
        agents: usize,
        limits: Limits,
        (builds, templates): (BuildSettings, TemplateSettings),
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (tls, agent_tls) = certificates(dir.path()).map_err(|error| anyhow!(error))?;
        let agent_tls = Arc::new(agent_tls);
        std::fs::write(channel_key(dir.path()), wrenn_control::new_channel_key(1)?)?;
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
        log_scan::look_for(&key);
        let mut fixture = Self {
            stores: stores.clone(),
            database: database.to_owned(),
            api: Api::new("", &key),
            agents: started,
            servers: Vec::new(),
            tls,
            limits,
            builds,
            templates,
            mail: MailSettings::default(),
            oauth: OAuthSettings::default(),
            proxy: ProxySettings::default(),
            dir,
        };
        fixture.api = fixture.serve().await?;
        second::start_if_asked(database, || fixture.builder())?;
        let online = async || {
            let health = fixture.api.get("/health").await.ok()?.json();
            (health["hosts_online"] == agents).then_some(())
        };
        wait_until("all hosts online", SOON, online).await?;
        Ok(fixture)
    }

    /// File of the keys that encrypt channels, which servers read when they start.
    pub(crate) fn channel_key(&self) -> PathBuf {
        channel_key(self.dir.path())
    }

    fn builder(&self) -> Result<(ServerBuilder, SocketAddr)> {
        self.builder_at(self.stores.database_url(&self.database))
    }

    /// Returns the builder of a server that reaches the database at this URL, and the address of the server.
    pub(crate) fn builder_at(&self, database_url: String) -> Result<(ServerBuilder, SocketAddr)> {
        let (listen, proxy) = free_addresses()?;
        let mut settings = Settings::default();
        settings.listen = listen;
        settings.limits = self.limits.clone();
        settings.proxy = self.proxy.clone();
        settings.proxy.listen = proxy;
        settings.builds = self.builds.clone();
        settings.builds.context_dir = Some(self.contexts());
        settings.templates = self.templates.clone();
        settings.mail = self.mail.clone();
        settings.channels.key_file = Some(self.channel_key());
        settings.channels.allow = Some("127.0.0.0/8".to_owned());
        settings.oauth = self.oauth.clone();
        let config = Config::new(settings, database_url, self.stores.redis_url(), self.tls.clone());
        Ok((Server::builder(config), listen))
    }

    /// Directory of the files that are uploaded for builds: one of the fixture's own, unless the settings name another one.
    pub(crate) fn contexts(&self) -> PathBuf {
        self.builds.context_dir.clone().unwrap_or_else(|| self.dir.path().join("contexts"))
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
        self.run(add(builder), listen).await
    }

    /// Starts another server, which reaches the database at this URL.
    pub(crate) async fn serve_at(&mut self, database_url: String) -> Result<Api> {
        let (builder, listen) = self.builder_at(database_url)?;
        self.run(builder, listen).await
    }

    /// Runs a server, and returns a client of it once it is healthy.
    async fn run(&mut self, builder: ServerBuilder, listen: SocketAddr) -> Result<Api> {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let server = tokio::spawn(async move { builder.build().await?.run(stop).await });
        self.servers.push((shutdown, server));
        let api = Api::new(&format!("http://{listen}"), self.api.key());
        let healthy = async || api.get("/health").await.ok().filter(|reply| reply.status == 200);
        wait_until("health", SOON, healthy).await?;
        Ok(api)
    }

    /// Stops the server that was started first.
    pub(crate) async fn stop_first(&mut self) -> Result<()> {
        let (shutdown, server) = self.servers.remove(0);
        shutdown.cancel();
        server.await?.context("the server failed")
    }

    /// Ends the server that was started first as if it was killed: nothing that it does is completed.
    pub(crate) fn kill_first(&mut self) {
        let (_, server) = self.servers.remove(0);
        server.abort();
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
