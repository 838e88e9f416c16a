// SPDX-License-Identifier: Apache-2.0
//! Configuration of a control-plane server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use wrenn_settings::{address, bytes, group, number, path, seconds, settings, text};

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

settings! {
    /// What can be configured of a server: the keys `server.*`.
    #[derive(Debug, Clone)]
    pub struct Settings {
        /// Address of the API. It speaks plain HTTP: on any address but a loopback one, put a reverse proxy with TLS
        /// before it.
        pub listen: SocketAddr = address("server.listen").or(SocketAddr::from(([127, 0, 0, 1], 9725))),
        /// Limits on requests.
        pub limits: Limits = group(),
        /// Proxy to the ports of sandboxes.
        pub proxy: ProxySettings = group(),
    }
}

settings! {
    /// Proxy to the ports of sandboxes.
    #[derive(Debug, Clone)]
    pub struct ProxySettings {
        /// Address of the proxy to the ports of sandboxes. It speaks plain HTTP unless it has a certificate.
        pub listen: SocketAddr = address("server.proxy_listen").or(SocketAddr::from(([127, 0, 0, 1], 9727))),
        /// URL of a port as users reach it, with `{port}` and `{id}` in the first label of the host, such as
        /// `https://{port}-{id}.example.com`.
        pub url: Option<String> =
            text("server.proxy_url").or_none("`http://{port}-{id}.localhost:` and the port of `server.proxy_listen`"),
        /// PEM file of the proxy's certificate for `*.DOMAIN` with its chain. It is read again when it changes.
        pub tls_cert: Option<PathBuf> = path("server.proxy_tls_cert").or_none("none, and no TLS"),
        /// PEM file of the private key of that certificate.
        pub tls_key: Option<PathBuf> = path("server.proxy_tls_key").or_none("none, and no TLS"),
        /// Addresses and networks of reverse proxies, separated by commas, whose `X-Forwarded-*` headers are believed.
        pub trusted: Option<String> = text("server.proxy_trusted").or_none("none"),
        /// Maximum number of concurrent requests to ports, half of them to those of one team; others get 429.
        pub requests: usize = number("server.proxy_requests", 2..=1 << 20).or(2048),
        /// Maximum number of concurrent requests to ports of one sandbox. It has at most twice as many connections to its
        /// ports, idle ones included.
        pub requests_per_sandbox: usize = number("server.proxy_requests_per_sandbox", 1..=1 << 20).or(256),
        /// Maximum number of connections of the proxy's clients.
        pub connections: usize = number("server.proxy_connections", 16..=1 << 20).or(4096),
        /// Maximum number of connections of one address to the proxy.
        pub connections_per_address: usize = number("server.proxy_connections_per_address", 1..=1 << 20).or(2048),
        /// Time after which a request, a stream or an upgraded connection to a port is ended if nothing moves.
        pub idle: Duration = seconds("server.proxy_idle_sec", 1..=86_400).or(Duration::from_secs(620)),
    }
}

impl ProxySettings {
    /// Whether it has a certificate.
    pub(crate) const fn encrypts(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// URL of a port as users reach it, with `{port}` and `{id}`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.encrypts() { "https" } else { "http" };
        let own = || format!("{scheme}://{{port}}-{{id}}.localhost:{}", self.listen.port());
        self.url.clone().unwrap_or_else(own)
    }
}

settings! {
    /// Limits on requests.
    #[derive(Debug, Clone)]
    pub struct Limits {
        /// Maximum number of concurrent requests, half of them by one team; others get 429.
        pub concurrent_requests: usize = number("server.concurrent_requests", 1..=65_536).or(512),
        /// Maximum number of concurrent deletes, half of them by one team; they do not count as other requests.
        pub concurrent_deletes: usize = number("server.concurrent_deletes", 1..=65_536).or(64),
        /// Maximum number of commands that may take more than a minute, half of them by one team; they do not count
        /// as other requests.
        pub long_commands: usize = number("server.long_commands", 1..=65_536).or(256),
        /// Maximum number of event and command streams, half of them by one team.
        pub event_streams: usize = number("server.event_streams", 1..=65_536).or(256),
        /// Maximum size of requests and responses in memory, half of it of one team; 64 KiB of each request and each
        /// response do not count.
        pub memory: usize = bytes("server.memory", 8 << 20..=1 << 31).or(96 << 20),
        /// Maximum number of connections of clients.
        pub connections: usize = number("server.connections", 16..=1 << 20).or(2048),
        /// Maximum number of connections of one client address.
        pub connections_per_address: usize = number("server.connections_per_address", 1..=1 << 20).or(1024),
        /// Interval between checks of the API key of an open stream.
        pub key_check: Duration = seconds("server.key_check_sec", 1..=3600).or(Duration::from_secs(60)),
        /// Maximum body of a JSON request.
        pub json_body: usize = bytes("server.json_body", 1024..=1 << 30).or(2 << 20),
        /// Maximum size of a file in a form (`files/write`).
        pub upload_body: usize = bytes("server.upload_body", 1024..=1 << 40).or(100 << 20),
        /// Maximum number of a team's sandboxes that have something on a host: all that are not stopped and have not failed
        /// before they ran.
        pub sandboxes_per_team: u32 = number("server.sandboxes_per_team", 1..=1_000_000).or(1000),
        /// Maximum number of a team's named snapshots.
        pub snapshots_per_team: u32 = number("server.snapshots_per_team", 1..=1_000_000).or(100),
        /// Time limit of a create, after which the reconciler ends it.
        pub create: Duration = seconds("server.create_timeout_sec", 1..=3600).or(Duration::from_secs(180)),
        /// Time limit of a pause or a named snapshot, in which the memory of the sandbox is written to the host's disk.
        pub pause: Duration = seconds("server.pause_timeout_sec", 1..=3600).or(Duration::from_secs(300)),
        /// Time for which a sandbox that starts or stops belongs to the server that does it. It is renewed while the
        /// server works on a create; when the server is gone, another one finishes or undoes it after this time.
        pub lease: Duration = seconds("server.lease_sec", 1..=3600).or(Duration::from_secs(15)),
        /// Time for which a sandbox that runs on a host but is not in the database is left alone before it is
        /// destroyed.
        pub stray_grace: Duration =
            seconds("server.stray_grace_sec", 1..=31_536_000).or(Duration::from_secs(15 * 60)),
        /// Time for which records of stopped sandboxes are kept; sandboxes that failed before they ran are deleted at the
        /// same age.
        pub record_retention: Duration =
            seconds("server.record_retention_sec", 60..=3_153_600_000).or(Duration::from_secs(7 * 24 * 3600)),
        /// Time limit of a statement in PostgreSQL; half of it for waiting for a lock.
        pub database: Duration = seconds("server.database_timeout_sec", 1..=3600).or(Duration::from_secs(10)),
    }
}

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// What can be configured by keys.
    pub settings: Settings,
    /// URL of PostgreSQL, `postgres://…`; with a unix socket `postgres://user@%2Fdir/db`.
    pub database_url: String,
    /// URL of Redis, `redis://…` or `unix:///path`.
    pub redis_url: String,
    /// TLS files for the agents.
    pub agent_tls: AgentTls,
}
