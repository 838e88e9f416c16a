//! What a control-plane server needs to know to run.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// PEM files with which the control plane shows agents who it is.
#[derive(Debug, Clone)]
pub struct AgentTls {
    /// The private CA that both sides trust, and nothing else.
    pub ca: PathBuf,
    /// The control plane's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Bounds on what clients may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Body of a JSON request, in bytes.
    pub json_body: usize,
    /// Body of an upload, in bytes.
    pub upload_body: usize,
    /// Requests in work at a time; more are refused with 429.
    pub concurrent_requests: usize,
    /// Sandboxes of one team that are not stopped.
    pub sandboxes_per_team: u32,
    /// Event streams of one server.
    pub event_streams: usize,
    /// How long a create may take before the reconciler gives it up.
    pub create: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_body: 2 << 20,
            upload_body: 100 << 20,
            concurrent_requests: 512,
            sandboxes_per_team: 1000,
            event_streams: 256,
            create: Duration::from_secs(180),
        }
    }
}

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// PostgreSQL, as `postgres://…`; unix sockets as `postgres://user@%2Fdir/db`.
    pub database_url: String,
    /// Redis, as `redis://…` or `unix:///path`.
    pub redis_url: String,
    /// Mutual TLS to the agents.
    pub agent_tls: AgentTls,
    /// Bounds.
    pub limits: Limits,
}
