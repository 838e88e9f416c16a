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
    /// Requests in work at a time, half of them of one team; more are refused with 429.
    pub concurrent_requests: usize,
    /// Deletes in work at a time, half of them of one team; they take no places of other requests.
    pub concurrent_deletes: usize,
    /// Commands that may take more than a minute, half of them of one team; they take no places of other requests.
    pub long_commands: usize,
    /// Sandboxes of one team that are not stopped.
    pub sandboxes_per_team: u32,
    /// Event and command streams at a time, half of them of one team.
    pub event_streams: usize,
    /// Bytes of requests and answers that are held in memory at a time, half of them of one team; 64 KiB of each request
    /// and of each answer do not count.
    pub memory: usize,
    /// Connections of clients at a time.
    pub connections: usize,
    /// Connections of one client address at a time.
    pub connections_per_address: usize,
    /// How often the key of an open stream is looked at again.
    pub key_check: Duration,
    /// How long a create may take before the reconciler gives it up.
    pub create: Duration,
    /// How long a microVM without a record is left alone before it is destroyed.
    pub stray_grace: Duration,
    /// How long records of stopped and failed sandboxes are kept.
    pub record_retention: Duration,
    /// How long a statement may take in the database; half of it to wait for a lock.
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
