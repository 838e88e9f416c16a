// SPDX-License-Identifier: Apache-2.0
//! Mutual TLS: the agent accepts only clients with a certificate of the private CA.

use std::sync::Arc;

use anyhow::Context;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use wrenn_os::tls_files::{certificates, key};

use crate::config::TlsFiles;

/// Creates the TLS configuration of the agent.
pub(crate) fn server(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).context("the CA's certificate is not usable")?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().context("the CA is not usable")?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, key(&files.key)?)
        .context("the agent's certificate does not fit its key")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
