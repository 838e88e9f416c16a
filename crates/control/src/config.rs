// SPDX-License-Identifier: Apache-2.0
//! Configuration of a control-plane server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use wrenn_settings::{address, bytes, choice, fixed, group, number, path, seconds, settings, text};

use crate::networks::Networks;

/// PEM files of the control plane's mutual TLS with the agents.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentTls {
    /// The private CA, which is the only one that both sides trust.
    pub ca: PathBuf,
    /// Certificate of the control plane.
    pub cert: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

impl AgentTls {
    /// Creates it from the paths of the CA, of the certificate, and of its private key.
    pub const fn new(ca: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        Self { ca, cert, key }
    }
}

settings! {
    /// What can be configured of a server: the keys `server.*`.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct Settings {
        /// Address of the API. It speaks plain HTTP: on any address but a loopback one, put a reverse proxy with TLS
        /// before it.
        pub listen: SocketAddr = address("server.listen").or(SocketAddr::from(([127, 0, 0, 1], 9725))),
        /// Limits on requests.
        pub limits: Limits = group(),
        /// Proxy to the ports of sandboxes.
        pub proxy: ProxySettings = group(),
        /// Builds of templates.
        pub builds: BuildSettings = group(),
        /// Templates on several hosts.
        pub templates: TemplateSettings = group(),
        /// Mail to users.
        pub mail: MailSettings = group(),
        /// Channels, to which events are delivered.
        pub channels: ChannelSettings = group(),
        /// Sign-in by accounts at providers.
        pub oauth: OAuthSettings = group(),
    }
}

settings! {
    /// Proxy to the ports of sandboxes.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
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
        /// Addresses and networks of reverse proxies, separated by commas, whose `X-Forwarded-*` headers are believed, by the API,
        /// too.
        pub trusted: Option<String> = text("server.proxy_trusted").or_none("none"),
        /// Maximum number of concurrent requests to ports; others get 429. Teams share them fairly: one alone gets half, two a third each.
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

    /// Reverse proxies whose `X-Forwarded-*` headers are believed. Fails if one of them is no address and no network.
    pub(crate) fn trusted(&self) -> anyhow::Result<Networks> {
        let networks = Networks::parse(self.trusted.as_deref().unwrap_or_default());
        networks
            .map_err(|part| anyhow::anyhow!("server.proxy_trusted: {part:?} is no address and no network"))
    }

    /// URL of a port as users reach it, with `{port}` and `{id}`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.encrypts() { "https" } else { "http" };
        let own = || format!("{scheme}://{{port}}-{{id}}.localhost:{}", self.listen.port());
        self.url.clone().unwrap_or_else(own)
    }
}

settings! {
    /// Builds of templates.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct BuildSettings {
        /// Number of builds that the server works on at a time; with 0 it leaves them to other servers.
        pub workers: usize = number("server.build_workers", 0..=16).or(2),
        /// Time for which the sandbox of a failed build is kept after its last use, so that one can look into it.
        pub keep: Duration = seconds("server.build_keep_secs", 30..=86_400).or(Duration::from_secs(300)),
        /// Time limit for what a recipe starts to pass its check.
        pub start: Duration = seconds("server.build_start_secs", 1..=3600).or(Duration::from_secs(300)),
        /// Days for which results of steps are kept that no build uses, imported images that nobody uses, and builds that have
        /// ended with their logs.
        pub cache_days: u32 = number("server.build_cache_days", 1..=365).or(14),
        /// Directory of the files that are uploaded for builds. All servers of a fleet share it.
        pub context_dir: Option<PathBuf> =
            path("server.build_context_dir").or_none("`contexts` in the state directory"),
        /// Time without output after which the log of a build says that the command of a step runs.
        pub silence: Duration = fixed(Duration::from_secs(120)),
    }
}

settings! {
    /// Templates on several hosts.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct TemplateSettings {
        /// Store of the templates that teams build, so that they do not depend on one host: `file:///DIRECTORY`, a directory that all
        /// servers share, or `s3://BUCKET/PREFIX`. It has the memory and the access tokens of snapshots: let nobody else read it.
        pub store: Option<String> =
            text("server.template_store").or_none("none: hosts get templates from each other only"),
        /// URL of the service that has the bucket, such as `https://s3.example.com`.
        pub store_endpoint: Option<String> =
            text("server.template_store_endpoint").or_none("Amazon S3 in the region"),
        /// Region of the bucket.
        pub store_region: String = text("server.template_store_region").or("us-east-1".to_owned()),
        /// Access key id of the account that may list, read, write and delete in the bucket.
        pub store_access_key: Option<String> =
            text("server.template_store_access_key").or_none("none; a bucket needs one"),
        /// File with the secret access key of that account.
        pub store_secret_file: Option<PathBuf> =
            path("server.template_store_secret_file").or_none("none; a bucket needs one"),
        /// Maximum size in MiB of the templates that a host has got from others. Those that were not used for the longest time are
        /// removed first, but not before the store or another host has them.
        pub cache_mb: u64 = number("server.template_cache_mb", 1..=1 << 30).or(51_200),
        /// Time for which a create waits until a host has got the template. The host goes on after that.
        pub fetch: Duration = seconds("server.template_fetch_secs", 1..=7200).or(Duration::from_secs(600)),
    }
}

