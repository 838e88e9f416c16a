// SPDX-License-Identifier: Apache-2.0
//! TLS of the proxy by a given certificate, which is read again when its file changes.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use wrenn_os::tls_files;

use crate::config::ProxySettings;

/// Interval between looks at the files.
const LOOK: Duration = Duration::from_secs(10);

/// A certificate with its key, from files that may be renewed.
#[derive(Debug)]
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the certificate of the proxy, if it has one.
    pub(crate) fn of(settings: &ProxySettings) -> anyhow::Result<Option<Arc<Self>>> {
        match (&settings.tls_cert, &settings.tls_key) {
            (Some(cert), Some(key)) => Self::read(cert.clone(), key.clone()).map(Some),
            (None, None) => Ok(None),
            _ => anyhow::bail!("set both server.proxy_tls_cert and server.proxy_tls_key, or none of them"),
        }
    }

    /// Reads the files.
    fn read(cert: PathBuf, key: PathBuf) -> anyhow::Result<Arc<Self>> {
        let current = RwLock::new(load(&cert, &key)?);
        Ok(Arc::new(Self { cert, key, current }))
    }

    /// Returns what accepts connections with it.
    pub(crate) fn acceptor(self: &Arc<Self>) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads the files again whenever they change. Never ends.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut known = self.changed().await;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.changed().await;
            if now == known {
                continue;
            }
            known = now;
            self.renew().await;
        }
    }

    async fn renew(self: &Arc<Self>) {
        let own = self.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&own.cert, &own.key)).await;
        match loaded.map_err(anyhow::Error::from).and_then(|loaded| loaded) {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                tracing::info!("the proxy has a new certificate");
            }
            // Both files change one after the other.
            Err(error) => tracing::warn!("the proxy keeps its certificate: {error:#}"),
        }
    }

    /// Times at which the files were last changed.
    async fn changed(&self) -> [Option<SystemTime>; 2] {
        let time = async |path: &PathBuf| tokio::fs::metadata(path).await.ok()?.modified().ok();
        [time(&self.cert).await, time(&self.key).await]
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(cert: &std::path::Path, key: &std::path::Path) -> anyhow::Result<Arc<CertifiedKey>> {
    let (chain, key) = (tls_files::certificates(cert)?, tls_files::key(key)?);
    let loaded = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    loaded
        .map(Arc::new)
        .context("the proxy's certificate does not fit its key (server.proxy_tls_cert, server.proxy_tls_key)")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[tokio::test]
    async fn a_renewed_certificate_is_taken_and_a_wrong_one_is_not() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let write = || -> anyhow::Result<Vec<u8>> {
            let pair = KeyPair::generate()?;
            let made = CertificateParams::new(vec!["*.localhost".to_owned()])?.self_signed(&pair)?;
            std::fs::write(&cert, made.pem())?;
            std::fs::write(&key, pair.serialize_pem())?;
            Ok(made.der().to_vec())
        };
        let first = write()?;
        let certificate = Certificate::read(cert.clone(), key.clone())?;
        let current =
            || certificate.current.read().map(|current| current.cert[0].to_vec()).unwrap_or_default();
        assert_eq!(current(), first);
        certificate.acceptor()?;
        let second = write()?;
        certificate.renew().await;
        assert_eq!(current(), second);
        std::fs::write(&key, KeyPair::generate()?.serialize_pem())?;
        certificate.renew().await;
        assert_eq!(current(), second);
        Ok(())
    }
}
