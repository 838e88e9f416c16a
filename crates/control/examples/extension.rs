// SPDX-License-Identifier: Apache-2.0
//! A control plane of another program: Wrenn's, with one more route and one more worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{Extension, Json, extract::State};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_control::{
    AgentTls, Caller, Config, Fault, Permission, Server, Services, Settings, Worker, needs, sandboxes::Page,
};

/// Counts sandboxes and hosts.
#[derive(Default)]
pub(crate) struct Census {
    hosts: Arc<AtomicUsize>,
}

impl wrenn_control::Extension for Census {
    fn name(&self) -> &'static str {
        "census"
    }

    fn routes(&self) -> OpenApiRouter<Services> {
        let routes = OpenApiRouter::new().routes(needs(Permission::SandboxRead, routes!(census)));
        routes.layer(Extension(self.hosts.clone()))
    }

    fn workers(&self, services: &Services) -> Vec<Worker> {
        let (services, hosts) = (services.clone(), self.hosts.clone());
        vec![Worker::new("census", move || count_hosts(services.clone(), hosts.clone()))]
    }
}

/// Count the team's sandboxes, up to 100, and the hosts.
#[utoipa::path(get, path = "/census", operation_id = "getCensus", responses((status = 200, body = [usize; 2])))]
async fn census(
    State(services): State<Services>,
    Extension(hosts): Extension<Arc<AtomicUsize>>,
    caller: Caller,
) -> Result<Json<[usize; 2]>, Fault> {
    let page = Page { limit: Page::MAX, ..Page::default() };
    let sandboxes = services.sandboxes().list(&caller, page).await?.sandboxes.len();
    Ok(Json([sandboxes, hosts.load(Ordering::Relaxed)]))
}

async fn count_hosts(services: Services, hosts: Arc<AtomicUsize>) {
    while !services.shutdown().is_cancelled() {
        if let Ok(online) = services.hosts().online().await {
            let count = online.iter().map(|driver| driver.hosts as usize).sum();
            hosts.store(count, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let var = |name: &str| std::env::var(name).with_context(|| format!("set {name}"));
    let config = Config {
        settings: Settings { listen: var("LISTEN")?.parse()?, ..Settings::default() },
        database_url: var("DATABASE_URL")?,
        redis_url: var("REDIS_URL")?,
        agent_tls: AgentTls {
            ca: var("AGENT_CA")?.into(),
            cert: var("AGENT_CERT")?.into(),
            key: var("AGENT_KEY")?.into(),
        },
    };
    let server = Server::builder(config).with_extension(Census::default()).build().await?;
    server.run(CancellationToken::new()).await
}
