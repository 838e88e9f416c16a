// SPDX-License-Identifier: Apache-2.0
//! `wrenn server` and `wrenn agent`: a single part of Wrenn, for `wrenn up` or a service manager.

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use wrenn_control::{Admin, AgentTls, Server};

use crate::{config::Config, host_id, layout::Layout, logging, pki, signals::Stop};

/// Runs a server of the control plane until it gets a signal to stop.
pub(crate) async fn server(config: &Config) -> Result<u8> {
    logging::start(config);
    let shutdown = Stop::new()?.token();
    run(server_config(config), shutdown).await.context("the server failed")?;
    Ok(0)
}

async fn run(config: wrenn_control::Config, shutdown: CancellationToken) -> Result<()> {
    Server::builder(config).build().await?.run(shutdown).await
}

/// Runs the host agent until it gets a signal to stop.
pub(crate) async fn agent(config: &Config) -> Result<u8> {
    logging::start(config);
    let shutdown = Stop::new()?.token();
    wrenn_host::serve(agent_config(config)?, shutdown).await.context("the agent failed")?;
    Ok(0)
}

/// Migrates the database to this version.
pub(crate) async fn migrate(config: &Config) -> Result<u8> {
    logging::start(config);
    Admin::new(&database_url(config))?.migrate().await.context("the migration failed")?;
    Ok(0)
}

/// Replaces the key with which URLs of files are signed.
pub(crate) async fn rotate_signing_key(config: &Config, revoke: bool) -> Result<u8> {
    logging::start(config);
    Admin::new(&database_url(config))?.rotate_signing_key(revoke).await?;
    Ok(0)
}

/// Administration of the database of this machine's Wrenn, without a server.
pub(crate) fn admin(config: &Config) -> Result<Admin> {
    Admin::new(&database_url(config))
}

fn database_url(config: &Config) -> String {
    let machine = config.machine();
    machine.database_url.unwrap_or_else(|| Layout::new(&machine.state_dir).database_url())
}

fn server_config(config: &Config) -> wrenn_control::Config {
    let machine = config.machine();
    let layout = Layout::new(&machine.state_dir);
    let tls = pki::side(&layout.pki(), "control");
    let mut settings = config.server();
    settings.builds.context_dir.get_or_insert_with(|| layout.contexts());
    let key = layout.channel_key();
    if settings.channels.key_file.is_none() && key.exists() {
        settings.channels.key_file = Some(key);
    }
    let redis_url = machine.redis_url.unwrap_or_else(|| layout.redis_url());
    let agent_tls = AgentTls::new(tls.ca, tls.cert, tls.key);
    wrenn_control::Config::new(settings, database_url(config), redis_url, agent_tls)
}

/// Configuration of the agent.
pub(crate) fn agent_config(config: &Config) -> Result<wrenn_host::Config> {
    let layout = Layout::new(&config.machine().state_dir);
    let tls = pki::side(&layout.pki(), "agent");
    Ok(wrenn_host::Config {
        host_id: host_id::load(&layout)?,
        state_dir: layout.agent(),
        share_dir: config.share_dir()?,
        tls: wrenn_host::TlsFiles { ca: tls.ca, cert: tls.cert, key: tls.key },
        settings: config.agent(),
    })
}
