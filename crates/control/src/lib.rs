//! The control plane as a library: the REST API over PostgreSQL, Redis and the host agents.

mod config;

pub use config::{AgentTls, Config, Limits};

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;
use wrenn_api::HostId;

/// Runs migrations, then serves the API until `shutdown` is cancelled.
pub async fn serve(_config: Config, _shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::bail!("unfinished")
}

/// Brings the database to this version's schema; safe when several do so at once.
pub async fn migrate(_database_url: &str) -> anyhow::Result<()> {
    anyhow::bail!("unfinished")
}

/// Makes sure that a database has one team, and gives a new API key of it unless `present_key` is already one.
pub async fn ensure_api_key(_database_url: &str, _present_key: Option<&str>) -> anyhow::Result<String> {
    anyhow::bail!("unfinished")
}

/// Makes sure that the host is registered with this address.
pub async fn ensure_host(_database_url: &str, _host: HostId, _address: SocketAddr) -> anyhow::Result<()> {
    anyhow::bail!("unfinished")
}

/// The OpenAPI 3.1 document in YAML.
pub fn openapi_yaml() -> String {
    String::new()
}
