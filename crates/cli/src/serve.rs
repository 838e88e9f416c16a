// SPDX-License-Identifier: Apache-2.0
//! `wrenn server` and `wrenn agent`: a single part of Wrenn, for `wrenn up` or a service manager.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use wrenn_control::{Admin, Server};

use crate::{config::Config, host_id, layout::Layout, logging, pki, signals::Stop};

/// Runs a server of the control plane until it gets a signal to stop.
pub(crate) async fn server(config: &Config) -> Result<u8> {
    logging::start(config);
    let shutdown = Stop::new()?.token();
    run(server_config(config)?, shutdown).await.context("the server failed")?;
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

fn database_url(config: &Config) -> String {
    let own = || Layout::new(config.state_dir()).database_url();
    config.get("database_url").map_or_else(own, str::to_owned)
}

fn server_config(config: &Config) -> Result<wrenn_control::Config> {
    let layout = Layout::new(config.state_dir());
    let tls = pki::side(&layout.pki(), "control");
    let defaults = wrenn_control::Limits::default();
    Ok(wrenn_control::Config {
        listen: config.address("server.listen")?,
        database_url: database_url(config),
        redis_url: config.get("redis_url").map_or_else(|| layout.redis_url(), str::to_owned),
        agent_tls: wrenn_control::AgentTls { ca: tls.ca, cert: tls.cert, key: tls.key },
        limits: wrenn_control::Limits {
            json_body: config.or("server.json_body", defaults.json_body),
            upload_body: config.or("server.upload_body", defaults.upload_body),
            concurrent_requests: config.or("server.concurrent_requests", defaults.concurrent_requests),
            concurrent_deletes: config.or("server.concurrent_deletes", defaults.concurrent_deletes),
            long_commands: config.or("server.long_commands", defaults.long_commands),
            memory: config.or("server.memory", defaults.memory),
            connections: config.or("server.connections", defaults.connections),
            connections_per_address: config
                .or("server.connections_per_address", defaults.connections_per_address),
            key_check: seconds(config, "server.key_check_sec", defaults.key_check),
            sandboxes_per_team: config.or("server.sandboxes_per_team", defaults.sandboxes_per_team),
            event_streams: config.or("server.event_streams", defaults.event_streams),
            lease: seconds(config, "server.lease_sec", defaults.lease),
            create: seconds(config, "server.create_timeout_sec", defaults.create),
            stray_grace: seconds(config, "server.stray_grace_sec", defaults.stray_grace),
            record_retention: seconds(config, "server.record_retention_sec", defaults.record_retention),
            database: seconds(config, "server.database_timeout_sec", defaults.database),
        },
    })
}

/// Returns the configured driver.
pub(crate) fn driver(config: &Config) -> wrenn_host::Driver {
    match config.get("agent.driver") {
        Some("firecracker") => wrenn_host::Driver::Firecracker,
        Some("kvm") => wrenn_host::Driver::Kvm,
        Some("tcg") => wrenn_host::Driver::Tcg,
        _ => wrenn_host::Driver::Auto,
    }
}

fn agent_config(config: &Config) -> Result<wrenn_host::Config> {
    let layout = Layout::new(config.state_dir());
    let tls = pki::side(&layout.pki(), "agent");
    let defaults = wrenn_host::Limits::default();
    Ok(wrenn_host::Config {
        host_id: host_id::load(&layout)?,
        state_dir: layout.agent(),
        share_dir: config.share_dir()?,
        listen: config.address("agent.listen")?,
        tls: wrenn_host::TlsFiles { ca: tls.ca, cert: tls.cert, key: tls.key },
        driver: driver(config),
        firecracker: config.get("agent.firecracker").map(PathBuf::from),
        unjailed: config.or("agent.unjailed", false),
        require_security_boundary: config
            .get("agent.require_security_boundary")
            .and_then(|value| value.parse().ok()),
        egress: match config.get("agent.egress") {
            Some("none") => wrenn_host::Egress::None,
            _ => wrenn_host::Egress::Internet,
        },
        rates: wrenn_host::Rates {
            network: rate(config, "agent.network_rate"),
            disk: rate(config, "agent.disk_rate"),
        },
        warm_slots: config.or("agent.warm_slots", 4),
        store_size_mb: config.or("agent.store_size_mb", 65_536),
        vmm_uid_base: config.get("agent.vmm_uid_base").and_then(|base| base.parse().ok()),
        limits: wrenn_host::Limits {
            sandboxes: config.or("agent.max_sandboxes", defaults.sandboxes),
            vcpus: config.or("agent.max_vcpus", defaults.vcpus),
            memory_mb: config.or("agent.max_memory_mb", defaults.memory_mb),
            disk_size_mb: config.or("agent.max_disk_size_mb", defaults.disk_size_mb),
            exec_output: config.or("agent.exec_output", defaults.exec_output),
            output_memory: config.get("agent.output_memory").and_then(|value| value.parse().ok()),
            boot: seconds(config, "agent.boot_timeout_sec", defaults.boot),
        },
    })
}

fn rate(config: &Config, name: &str) -> Option<u64> {
    config.get(name).and_then(|value| value.parse().ok())
}

fn seconds(config: &Config, name: &str, default: Duration) -> Duration {
    Duration::from_secs(config.or(name, default.as_secs()))
}
