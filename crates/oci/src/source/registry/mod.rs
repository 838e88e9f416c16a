// SPDX-License-Identifier: Apache-2.0
//! Images in registries, over the distribution API of OCI.

mod challenge;
mod connection;
mod download;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::StreamExt as _;

use super::{Blob, Found, ImageSource, SourceError, verified, verify};
use crate::{
    digest::Digest,
    manifest::{Descriptor, Document, MANIFEST_MAX},
    reference::Reference,
};

use connection::Connection;

/// Name and password of an account of a registry; a token is given as the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the account.
    pub username: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How a registry is reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Account, else nobody. It is sent to the registry and to the host that the registry names for tokens.
    pub credentials: Option<Credentials>,
    /// Registries that are reached by plain HTTP, as in references: `registry.lan:5000`. Loopback always is.
    pub plain_http: Vec<String>,
    /// Whether only addresses of public networks are reached, whatever the registry redirects to or names. False by default: who
    /// lets strangers name references sets it.
    pub public_only: bool,
    /// Time limit of a connection. 10 s by default.
    pub connect_limit: Duration,
    /// How long a transfer may stand still. A transfer that goes on may take any time. 30 s by default.
    pub idle_limit: Duration,
    /// How often a request is tried, and a download that broke is resumed without getting further. 5 by default.
    pub attempts: u32,
    /// Time between the first two attempts; each further one is twice that. 500 ms by default.
    pub first_wait: Duration,
    /// Maximum time between two attempts, also if the registry asks for more. 30 s by default.
    pub longest_wait: Duration,
    /// Maximum size of a blob in bytes. 32 GiB by default.
    pub blob_bytes: u64,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: None,
            plain_http: Vec::new(),
            public_only: false,
            connect_limit: Duration::from_secs(10),
            idle_limit: Duration::from_secs(30),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            blob_bytes: 32 << 30,
        }
    }
}

/// An image in a registry. Any host is asked that the reference, a redirect or a realm names, loopback and private addresses
/// too, unless [`RegistryOptions::public_only`].
pub struct Registry {
    reference: Reference,
    name: String,
    connection: Arc<Connection>,
}

impl Registry {
    /// Makes the source of an image. Nothing is sent yet.
    pub fn new(reference: Reference, options: RegistryOptions) -> Result<Self, SourceError> {
        let name = reference.to_string();
        let connection = Arc::new(Connection::new(&reference, &name, options)?);
        Ok(Self { reference, name, connection })
    }
}

#[async_trait]
impl ImageSource for Registry {
    fn name(&self) -> &str {
        &self.name
    }

    async fn document(&self, of: Option<&Descriptor>) -> Result<Found, SourceError> {
        if of.is_some_and(|descriptor| descriptor.size > MANIFEST_MAX) {
            return Err(SourceError::too_large(&self.name, "its manifest", MANIFEST_MAX));
        }
        let selector =
            of.map_or_else(|| self.reference.selector(), |descriptor| descriptor.digest.to_string());
        let bytes = self.connection.manifest(&selector).await?;
        let digest = Digest::of(&bytes);
        match (of, self.reference.digest) {
            (Some(descriptor), _) => verify(&self.name, &bytes, descriptor)?,
            (None, Some(pinned)) if pinned != digest => return Err(SourceError::damaged(&self.name, pinned)),
            (None, _) => {}
        }
        let document = Document::parse(&bytes)
            .map_err(|cause| SourceError::malformed(&self.name, "its manifest", cause))?;
        Ok(Found { digest, document })
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let most = self.connection.options().blob_bytes;
        if descriptor.size > most {
            return Err(SourceError::too_large(&self.name, descriptor.digest, most));
        }
        let pieces = download::pieces(Arc::clone(&self.connection), descriptor).boxed();
        Ok(verified(&self.name, pieces, descriptor))
    }
}