settings! {
    /// Channels, to which events are delivered.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct ChannelSettings {
        /// File with the keys that encrypt the configurations of channels: a number and 64 hexadecimal digits on each line. The first one
        /// encrypts, all decrypt. All servers of a fleet have the same.
        pub key_file: Option<PathBuf> =
            path("server.channels_key_file").or_none("`channels.key` in the state directory, if it is there; else there are no channels"),
        /// Addresses and networks, separated by commas, that channels may lead to although they are in no public network.
        pub allow: Option<String> = text("server.channels_allow").or_none("none"),
        /// Time for which the delivery of an event is tried.
        pub retry: Duration = seconds("server.channels_retry_sec", 60..=604_800).or(Duration::from_secs(86_400)),
    }
}

/// Encryption of the connection to the SMTP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmtpTls {
    /// It begins in clear, and goes on only with TLS.
    Starttls,
    /// TLS from the beginning.
    Tls,
    /// None: for a server on this machine.
    None,
}

settings! {
    /// Mail to users.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct MailSettings {
        /// URL at which users reach Wrenn, such as `https://wrenn.example.com`: links in mails lead there. It may have a path, which a
        /// reverse proxy takes away before it passes requests on.
        pub public_url: Option<String> = text("server.public_url").or_none("none; mail needs one"),
        /// Host of the SMTP server that delivers mail. Without it nobody can sign up by mail or reset a password: the operator makes
        /// accounts with `wrenn user create`.
        pub host: Option<String> = text("server.smtp_host").or_none("none, and no mail"),
        /// Port of the SMTP server.
        pub port: u16 = number("server.smtp_port", 1..=65_535).or(587),
        /// Encryption of the connection to the SMTP server. Its certificate must be of an authority that the system trusts, or of those in
        /// `server.smtp_ca_file`.
        pub tls: SmtpTls = choice("server.smtp_tls", &[
            ("starttls", SmtpTls::Starttls),
            ("tls", SmtpTls::Tls),
            ("none", SmtpTls::None),
        ]).or(SmtpTls::Starttls),
        /// PEM file of the authorities of which one has signed the certificate of the SMTP server, if that is a private one. No other is
        /// trusted then.
        pub ca_file: Option<PathBuf> = path("server.smtp_ca_file").or_none("none: those that the system trusts"),
        /// Name of the account at the SMTP server.
        pub user: Option<String> = text("server.smtp_user").or_none("none, and no account"),
        /// File with the password of that account.
        pub password_file: Option<PathBuf> = path("server.smtp_password_file").or_none("none, and no account"),
        /// Sender of mails, such as `Wrenn <wrenn@example.com>`.
        pub from: Option<String> = text("server.smtp_from").or_none("`noreply@` and the host of `server.public_url`"),
        /// Maximum number of mails in an hour that people without an account cause: sign-ups and reset passwords.
        pub mails_per_hour: u32 = number("server.mails_per_hour", 1..=1_000_000).or(1000),
    }
}

settings! {
    /// Sign-in by accounts at providers.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct OAuthSettings {
        /// Client id of an OAuth app at GitHub, whose callback is `/auth/oauth/github/callback` under `server.public_url`. With it users
        /// sign up and sign in by their accounts at GitHub.
        pub github_client_id: Option<String> =
            text("server.github_client_id").or_none("none, and no sign-in by GitHub"),
        /// File with the client secret of that app.
        pub github_client_secret_file: Option<PathBuf> =
            path("server.github_client_secret_file").or_none("none, and no sign-in by GitHub"),
        /// URL of GitHub, or of a GitHub Enterprise server.
        pub github_url: String = text("server.github_url").or("https://github.com".to_owned()),
        /// URL of the API of GitHub; that of a GitHub Enterprise server ends with `/api/v3`.
        pub github_api_url: String = text("server.github_api_url").or("https://api.github.com".to_owned()),
    }
}

impl BuildSettings {
    /// Directory of the files that are uploaded for builds.
    pub(crate) fn contexts(&self) -> PathBuf {
        self.context_dir.clone().unwrap_or_else(|| PathBuf::from("/var/lib/wrenn/contexts"))
    }
}

