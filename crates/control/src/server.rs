// SPDX-License-Identifier: Apache-2.0
//! Server: built from its configuration and extensions, then run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use utoipa::openapi::OpenApi;
use wrenn_os::open_files;

use crate::{
    config::{Config, ProxySettings},
    db,
    extension::Extension,
    hooks::AllHooks,
    proxy::{Proxy, tls::Certificate},
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
    proxy: Proxy,
    proxy_settings: ProxySettings,
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
        let listener = bind(address, "server.listen").await?;
        let (certificate, tls) = match Certificate::of(&self.proxy_settings)? {
            Some(certificate) => (Some(certificate.clone()), Some(certificate.acceptor()?)),
            None => (None, None),
        };
        let of_proxy = bind(self.proxy_settings.listen, "server.proxy_listen").await?;
        let stop = self.services.shutdown().clone();
        let stopping = tokio::spawn({
            let stop = stop.clone();
            async move {
                shutdown.cancelled().await;
                stop.cancel();
            }
        });
        let workers = workers::start(self.workers, &self.services.state().db, &stop);
        let following =
            certificate.map(|certificate| AbortOnDropHandle::new(tokio::spawn(certificate.follow())));
        tracing::info!(%address, proxy = %self.proxy_settings.listen, "the control plane listens");
        let proxy_bounds = proxy_bounds(&self.proxy_settings);
        let proxying = serving::serve(of_proxy, self.proxy, proxy_bounds, tls, stop.clone());
        tokio::join!(serving::serve(listener, self.service, self.bounds, None, stop), proxying);
        drop((workers, following));
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

    /// Builds the server and serves until SIGTERM or SIGINT, for programs that do nothing else.
    pub async fn run(self) -> anyhow::Result<()> {
        let shutdown = CancellationToken::new();
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let stop = shutdown.clone();
        let _stopping = AbortOnDropHandle::new(tokio::spawn(async move {
            let [terminate, interrupt] = &mut signals;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }));
        self.build().await?.run(shutdown).await
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
        for extension in &extensions {
            if let Some(migrations) = extension.migrations() {
                db::extensions::migrate(&config.database_url, extension.name(), &migrations).await?;
            }
        }
        let hooks = extensions.iter().filter_map(|extension| Some((extension.name(), extension.hooks()?)));
        let state = State { hooks: AllHooks::new(hooks.collect()), ..State::new(&config)? };
        let state = Arc::new(state);
        db::fleet::raise(&state.db, Duration::ZERO).await.context("the database does not answer")?;
        let services = Services::new(state.clone());
        let mut workers = workers::of_server(&state);
        workers.extend(extensions.iter().flat_map(|extension| extension.workers(&services)));
        let authenticators = extensions.iter().flat_map(|extension| extension.authenticators(&services));
        let service = routes.service(&services, authenticators.collect());
        let (bounds, proxy_settings) = (bounds(&config), config.settings.proxy);
        let proxy = Proxy::new(&services, &proxy_settings)?;
        let listen = config.settings.listen;
        Ok(Server { listen, bounds, proxy, proxy_settings, services, routes, service, workers })
    }
}

/// Returns the OpenAPI document of a server with these extensions, without building it.
pub fn document(extensions: &[Box<dyn Extension>]) -> anyhow::Result<OpenApi> {
    Ok(routes(extensions)?.document().clone())
}

fn routes(extensions: &[Box<dyn Extension>]) -> anyhow::Result<Routes> {
    Routes::new(extensions.iter().map(|extension| (extension.name(), extension.routes())).collect())
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}: choose another address with {key}"))
}

fn proxy_bounds(settings: &ProxySettings) -> serving::Bounds {
    serving::Bounds {
        connections: settings.connections,
        per_address: settings.connections_per_address,
        head: HEAD,
        idle: IDLE,
        stall: stall::STILL,
        linger: serving::LINGER,
    }
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
