// SPDX-License-Identifier: Apache-2.0
//! Private certificate authority for the control plane and the agent, and the certificates of both.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike as _, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use wrenn_os::atomic_file;

use crate::users::User;

/// DNS name in an agent's certificate, which the control plane checks.
const AGENT_NAME: &str = "agent.wrenn";
const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
/// Remaining validity, in days, below which certificates are renewed.
const RENEW_DAYS: u64 = 30;
/// Name of the file with the end of the validity. It is written last, so it shows that all files are
/// complete.
const VALIDITY: &str = "valid-until";

/// Paths of the PEM files of one side.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Returns the paths of `agent` or `control` in the directory.
pub(crate) fn side(dir: &Path, name: &str) -> Side {
    Side {
        ca: dir.join("ca.pem"),
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
    }
}

/// Creates missing certificates and renews those that end soon; returns whether it did.
pub(crate) fn ensure(dir: &Path, service: &User) -> Result<bool> {
    let renewed = ensure_at(dir, Utc::now())
        .with_context(|| format!("cannot make certificates in {}", dir.display()))?;
    let key = side(dir, "control").key;
    chown(&key, Some(service.uid), Some(service.gid))
        .with_context(|| format!("cannot chown {}", key.display()))?;
    Ok(renewed)
}

fn ensure_at(dir: &Path, now: DateTime<Utc>) -> Result<bool> {
    let [ca_end, leaf_end] = validity(dir).unwrap_or_default();
    let soon = now + Days::new(RENEW_DAYS);
    if leaf_end > soon && ca_end > soon {
        return Ok(false);
    }
    match fs::remove_file(dir.join(VALIDITY)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // The CA must be valid longer than the certificates that it signs.
    let keep_ca = ca_end > soon + Days::new(LEAF_DAYS);
    let ca_end = if keep_ca { ca_end } else { new_ca(dir, now)? };
    let key = fs::read_to_string(dir.join("ca.key")).context("ca.key")?;
    let issuer = Issuer::new(ca_params(now, ca_end)?, KeyPair::from_pem(&key).context("ca.key")?);
    let leaf_end = now + Days::new(LEAF_DAYS);
    leaf(dir, "agent", agent_params()?, &issuer, (now, leaf_end))?;
    leaf(dir, "control", control_params(), &issuer, (now, leaf_end))?;
    let lines = format!("{}\n{}\n", ca_end.to_rfc3339(), leaf_end.to_rfc3339());
    write(&dir.join(VALIDITY), &lines, 0o644)?;
    Ok(true)
}

fn validity(dir: &Path) -> Option<[DateTime<Utc>; 2]> {
    let complete = ["agent", "control"].iter().all(|name| {
        let side = side(dir, name);
        [side.ca, side.cert, side.key].iter().all(|file| file.exists())
    });
    let text = fs::read_to_string(dir.join(VALIDITY)).ok().filter(|_| complete)?;
    let mut ends = text.lines().map(|line| DateTime::parse_from_rfc3339(line).map(|end| end.to_utc()));
    Some([ends.next()?.ok()?, ends.next()?.ok()?])
}

fn new_ca(dir: &Path, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let (key, end) = (KeyPair::generate()?, now + Days::new(CA_DAYS));
    let certificate = ca_params(now, end)?.self_signed(&key)?;
    write(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
    write(&dir.join("ca.pem"), &certificate.pem(), 0o644)?;
    Ok(end)
}

/// Parameters of the CA. Its name and key usage must always be the same, because signatures refer to them.
fn ca_params(now: DateTime<Utc>, end: DateTime<Utc>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "wrenn private CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params, (now, end));
    Ok(params)
}

fn agent_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![AGENT_NAME.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "agent");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn control_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "control-plane");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn limit(params: &mut CertificateParams, (now, end): (DateTime<Utc>, DateTime<Utc>)) {
    // One day earlier, because clocks differ and the dates have no time zone.
    let begin = now - Days::new(1);
    let day = |time: DateTime<Utc>| rcgen::date_time_ymd(time.year(), time.month() as u8, time.day() as u8);
    params.not_before = day(begin);
    params.not_after = day(end + Days::new(1));
}

fn leaf(
    dir: &Path,
    name: &str,
    mut params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
    times: (DateTime<Utc>, DateTime<Utc>),
) -> Result<()> {
    limit(&mut params, times);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    let side = side(dir, name);
    write(&side.key, &key.serialize_pem(), 0o600)?;
    write(&side.cert, &certificate.pem(), 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    atomic_file::write(path, text.as_bytes(), mode, None)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::WebPkiServerVerifier,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::WebPkiClientVerifier,
    };

    use super::*;

    fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_file(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
    }

    fn roots(dir: &Path) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&dir.join("ca.pem"))?)?;
        Ok(Arc::new(roots))
    }

    fn verify(dir: &Path) -> Result<()> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = WebPkiServerVerifier::builder_with_provider(roots(dir)?, provider.clone()).build()?;
        let name = ServerName::try_from(AGENT_NAME)?;
        let agent = certificate(&side(dir, "agent").cert)?;
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            server.as_ref(),
            &agent,
            &[],
            &name,
            &[],
            UnixTime::now(),
        )?;
        let client = WebPkiClientVerifier::builder_with_provider(roots(dir)?, provider.clone()).build()?;
        let control = certificate(&side(dir, "control").cert)?;
        client.verify_client_cert(&control, &[], UnixTime::now())?;
        // The agent must not be accepted as the control plane.
        anyhow::ensure!(client.verify_client_cert(&agent, &[], UnixTime::now()).is_err());
        for (name, certificate) in [("agent", agent), ("control", control)] {
            let key = PrivateKeyDer::from_pem_file(side(dir, name).key)
                .map_err(|error| anyhow::anyhow!("{name}.key: {error}"))?;
            rustls::ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)?;
        }
        Ok(())
    }

    #[test]
    fn both_sides_are_trusted_before_and_after_a_renewal() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let now = Utc::now();
        assert!(ensure_at(dir.path(), now)?);
        verify(dir.path())?;
        assert!(!ensure_at(dir.path(), now)?, "made anew without need");
        let (ca, agent) = (fs::read(dir.path().join("ca.pem"))?, fs::read(dir.path().join("agent.pem"))?);
        // Renewed by the same CA, shortly before the first ones end.
        assert!(ensure_at(dir.path(), now + Days::new(LEAF_DAYS - 20))?);
        assert_eq!(ca, fs::read(dir.path().join("ca.pem"))?);
        assert_ne!(agent, fs::read(dir.path().join("agent.pem"))?);
        fs::remove_file(dir.path().join(VALIDITY))?;
        assert!(ensure_at(dir.path(), now)?, "an interrupted one is made anew");
        verify(dir.path())
    }

    #[test]
    fn certificates_of_a_kept_ca_are_trusted() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let now = Utc::now();
        ensure_at(dir.path(), now - Days::new(LEAF_DAYS))?;
        assert!(ensure_at(dir.path(), now)?);
        verify(dir.path())
    }

    #[test]
    fn keys_are_private() -> Result<()> {
        let dir = tempfile::tempdir()?;
        ensure_at(dir.path(), Utc::now())?;
        for name in ["ca.key", "agent.key", "control.key"] {
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join(name))?.permissions());
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        Ok(())
    }
}
