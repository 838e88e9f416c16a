// SPDX-License-Identifier: Apache-2.0
//! Images of registries, and those that were uploaded: pulled or received, unpacked by a confined process, and kept as images from
//! which sandboxes are booted.
//!
//! A reference is resolved to the digest of a manifest for this machine, and the digest is what an image is known by: its id
//! follows from it, so that an image that is here is not pulled again, and has the same id on every host. The layers are pulled
//! into a working directory of the agent. A process of its own unpacks them to a tree and makes a file system of it. The agent
//! itself reads nothing of what is in the layers. What is in the working directory is gone after an import, whatever its end.
//! An archive that is uploaded takes the place of a registry; it is trusted as little.

mod confine;
mod error;
mod file_system;
mod job;
mod load;
mod place;
mod process;
mod progress;
mod pull;
mod registries;
mod remove;
mod shares;
#[cfg(test)]
mod tests;
mod tree;
mod unpack_image;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::{task::spawn_blocking, time::timeout};
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_disk::{DiskError, Volumes};
use wrenn_oci::{
    Credentials, Digest, Image as Resolved, ImageConfig, ImageSource, Platform, Reference, Registry,
    RegistryOptions,
};

pub(crate) use load::{Archive, Loaded};
pub(crate) use place::remove_leftovers;
pub(crate) use progress::HowFar;
pub use unpack_image::unpack_image_if_asked;

use self::{
    error::{IMPORTING, of_source, of_store},
    job::{Job, LayerOf, Made},
    place::Place,
    process::{Program, USER_MAX, Unpacking},
    progress::Progress,
    registries::Registries,
    shares::{Refused, Share, Shares},
};
use crate::{
    config::{ImageSettings, PATH_MAX},
    error::{AgentError, full, of_files},
    images::{self, Image, Images, Imported},
};

/// Version of what is made of an image. It changes when something else is made of the same layers.
const UNPACKING: u32 = 1;
/// Maximum number of images that are unpacked at once, two of them for one team.
const UNPACKINGS: usize = 3;
/// Maximum number of pulls at once, half of them for one team: one from a slow registry holds up no other import.
const PULLS: usize = 16;
/// Maximum number of calls that resolve a reference, receive an archive or wait, half of them for one team.
const CALLS: usize = 32;
/// Interval between looks at the free space while an image is pulled.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum number of entries in the layers of an image, and bytes for each of a smaller one.
const ENTRIES_MAX: u64 = 2_000_000;
const BYTES_PER_ENTRY: u64 = 4096;
/// Smallest limit of an image's bytes with which it is worth trying.
const LEAST: u64 = 16 << 20;

/// An image of a registry, or one that was uploaded, that is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImportedImage {
    /// Id from which sandboxes are created.
    pub(crate) image_id: String,
    /// Digest of the manifest for this machine, by which a registry gives the same image again.
    pub(crate) digest: String,
    /// Smallest disk of a sandbox from it, in MiB.
    pub(crate) size_mb: u64,
    /// SHA-256 of its file system.
    pub(crate) sha256: String,
    /// Environment of its program, in order.
    pub(crate) env: Vec<(String, String)>,
    /// User of its program: a name, or a number that has none, and after a colon the group if the image names one.
    pub(crate) user: String,
    /// Absolute path of the directory in which its program starts.
    pub(crate) workdir: String,
    /// Program and its first arguments.
    pub(crate) entrypoint: Vec<String>,
    /// Further arguments, or program and arguments without an entrypoint.
    pub(crate) cmd: Vec<String>,
    /// Number of entries and attributes of its layers that were left out.
    pub(crate) skipped: u64,
    /// The first of them, and why.
    pub(crate) first_skipped: Vec<String>,
}

/// What is imported, from where and for whom. Only equal ones are one import: a registry that delivers nothing holds up nobody who
/// asks another one, and no other team.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    team: String,
    /// Registry and repository; empty for an archive.
    source: String,
    /// Id of the image, which follows from its digest.
    id: String,
}

/// An import, for all that wait for it.
type Importing = Shared<BoxFuture<'static, Result<Arc<Image>, AgentError>>>;

/// An import that others may wait for, too.
struct Running {
    importing: Importing,
    progress: Arc<Progress>,
    /// Names that it was asked for by: several tags may lead to one image.
    names: HashSet<String>,
}

