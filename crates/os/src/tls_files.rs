// SPDX-License-Identifier: Apache-2.0
//! Certificates and keys in PEM files.

use std::{io, path::Path};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

/// Reads all certificates of a file, of which there must be one.
pub fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let failed = |error: &pem::Error| unreadable(path, "certificate", error);
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    if found.is_empty() { Err(failed(&pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Reads the private key of a file.
pub fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "key", &error))
}

fn unreadable(path: &Path, what: &str, error: &pem::Error) -> io::Error {
    io::Error::other(format!("{} is not a readable {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pem");
        for text in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n")] {
            text.iter().for_each(|text| std::fs::write(&path, text).unwrap());
            for error in [certificates(&path).unwrap_err(), key(&path).unwrap_err()] {
                assert!(error.to_string().contains("agent.pem is not a readable"), "{error}");
            }
        }
    }
}
