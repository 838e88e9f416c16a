// SPDX-License-Identifier: Apache-2.0
//! Supervisor of all parts of Wrenn on this machine: starts them in order and stops them in reverse order.

use std::{net::TcpListener, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::time::timeout;
use tracing::{info, warn};
use wrenn_api::HostId;
use wrenn_client::Client;
use wrenn_control::Admin;

use super::{
    OOM_SCORE,
    child::{Privileges, Spec, Supervised},
    postgres, redis,
};
use crate::{
    channel_key, client_config,
    config::Config,
    host_id,
    layout::Layout,
    memory_limits, pki,
    users::{Services, User},
};

/// Time limit for the database, with the migrations of a large one.
const DATABASE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the agent, which first reads all templates and adopts microVMs.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
const SERVER_LIMIT: Duration = Duration::from_secs(120);
const SERVER_GRACE: Duration = Duration::from_secs(8);
const AGENT_GRACE: Duration = Duration::from_secs(15);

/// Interval between checks of the certificates, which are renewed a month before their end.
const CERTIFICATES_LOOK: Duration = Duration::from_secs(12 * 3600);
/// Capabilities of the agent (numbers of `linux/capability.h`): disks and files of VMMs (CHOWN, DAC_OVERRIDE,
/// FOWNER, FSETID, MKNOD); starting VMMs as users of their own, finding and killing them (KILL, SETGID,
/// SETUID, SETPCAP, SYS_CHROOT, SYS_PTRACE); networks (NET_BIND_SERVICE, NET_ADMIN, NET_RAW); mounts,
/// namespaces, loop devices and device-mapper (SYS_ADMIN); resource limits (SYS_RESOURCE); files of images (SETFCAP).
const AGENT_CAPABILITIES: &[u32] = &[0, 1, 3, 4, 5, 6, 7, 8, 10, 12, 13, 18, 19, 21, 24, 27, 31];

/// The running parts, in the order of their start.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    children: Vec<Supervised>,
}

impl Supervisor {
    /// Starts all parts and waits until the API responds. After a failure, `self` contains the parts that
    /// were started.
    pub(crate) async fn start(&mut self, config: &Config, layout: &Layout, users: &Services) -> Result<()> {
        check_ports(config)?;
        if pki::ensure(&layout.pki(), &users.server)? {
            info!("made the certificates in {}", layout.pki().display());
        }
        if channel_key::ensure(&layout.channel_key(), &users.server)? {
            info!("made the key for the secrets of channels, {}", layout.channel_key().display());
        }
        let host = host_id::load(layout)?;
        let (database_url, redis_url) = self.start_stores(config, layout, users).await?;
        let key = prepare_database(config, &database_url, host).await?;
        let mut env = config.for_child();
        env.retain(|(name, _)| name != "DATABASE_URL" && name != "REDIS_URL");
        // The agent does not use the stores, so it does not get their secrets.
        let agent = Spec {
            oom_score: OOM_SCORE,
            group: memory_limits::bound(config, layout, "agent")?,
            ..ours("agent", env.clone(), Privileges::Root(AGENT_CAPABILITIES), AGENT_GRACE)
        };
        env.extend([("DATABASE_URL".to_owned(), database_url), ("REDIS_URL".to_owned(), redis_url)]);
        let server = Spec {
            group: memory_limits::bound(config, layout, "server")?,
            ..ours("server", env, Privileges::User(users.server.clone()), SERVER_GRACE)
        };
        self.children.push(Supervised::start(agent, layout));
        self.children.push(Supervised::start(server, layout));
        self.ready(config).await?;
        // Last, so that a key in the file means that Wrenn works.
        client_config::write(config.file(), &config.local_url(), &key)
    }

    async fn start_stores(
        &mut self,
        config: &Config,
        layout: &Layout,
        users: &Services,
    ) -> Result<(String, String)> {
        let machine = config.machine();
        let (mut own_postgres, mut own_redis) = (None, None);
        if machine.database_url.is_none() {
            let spec = postgres::prepare(layout, &users.postgres).await?;
            own_postgres = Some(self.push(Supervised::start(spec, layout)));
        }
        if machine.redis_url.is_none() {
            own_redis = Some(self.push(Supervised::start(redis::prepare(layout, &users.redis)?, layout)));
        }
        if let Some(index) = own_postgres {
            postgres::ready(&self.children[index], layout).await?;
        }
        if let Some(index) = own_redis {
            redis::ready(&self.children[index], layout).await?;
        }
        let database_url = machine.database_url.unwrap_or_else(|| layout.database_url());
        let redis_url = machine.redis_url.unwrap_or_else(|| layout.redis_url());
        Ok((database_url, redis_url))
    }

