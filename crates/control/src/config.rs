// SPDX-License-Identifier: Apache-2.0
//! Configuration of a control-plane server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// PEM files of the control plane's mutual TLS with the agents.
#[derive(Debug, Clone)]
pub struct AgentTls {
    /// The private CA, which is the only one that both sides trust.
    pub ca: PathBuf,
    /// Certificate of the control plane.
    pub cert: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// Limits on requests.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum body of a JSON request, in bytes.
    pub json_body: usize,
    /// Maximum body of an upload, in bytes.
    pub upload_body: usize,
    /// Maximum number of concurrent requests, half of them by one team; others get 429.
    pub concurrent_requests: usize,
    /// Maximum number of concurrent deletes, half of them by one team; they do not count as other requests.
    pub concurrent_deletes: usize,
    /// Maximum number of commands that may take more than a minute, half of them by one team; they do not
    /// count as other requests.
    pub long_commands: usize,
    /// Maximum number of a team's sandboxes that are not stopped.
    pub sandboxes_per_team: u32,
    /// Maximum number of event and command streams, half of them by one team.
    pub event_streams: usize,
    /// Maximum number of bytes of requests and responses in memory, half of them of one team; 64 KiB of each
    /// request and each response do not count.
    pub memory: usize,
    /// Maximum number of connections of clients.
    pub connections: usize,
    /// Maximum number of connections of one client address.
    pub connections_per_address: usize,
    /// Interval between checks of the key of an open stream.
    pub key_check: Duration,
    /// Time for which a sandbox that starts or stops belongs to the server that does it. It is renewed while the
    /// server works on a create; when the server is gone, another one finishes or undoes it after this time.
    pub lease: Duration,
    /// Time limit of a create, after which the reconciler ends it.
    pub create: Duration,
    /// Time after which a microVM without a record is destroyed.
    pub stray_grace: Duration,
    /// Retention of records of stopped and failed sandboxes.
    pub record_retention: Duration,
    /// Time limit of a database statement; half of it for waiting for a lock.
    pub database: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_body: 2 << 20,
            upload_body: 100 << 20,
            concurrent_requests: 512,
            concurrent_deletes: 64,
            long_commands: 256,
            sandboxes_per_team: 1000,
            event_streams: 256,
            memory: 96 << 20,
            connections: 2048,
            connections_per_address: 1024,
            key_check: Duration::from_secs(60),
            lease: Duration::from_secs(15),
            create: Duration::from_secs(180),
            stray_grace: Duration::from_secs(15 * 60),
            record_retention: Duration::from_secs(7 * 24 * 3600),
            database: Duration::from_secs(10),
        }
    }
}

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on for clients.
    pub listen: SocketAddr,
    /// URL of PostgreSQL, `postgres://…`; with a unix socket `postgres://user@%2Fdir/db`.
    pub database_url: String,
    /// URL of Redis, `redis://…` or `unix:///path`.
    pub redis_url: String,
    /// TLS files for the agents.
    pub agent_tls: AgentTls,
    /// Limits on requests.
    pub limits: Limits,
}
