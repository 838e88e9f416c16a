// SPDX-License-Identifier: Apache-2.0
//! Mutual TLS: the agent accepts only clients with a certificate of the private CA.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::config::TlsFiles;

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || format!("{} is not a readable certificate", path.display());
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).with_context(read)?.collect();
    certificates.with_context(read)
}

/// Creates the TLS configuration of the agent.
pub(crate) fn server(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).context("the CA's certificate is not usable")?;
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("{} is not a readable key", files.key.display()))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().context("the CA is not usable")?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, key)
        .context("the agent's certificate does not fit its key")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