/// Imports of this agent.
pub(crate) struct Imports {
    dir: PathBuf,
    settings: ImageSettings,
    registries: Registries,
    volumes: Arc<dyn Volumes>,
    images: Arc<Images>,
    program: Program,
    calls: Shares,
    pulls: Shares,
    unpackings: Shares,
    /// Those that have begun.
    running: Mutex<HashMap<Wanted, Running>>,
    /// Number of working directories that were made.
    made: AtomicU64,
}

impl Imports {
    /// Begins with an empty directory for the work. Removes what a former agent left in it.
    pub(crate) async fn open(
        dir: PathBuf,
        settings: ImageSettings,
        volumes: Arc<dyn Volumes>,
        images: Arc<Images>,
    ) -> io::Result<Arc<Self>> {
        Self::with_program(dir, settings, volumes, images, Program::own()).await
    }

    async fn with_program(
        dir: PathBuf,
        settings: ImageSettings,
        volumes: Arc<dyn Volumes>,
        images: Arc<Images>,
        program: Program,
    ) -> io::Result<Arc<Self>> {
        let begun = dir.clone();
        spawn_blocking(move || place::begin(&begun)).await.unwrap_or_else(|error| Err(error.into()))?;
        Ok(Arc::new(Self {
            registries: Registries::new(&settings),
            calls: Shares::new(CALLS),
            pulls: Shares::new(PULLS),
            unpackings: Shares::new(UNPACKINGS),
            running: Mutex::default(),
            made: AtomicU64::new(0),
            dir,
            settings,
            volumes,
            images,
            program,
        }))
    }

