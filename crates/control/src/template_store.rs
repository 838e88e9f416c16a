// SPDX-License-Identifier: Apache-2.0
//! The store of templates: a directory that all servers share, or a bucket of a service that speaks S3.

use std::{collections::HashSet, fs, path::Path as FilePath, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path, prefix::PrefixStore,
};
use tokio::sync::Semaphore;

use crate::config::TemplateSettings;

/// Time limits for a connection and for a request, whose object has a few MiB, and for all attempts of a request.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(60);
const ATTEMPTS: Duration = Duration::from_secs(90);
/// Maximum number of repetitions of a request.
const RETRIES: usize = 4;
/// Maximum size of the file with the secret.
const SECRET_MAX: u64 = 4096;
/// Number of artifacts that a server fetches at a time.
const FETCHES: usize = 4;

/// The store of templates, and bounds of their transfers.
pub(crate) struct Transfers {
    pub(crate) store: Option<Store>,
    /// Size in MiB of the copies of a host.
    pub(crate) cache_mb: u64,
    /// Time for which a create waits for a copy.
    pub(crate) fetch: Duration,
    /// Places for artifacts that are fetched now.
    pub(crate) places: Semaphore,
}

impl Transfers {
    /// Opens the store, if there is one.
    pub(crate) fn new(settings: &TemplateSettings) -> anyhow::Result<Self> {
        Ok(Self {
            store: Store::open(settings)?,
            cache_mb: settings.cache_mb,
            fetch: settings.fetch,
            places: Semaphore::new(FETCHES),
        })
    }
}

/// A store; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<dyn ObjectStore>);

/// Error of the store. Its text may name paths of this machine, so it is for the log only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// An object is missing, or is not what was stored.
    #[error("the object {path} of the template store is damaged: {reason}")]
    Damaged {
        /// Its path in the store.
        path: Path,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not respond, or refuses access.
    #[error("the template store failed: {0}; check server.template_store and its account")]
    Failed(#[source] object_store::Error),
}

impl Store {
    /// Opens the store of the settings, if they name one.
    pub(crate) fn open(settings: &TemplateSettings) -> anyhow::Result<Option<Self>> {
        let url = settings.store.as_deref().unwrap_or_default();
        if url.is_empty() {
            return Ok(None);
        }
        let opened = match url.split_once("://") {
            Some(("file", dir)) => directory(dir),
            Some(("s3", bucket)) => bucket_of(bucket, settings),
            _ => bail!("server.template_store is {url:?}: give file:///DIRECTORY or s3://BUCKET/PREFIX"),
        };
        opened.with_context(|| format!("the template store {url} cannot be used")).map(Some)
    }

    /// Writes an object; one that is there is replaced.
    pub(crate) async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), StoreError> {
        self.0.put(path, bytes.into()).await.map(drop).map_err(StoreError::Failed)
    }

    /// Reads an object of at most `max` bytes.
    pub(crate) async fn get(&self, path: &Path, max: u64) -> Result<Bytes, StoreError> {
        let found = self.0.get(path).await.map_err(|error| read_error(path, error))?;
        if found.meta.size > max {
            let reason = format!("it has {} bytes, and at most {max} are possible", found.meta.size);
            return Err(damaged(path, reason));
        }
        found.bytes().await.map_err(|error| read_error(path, error))
    }

    /// Returns the paths of all objects below a path.
    pub(crate) async fn list(&self, root: &Path) -> Result<HashSet<Path>, StoreError> {
        let found = self.0.list(Some(root)).map_ok(|meta| meta.location);
        found.try_collect().await.map_err(StoreError::Failed)
    }

    /// Removes all objects below a path, those at `first` before all others.
    pub(crate) async fn remove(&self, root: &Path, first: &Path) -> Result<(), StoreError> {
        match self.0.delete(first).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(StoreError::Failed(error)),
        }
        let all = self.list(root).await?;
        let mut removed = self.0.delete_stream(stream::iter(all.into_iter().map(Ok)).boxed());
        while let Some(one) = removed.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(StoreError::Failed(error)),
            }
        }
        Ok(())
    }
}

/// Makes the error of an object that is not what was stored.
pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.clone(), reason: reason.into() }
}

fn read_error(path: &Path, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => damaged(path, "it is missing"),
        error => StoreError::Failed(error),
    }
}