    fn push(&mut self, child: Supervised) -> usize {
        self.children.push(child);
        self.children.len() - 1
    }

    async fn ready(&self, config: &Config) -> Result<()> {
        let [.., agent, server] = self.children.as_slice() else { return Ok(()) };
        let client = Client::new(&config.local_url(), None)?;
        let healthy = async || client.health().await.is_ok_and(|health| health.status == "ok");
        server.ready(SERVER_LIMIT, healthy).await?;
        // A listening agent is not enough: it first probes KVM and adopts its microVMs.
        let online = async || client.health().await.is_ok_and(|health| health.hosts_online > 0);
        agent.ready(AGENT_LIMIT, online).await
    }

    /// Renews the certificates of agent and control plane before they end, and restarts both with them. Never
    /// ends.
    pub(crate) async fn renew_certificates(&self, layout: &Layout, server: &User) {
        loop {
            tokio::time::sleep(CERTIFICATES_LOOK).await;
            let (dir, server) = (layout.pki(), server.clone());
            let renewed = tokio::task::spawn_blocking(move || pki::ensure(&dir, &server)).await;
            match renewed.map_err(Into::into).and_then(|renewed| renewed) {
                Ok(true) => {
                    info!("renewed the certificates; restarting agent and server");
                    let both =
                        self.children.iter().filter(|child| matches!(child.name(), "server" | "agent"));
                    both.for_each(Supervised::restart);
                }
                Ok(false) => {}
                Err(error) => warn!("cannot renew the certificates: {error:#}"),
            }
        }
    }

    /// Stops the control plane, then the agent. The stores continue to run.
    pub(crate) async fn stop_services(&mut self) {
        while let Some(child) = self.children.pop_if(|child| matches!(child.name(), "server" | "agent")) {
            child.stop().await;
        }
    }

    /// Stops all parts, the last started first.
    pub(crate) async fn stop(&mut self) {
        while let Some(child) = self.children.pop() {
            child.stop().await;
        }
    }
}

/// Specification of a child that runs this program. `/proc/self/exe` also works if the service user cannot
/// traverse the program's path.
fn ours(name: &'static str, env: Vec<(String, String)>, privileges: Privileges, grace: Duration) -> Spec {
    let program = "/proc/self/exe".into();
    let (arg0, args) = (Some("wrenn".to_owned()), vec![name.to_owned()]);
    Spec { name, program, arg0, args, env, privileges, oom_score: 0, group: None, stop: Signal::TERM, grace }
}

/// Checks the ports in advance, so that one in use is reported at once and by name, not by a server that
/// fails again and again.
fn check_ports(config: &Config) -> Result<()> {
    let (server, agent) = (config.server(), config.agent().listen);
    for (address, variable) in [
        (server.listen, "WRENN_SERVER_LISTEN"),
        (server.proxy.listen, "WRENN_SERVER_PROXY_LISTEN"),
        (agent, "WRENN_AGENT_LISTEN"),
    ] {
        TcpListener::bind(address)
            .with_context(|| format!("cannot listen on {address}: end what uses it, or set {variable}"))?;
    }
    Ok(())
}

async fn prepare_database(config: &Config, database_url: &str, host: HostId) -> Result<String> {
    let address = config.agent().listen;
    let prepare = async {
        let admin = Admin::new(database_url)?;
        admin.migrate().await.context("cannot bring the database to this version")?;
        admin.ensure_host(host, address).await.context("cannot register this host")?;
        admin.ensure_api_key(config.api_key().as_deref()).await.context("cannot make an API key")
    };
    timeout(DATABASE_LIMIT, prepare)
        .await
        .with_context(|| format!("the database was not ready within {} s", DATABASE_LIMIT.as_secs()))?
}

/// Notes in the database, while it still runs, that the sandboxes are gone.
pub(crate) async fn note_gone(config: &Config, layout: &Layout) -> Result<()> {
    let database_url = config.machine().database_url.unwrap_or_else(|| layout.database_url());
    let told = timeout(DATABASE_LIMIT, Admin::new(&database_url)?.host_emptied(host_id::load(layout)?)).await;
    told.context("the database did not answer")?.context("cannot note that the sandboxes are gone")
}