    /// Imports the image that a reference leads to now for a team, unless it is here. An import goes on without its caller.
    pub(crate) async fn import(
        self: &Arc<Self>,
        team: &str,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<ImportedImage, AgentError> {
        let _call = self.call(team)?;
        let parsed = reference.parse::<Reference>();
        let reference =
            parsed.map_err(|error| AgentError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        self.registries.check(&reference.registry)?;
        let (name, limit) = (reference.to_string(), self.settings.pull_limit);
        let options = self.options(&reference.registry, credentials);
        let repository = format!("{}/{}", reference.registry, reference.repository);
        let source = Registry::new(reference, options).map_err(|error| of_source(&error))?;
        // It is asked even if the image is here: whether its owner may have it is for the registry to say.
        let machine = Platform::of_this_machine();
        let resolved = timeout(limit, source.resolve(&machine)).await;
        let resolved = resolved.map_err(|_| error::slow_registry(&name, limit))?;
        let resolved = resolved.map_err(|error| of_source(&error))?;
        let workdir = checked(&name, &resolved.config)?;
        let id = image_id(&resolved.digest);
        let kept = match self.kept(&id).await? {
            Some(kept) => kept,
            None => {
                let wanted = Wanted { team: team.to_owned(), source: repository, id };
                self.begin(wanted, name, resolved.clone(), Arc::new(source)).await?
            }
        };
        Ok(imported(&kept, resolved, workdir))
    }

    /// Takes a place among the calls for a team. Fails if it has its share, or all are taken.
    fn call(&self, team: &str) -> Result<Share<'_>, AgentError> {
        self.calls.try_take(team).map_err(|refused| {
            let cause = match refused {
                Refused::Team => "the team imports or looks up as many images on this host at once as it may",
                Refused::Host => "this host imports or looks up as many images at once as it can",
            };
            AgentError::new(ErrorCode::TooManyRequests, format!("{cause}: try again in a moment"))
        })
    }

    /// How a registry is asked. Only one that the operator has named may lead into a private network.
    fn options(&self, registry: &str, credentials: Option<Credentials>) -> RegistryOptions {
        RegistryOptions {
            credentials,
            public_only: !self.registries.is_named(registry),
            plain_http: self.registries.plain_http.clone(),
            idle_limit: self.settings.registry_timeout,
            blob_bytes: self.most_stored(),
            ..RegistryOptions::default()
        }
    }

    /// Maximum bytes of an image.
    fn most(&self) -> u64 {
        self.settings.image_max_mb << 20
    }

    /// Maximum bytes of its layers as they are stored: what cannot be compressed becomes a little larger.
    fn most_stored(&self) -> u64 {
        self.most() + self.most() / 64
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Wanted, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds an image that was imported before, and that is still in the store.
    async fn kept(&self, id: &str) -> Result<Option<Arc<Image>>, AgentError> {
        let Ok(image) = self.images.get(id) else { return Ok(None) };
        match self.volumes.image(&images::name_of(id)).await {
            Ok(_) => Ok(Some(image)),
            Err(DiskError::UnknownImage(_) | DiskError::ImageChanged(_)) => Ok(None),
            Err(error) => Err(of_store(&error)),
        }
    }

    /// Begins an import, or finds the one that is equal.
    fn begin(
        self: &Arc<Self>,
        wanted: Wanted,
        name: String,
        resolved: Resolved,
        source: Arc<dyn ImageSource>,
    ) -> Importing {
        let mut running = self.running();
        if let Some(equal) = running.get_mut(&wanted) {
            equal.names.insert(name);
            return equal.importing.clone();
        }
        let progress = Arc::<Progress>::default();
        let names = HashSet::from([name.clone()]);
        let begun = Begun { all: self.clone(), wanted: wanted.clone(), progress: progress.clone() };
        let work = async move { begun.all.import_now(&begun, &name, &resolved, &*source).await };
        let work = work.in_current_span();
        // A task of its own, begun by the first that waits: it goes on without them.
        let ended = async move {
            tokio::spawn(work).await.unwrap_or_else(|error| Err(AgentError::fault(IMPORTING, &error)))
        };
        let importing = ended.boxed().shared();
        running.insert(wanted, Running { importing: importing.clone(), progress, names });
        importing
    }

    /// Returns how far the import is that a team has asked for by this reference. `None` if none has begun.
    pub(crate) fn how_far(&self, team: &str, reference: &str) -> Option<HowFar> {
        let name = reference.parse::<Reference>().ok()?.to_string();
        let running = self.running();
        let mut all = running.iter();
        let found = all.find(|(wanted, import)| wanted.team == team && import.names.contains(&name));
        found.map(|(_, import)| import.progress.now())
    }

    async fn import_now(
        &self,
        begun: &Begun,
        name: &str,
        resolved: &Resolved,
        source: &dyn ImageSource,
    ) -> Result<Arc<Image>, AgentError> {
        let wanted = &begun.wanted;
        let _pull = self.pulls.take(&wanted.team).await;
        // One that ended after it was looked for.
        if let Some(kept) = self.kept(&wanted.id).await? {
            return Ok(kept);
        }
        tracing::info!(image = name, digest = %resolved.digest, "importing an image");
        // Of its own: the same image may come from several sources at once.
        let work = format!("{}-{}", wanted.id, self.made.fetch_add(1, Ordering::Relaxed));
        let place = Place::at(self.dir.join(&work));
        let imported = self.import_at(&place, begun, name, resolved, source).await;
        if let Err(error) = blocking(move || place.remove()).await {
            tracing::error!(work, %error, "cannot remove what is left of an import; the next start tries again");
        }
        imported
    }

    async fn import_at(
        &self,
        place: &Place,
        begun: &Begun,
        name: &str,
        resolved: &Resolved,
        source: &dyn ImageSource,
    ) -> Result<Arc<Image>, AgentError> {
        let (wanted, progress) = (&begun.wanted, &begun.progress);
        let stored = pull::bytes(&resolved.manifest);
        if stored > self.most_stored() {
            return Err(error::too_large(name, self.settings.image_max_mb));
        }
        let files = |error: io::Error| of_files(IMPORTING, &error);
        let made = place.clone();
        blocking(move || made.make()).await.map_err(files)?;
        if self.room(place).await? < stored {
            return Err(full());
        }
        progress.begin(stored);
        let limit = self.settings.pull_limit;
        let pulling = pull::layers(source, &resolved.manifest, place, progress);
        tokio::select! {
            pulled = timeout(limit, pulling) => pulled.map_err(|_| error::slow_registry(name, limit))??,
            // Other imports and guests write meanwhile.
            error = self.until_low() => return Err(error),
        }
        let _unpacking = self.unpackings.take(&wanted.team).await;
        // Another source may have delivered it meanwhile.
        if let Some(kept) = self.kept(&wanted.id).await? {
            return Ok(kept);
        }
        // The tree and the file system that is made of it are there at once.
        let room = self.room(place).await? / 2;
        let unpacking = Unpacking {
            id: place.name(),
            program: self.program.clone(),
            place: place.clone(),
            job: job(&wanted.id, resolved, room.min(self.most())),
            limit: self.settings.unpack_limit,
            least_free: self.reserve().await? / 2,
            by_room: room < self.most(),
            progress: progress.clone(),
        };
        if unpacking.job.bytes < LEAST {
            return Err(full());
        }
        let made = blocking(move || Ok(unpacking.run())).await.map_err(files)??;
        let cleared = place.clone();
        blocking(move || cleared.clear()).await.map_err(files)?;
        self.keep(place, &wanted.id, resolved, made).await
    }

    /// Takes the file system of a place into the store, unless another import of the image has done so.
    async fn keep(
        &self,
        place: &Place,
        id: &str,
        resolved: &Resolved,
        made: Made,
    ) -> Result<Arc<Image>, AgentError> {
        let _turn = self.images.turn().await;
        if let Some(kept) = self.kept(id).await? {
            return Ok(kept);
        }
        let stored = images::name_of(id);
        self.volumes.prepare(&stored, &place.image()).await.map_err(|error| of_store(&error))?;
        let image = self.volumes.image(&stored).await.map_err(|error| of_store(&error))?;
        let record = Image {
            id: id.to_owned(),
            default_user: made.user,
            size_mb: image.size.div_ceil(1 << 20),
            sha256: image.hash,
            imported: Some(Imported {
                digest: resolved.digest.to_string(),
                skipped: made.skipped,
                first_skipped: made.first_skipped,
            }),
        };
        self.images.keep(record).await
    }

    /// Bytes that stay free for the data of sandboxes.
    async fn reserve(&self) -> Result<u64, AgentError> {
        let pressure = self.volumes.pressure().await.map_err(|error| of_store(&error))?;
        if pressure.is_low() { Err(full()) } else { Ok(pressure.reserve) }
    }

    /// Waits until less is free than must stay so; returns the error of an import.
    async fn until_low(&self) -> AgentError {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.reserve().await {
                return error;
            }
        }
    }

    /// Bytes that an import may take.
    async fn room(&self, place: &Place) -> Result<u64, AgentError> {
        let (reserve, place) = (self.reserve().await?, place.clone());
        let free = blocking(move || process::free(place.path())).await;
        Ok(free.map_err(|error| of_files(IMPORTING, &error))?.saturating_sub(reserve))
    }
}

/// An import that has begun, which is forgotten when it ends in any way.
struct Begun {
    all: Arc<Imports>,
    wanted: Wanted,
    progress: Arc<Progress>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.all.running().remove(&self.wanted);
    }
}

