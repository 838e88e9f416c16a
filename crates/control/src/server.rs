// SPDX-License-Identifier: Apache-2.0
//! Server: built from its configuration and extensions, then run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use wrenn_os::open_files;

use crate::{
    config::Config,
    db,
    extension::Extension,
    routes::{HttpService, Routes},
    services::Services,
    serving, stall,
    state::State,
    workers::{self, Worker},
};

/// Time limit for receiving the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Idle time after which a connection without requests is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A server of the control plane.
pub struct Server {
    listen: SocketAddr,
    bounds: serving::Bounds,
    services: Services,
    routes: Routes,
    service: HttpService,
    workers: Vec<Worker>,
}

/// Builder of a [`Server`].
pub struct ServerBuilder {
    config: Config,
    extensions: Vec<Box<dyn Extension>>,
}

impl Server {
    /// Begins to build a server.
    pub const fn builder(config: Config) -> ServerBuilder {
        ServerBuilder { config, extensions: Vec::new() }
    }

    /// The OpenAPI document of the server, which it also serves.
    pub const fn document(&self) -> &OpenApi {
        self.routes.document()
    }

    /// The HTTP service of the server, for callers that have connections of their own.
    pub fn router(&self) -> HttpService {
        self.service.clone()
    }

    /// The services of the server.
    pub const fn services(&self) -> &Services {
        &self.services
    }

    /// Serves the API until `shutdown` is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let address = self.listen;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}: choose another address with server.listen")
        })?;
        let stop = self.services.shutdown().clone();
        let stopping = tokio::spawn({
            let stop = stop.clone();
            async move {
                shutdown.cancelled().await;
                stop.cancel();
            }
        });
        let workers = workers::start(self.workers, &stop);
        tracing::info!(%address, "the control plane listens");
        serving::serve(listener, self.service, self.bounds, stop).await;
        drop(workers);
        stopping.abort();
        Ok(())
    }
}

impl ServerBuilder {
    /// Adds an extension.
    #[must_use]
    pub fn with_extension(mut self, extension: impl Extension) -> Self {
        self.extensions.push(Box::new(extension));
        self
    }

    /// Migrates the database and builds the server.
    pub async fn build(self) -> anyhow::Result<Server> {
        let Self { config, extensions } = self;
        let routes = routes(&extensions)?;
        // Each connection of a client needs one, each stream another.
        if let Err(error) = open_files::allow_all() {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
        db::migrate(&config.database_url).await?;
        let state = Arc::new(State::new(&config)?);
        db::fleet::raise(&state.db, Duration::ZERO).await.context("the database does not answer")?;
        let services = Services::new(state.clone());
        let mut workers = workers::of_server(&state);
        workers.extend(extensions.iter().flat_map(|extension| extension.workers(&services)));
        let authenticators = extensions.iter().flat_map(|extension| extension.authenticators(&services));
        let service = routes.service(&services, authenticators.collect());
        let bounds = bounds(&config);
        Ok(Server { listen: config.settings.listen, bounds, services, routes, service, workers })
    }
}

/// Returns the OpenAPI document of a server with these extensions, without building it.
pub fn document(extensions: &[Box<dyn Extension>]) -> anyhow::Result<OpenApi> {
    Ok(routes(extensions)?.document().clone())
}

fn routes(extensions: &[Box<dyn Extension>]) -> anyhow::Result<Routes> {
    Routes::new(extensions.iter().map(|extension| (extension.name(), extension.routes())).collect())
}

fn bounds(config: &Config) -> serving::Bounds {
    serving::Bounds {
        connections: config.settings.limits.connections,
        per_address: config.settings.limits.connections_per_address,
        head: HEAD,
        idle: IDLE,
        stall: stall::STILL,
        linger: serving::LINGER,
    }
}
