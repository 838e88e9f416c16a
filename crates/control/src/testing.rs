// SPDX-License-Identifier: Apache-2.0
//! Test support: a server's state without PostgreSQL and Redis, and hosts over the real RPC with mutual TLS.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use connectrpc::Router;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpListener;
use wrenn_api::{ApiKeyId, TeamId};

use crate::{
    agents::Agents,
    caller::{Caller, Permissions, Principal},
    config::{AgentTls, BuildSettings, Limits, Settings},
    event_store::EventStore,
    state::{App, State},
};

/// Creates the certificates of both sides; those of the control plane are written to `dir`.
fn certificates(dir: &Path) -> (AgentTls, ServerConfig) {
    let mut of_ca = CertificateParams::default();
    of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(of_ca, KeyPair::generate().unwrap()).unwrap();
    let leaf = |names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap(), key)
    };
    let (agent, agent_key) = leaf(vec!["agent.wrenn".into()]);
    let (control, control_key) = leaf(Vec::new());
    let files = AgentTls { ca: dir.join("ca"), cert: dir.join("cert"), key: dir.join("key") };
    std::fs::write(&files.ca, ca.pem()).unwrap();
    std::fs::write(&files.cert, control.pem()).unwrap();
    std::fs::write(&files.key, control_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        .with_single_cert(vec![agent.der().clone()], PrivateKeyDer::Pkcs8(agent_key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (files, config)
}

fn no_database() -> sqlx::PgPool {
    let options = sqlx::postgres::PgPoolOptions::new().acquire_timeout(std::time::Duration::from_millis(50));
    options.connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap()
}

/// A server's state, and the address of a host that `host` implements.
pub(crate) async fn app(limits: Limits, host: Router) -> (App, String) {
    let dir = tempfile::tempdir().unwrap();
    let (files, tls) = certificates(dir.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = axum::Router::new().fallback_service(host.into_axum_service());
    tokio::spawn(connectrpc::axum::serve_tls(listener, router, Arc::new(tls)).into_future());
    let events = EventStore::new("redis://127.0.0.1:1").unwrap();
    let agents = Agents::new(&files).unwrap();
    let builds = BuildSettings { context_dir: Some(dir.path().join("contexts")), ..BuildSettings::default() };
    let settings = Settings { limits, builds, ..Settings::default() };
    let state = State::of((no_database(), no_database()), events, agents, &settings).unwrap();
    (Arc::new(state), address)
}

/// A caller of a team who may do everything.
pub(crate) fn caller(team: TeamId) -> Caller {
    Caller::new(Principal::Key(ApiKeyId::new()), team, Permissions::ALL)
}

/// Source files of this crate, by their path below `src`.
pub(crate) fn sources() -> Vec<(String, String)> {
    let (root, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    let mut directories = vec![root.clone()];
    while let Some(dir) = directories.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(found.len() > 20, "{} files", found.len());
    found
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