/// Runs blocking work on a thread outside the async runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()))
}

/// Returns the id of the image that is made of a manifest with this digest. It has the form of a UUID, as the ids of images have
/// that are made of snapshots.
fn image_id(digest: &Digest) -> String {
    let hash = Digest::of(format!("image {UNPACKING} {digest}").as_bytes()).hex();
    format!("{}-{}-8{}-8{}-{}", &hash[..8], &hash[8..12], &hash[13..16], &hash[17..20], &hash[20..32])
}

/// What is to be done with the layers of an image that may have this many bytes.
fn job(id: &str, resolved: &Resolved, bytes: u64) -> Job {
    Job {
        layers: resolved.layers().map(|(of, diff_id)| LayerOf { digest: of.digest, diff_id }).collect(),
        bytes,
        entries: (bytes / BYTES_PER_ENTRY).min(ENTRIES_MAX),
        user: resolved.config.user.clone(),
        workdir: absolute(&resolved.config.working_dir),
        uuid: id.to_owned(),
    }
}

/// Checks what a configuration says that is not bounded; returns the working directory as an absolute path.
fn checked(name: &str, config: &ImageConfig) -> Result<String, AgentError> {
    let (user, workdir) = (config.user.chars().count(), absolute(&config.working_dir));
    if user > USER_MAX {
        return Err(error::unfit(name, format!("the name of its user has more than {USER_MAX} characters")));
    }
    if workdir.chars().count() > PATH_MAX {
        return Err(error::unfit(name, format!("its working directory has more than {PATH_MAX} characters")));
    }
    Ok(workdir)
}

/// Makes an absolute path of a working directory: relative ones begin at the top, and nothing is above that.
fn absolute(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

fn imported(kept: &Image, resolved: Resolved, workdir: String) -> ImportedImage {
    let (skipped, first_skipped) =
        kept.imported.as_ref().map(|of| (of.skipped, of.first_skipped.clone())).unwrap_or_default();
    let ImageConfig { env, entrypoint, cmd, .. } = resolved.config;
    ImportedImage {
        image_id: kept.id.clone(),
        digest: resolved.digest.to_string(),
        size_mb: kept.size_mb,
        sha256: kept.sha256.clone(),
        env,
        user: kept.default_user.clone(),
        workdir,
        entrypoint,
        cmd,
        skipped,
        first_skipped,
    }
}