settings! {
    /// Limits on requests.
    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub struct Limits {
        /// Maximum number of concurrent requests; others get 429. Teams share them, as all other numbers of requests at a time, fairly:
        /// one team alone gets half, two get a third each, and some are always left for the next team.
        pub concurrent_requests: usize = number("server.concurrent_requests", 1..=65_536).or(512),
        /// Maximum number of concurrent deletes, which teams share; they do not count as other requests.
        pub concurrent_deletes: usize = number("server.concurrent_deletes", 1..=65_536).or(64),
        /// Maximum number of commands that may take more than a minute, of creates from images, and of uploads of images, half of them
        /// by one team; they do not count as other requests.
        pub long_commands: usize = number("server.long_commands", 1..=65_536).or(256),
        /// Maximum number of event and command streams, which teams share.
        pub event_streams: usize = number("server.event_streams", 1..=65_536).or(256),
        /// Maximum size of requests and responses in memory, half of it of one team; 64 KiB of each request and each
        /// response do not count.
        pub memory: usize = bytes("server.memory", 8 << 20..=1 << 31).or(96 << 20),
        /// Maximum number of connections of clients.
        pub connections: usize = number("server.connections", 16..=1 << 20).or(2048),
        /// Maximum number of connections of one client address.
        pub connections_per_address: usize = number("server.connections_per_address", 1..=1 << 20).or(1024),
        /// Interval between checks of the API key or session of an open stream.
        pub key_check: Duration = seconds("server.key_check_sec", 1..=3600).or(Duration::from_secs(60)),
        /// Maximum body of a JSON request.
        pub json_body: usize = bytes("server.json_body", 1024..=1 << 30).or(2 << 20),
        /// Maximum size of a file in a form (`files/write`).
        pub upload_body: usize = bytes("server.upload_body", 1024..=1 << 40).or(100 << 20),
        /// Maximum number of a team's sandboxes that have something on a host: all that are not deleted and have not failed
        /// before they ran. This and the other limits of teams are quotas, which administrators can set for a team.
        pub sandboxes_per_team: u32 = number("server.sandboxes_per_team", 1..=1_000_000).or(1000),
        /// Maximum number of a team's sandboxes that run.
        pub running_per_team: u32 = number("server.running_per_team", 1..=1_000_000).or(1000),
        /// Maximum number of a team's sandboxes that are paused, or failed after they ran. What is idle is paused all the same.
        pub paused_per_team: u32 = number("server.paused_per_team", 1..=1_000_000).or(1000),
        /// Maximum number of virtual CPUs of a team's sandboxes that run.
        pub vcpus_per_team: u32 = number("server.vcpus_per_team", 1..=1_000_000).or(4096),
        /// Maximum memory in MiB of a team's sandboxes that run.
        pub memory_per_team_mb: u32 = number("server.memory_per_team_mb", 128..=1 << 30).or(4 << 20),
        /// Maximum size in MiB of the disks of all sandboxes of a team.
        pub disk_per_team_mb: u32 = number("server.disk_per_team_mb", 512..=1 << 30).or(16 << 20),
        /// Maximum number of a team's named snapshots.
        pub snapshots_per_team: u32 = number("server.snapshots_per_team", 1..=1_000_000).or(100),
        /// Maximum number of templates that a team has built or builds.
        pub templates_per_team: u32 = number("server.templates_per_team", 1..=1_000_000).or(1000),
        /// Maximum number of a team's builds that have not ended.
        pub builds_per_team: u32 = number("server.builds_per_team", 1..=1_000_000).or(100),
        /// Maximum number of sandboxes that a team creates in a minute.
        pub creates_per_minute: u32 = number("server.creates_per_minute", 1..=1_000_000).or(6000),
        /// Time limit of a create, after which the reconciler ends it.
        pub create: Duration = seconds("server.create_timeout_sec", 1..=3600).or(Duration::from_secs(180)),
        /// Time limit for a host to import an image of a registry, for which a create or a build waits. The host goes on by itself,
        /// and has limits of its own.
        pub image_import: Duration =
            seconds("server.image_import_secs", 10..=7200).or(Duration::from_secs(1800)),
        /// Maximum size in MiB of the archive of an image that is uploaded. Hosts take at most what `agent.image_max_mb` lets an image
        /// have.
        pub image_upload_mb: u64 = number("server.image_upload_max_mb", 1..=131_072).or(10_240),
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
        /// Days for which it is kept what paused and deleted sandboxes have used.
        pub metrics_keep_days: u32 = number("server.metrics_keep_days", 1..=3650).or(30),
        /// Days for which records of the audit log are kept.
        pub audit_keep_days: u32 = number("server.audit_keep_days", 1..=36_500).or(400),
        /// Time limit of a statement in PostgreSQL; half of it for waiting for a lock.
        pub database: Duration = seconds("server.database_timeout_sec", 1..=3600).or(Duration::from_secs(10)),
    }
}

/// The configuration of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
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

impl Config {
    /// Creates the configuration of a server from its settings, the URLs of PostgreSQL and Redis, and the TLS files for the agents.
    pub const fn new(
        settings: Settings,
        database_url: String,
        redis_url: String,
        agent_tls: AgentTls,
    ) -> Self {
        Self { settings, database_url, redis_url, agent_tls }
    }
}
