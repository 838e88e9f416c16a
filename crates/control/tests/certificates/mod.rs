// SPDX-License-Identifier: Apache-2.0
//! Certificates for mutual TLS between a control plane and agents of a test.

use std::{error::Error, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use wrenn_control::AgentTls;

/// Creates the certificates of both sides; those of the control plane are written to `dir`.
pub(crate) fn certificates(dir: &Path) -> Result<(AgentTls, ServerConfig), Box<dyn Error + Send + Sync>> {
    let mut of_ca = CertificateParams::default();
    of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(of_ca, KeyPair::generate()?)?;
    let leaf = |names: Vec<String>| -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        Ok((CertificateParams::new(names)?.signed_by(&key, &ca)?, key))
    };
    let (agent, agent_key) = leaf(vec!["agent.wrenn".into()])?;
    let (control, control_key) = leaf(Vec::new())?;
    let files = AgentTls::new(dir.join("ca"), dir.join("cert"), dir.join("key"));
    std::fs::write(&files.ca, ca.pem())?;
    std::fs::write(&files.cert, control.pem())?;
    std::fs::write(&files.key, control_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec()))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        .with_single_cert(
            vec![agent.der().clone()],
            PrivateKeyDer::Pkcs8(agent_key.serialize_der().into()),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((files, config))
}