fn directory(dir: &str) -> anyhow::Result<Store> {
    if !FilePath::new(dir).is_absolute() {
        bail!("its directory is not absolute: give file:///DIRECTORY");
    }
    fs::create_dir_all(dir)
        .context("its directory cannot be made: make it and give it to the user of the server")?;
    let files = LocalFileSystem::new_with_prefix(dir)?.with_automatic_cleanup(true).with_fsync(true);
    Ok(Store(Arc::new(files)))
}

fn bucket_of(bucket: &str, settings: &TemplateSettings) -> anyhow::Result<Store> {
    let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    let key = settings
        .store_access_key
        .clone()
        .context("it needs an account: set server.template_store_access_key")?;
    let file = settings.store_secret_file.as_deref();
    let secret = secret(file.context("it needs an account: set server.template_store_secret_file")?)?;
    let options = ClientOptions::new().with_connect_timeout(CONNECT).with_timeout(REQUEST);
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: ATTEMPTS, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(settings.store_region.as_str())
        .with_access_key_id(key)
        .with_secret_access_key(secret)
        .with_client_options(options)
        .with_retry(retry);
    if let Some(endpoint) = &settings.store_endpoint {
        // Only an operator who writes http:// wants it without TLS.
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint.as_str());
    }
    let prefix = Path::parse(prefix).context("its prefix is not the path of an object")?;
    Ok(Store(Arc::new(PrefixStore::new(builder.build()?, prefix))))
}

/// Reads a secret, without the end of its line. No error quotes it.
fn secret(file: &FilePath) -> anyhow::Result<String> {
    let what = || format!("the file {} (server.template_store_secret_file)", file.display());
    let size = fs::metadata(file).with_context(|| format!("{} cannot be read", what()))?.len();
    if size > SECRET_MAX {
        bail!("{} has {size} bytes, more than a secret has", what());
    }
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", what()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        bail!("{} is empty", what());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(store: &str) -> TemplateSettings {
        TemplateSettings { store: Some(store.to_owned()), ..TemplateSettings::default() }
    }

    #[tokio::test]
    async fn a_directory_keeps_what_is_put_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&settings(&format!("file://{}/made", dir.path().display())));
        let store = store.expect("it opens").expect("a store");
        let (root, other) = (Path::from("images/a"), Path::from("images/ab/x"));
        let paths = [Path::from("images/a/manifest"), Path::from("images/a/1/0-x"), other.clone()];
        for path in &paths {
            store.put(path, Bytes::from_static(b"old")).await.expect("put");
            store.put(path, Bytes::from_static(b"content")).await.expect("put again");
        }
        assert_eq!(store.get(&paths[1], 7).await.expect("get"), "content");
        assert!(matches!(store.get(&paths[1], 6).await, Err(StoreError::Damaged { .. })));
        assert!(matches!(store.get(&Path::from("none"), 6).await, Err(StoreError::Damaged { .. })));
        let listed = store.list(&root).await.expect("list");
        assert_eq!(listed, paths[..2].iter().cloned().collect());
        store.remove(&root, &paths[0]).await.expect("remove");
        store.remove(&root, &paths[0]).await.expect("again");
        assert!(store.list(&root).await.expect("list").is_empty());
        assert_eq!(store.get(&other, 7).await.expect("what is not below it"), "content");
    }

    #[test]
    fn what_is_no_store_is_refused_with_what_to_write() {
        assert!(Store::open(&TemplateSettings::default()).expect("none").is_none());
        assert!(Store::open(&settings("")).expect("none").is_none());
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("secret");
        fs::write(&file, "\n").expect("written");
        let with = |key: bool, file: Option<&FilePath>| TemplateSettings {
            store_access_key: key.then(|| "key".to_owned()),
            store_secret_file: file.map(FilePath::to_owned),
            ..settings("s3://bucket/a")
        };
        for (settings, told) in [
            (settings("/var/lib/store"), "give file:///DIRECTORY or s3://BUCKET/PREFIX"),
            (settings("file://relative"), "not absolute"),
            (settings("ftp://x"), "give file:///DIRECTORY"),
            (with(false, None), "server.template_store_access_key"),
            (with(true, None), "server.template_store_secret_file"),
            (with(true, Some(&dir.path().join("none"))), "cannot be read"),
            (with(true, Some(&file)), "is empty"),
        ] {
            let error = Store::open(&settings).err().map(|error| format!("{error:#}"));
            assert!(error.as_ref().is_some_and(|error| error.contains(told)), "{error:?}: {told}");
        }
        fs::write(&file, "hunter2\n").expect("written");
        let store = Store::open(&with(true, Some(&file))).expect("it opens").expect("a store");
        assert!(!format!("{store:?}").contains("hunter2"), "the secret is shown");
    }
}
