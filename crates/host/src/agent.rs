// SPDX-License-Identifier: Apache-2.0
//! The agent: all sandboxes of this host by id.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use rand::RngCore as _;
use tracing::Span;
use wrenn_api::{ErrorCode, SandboxId};
use wrenn_oci::Credentials;

use crate::{
    assets::Template,
    config::{Config, PATH_MAX},
    error::AgentError,
    fleet::Fleets,
    images::{self, Image},
    machine::Machine,
    metrics::{Asked, Metrics, Sample, Target},
    oci::{Archive, HowFar, ImportedImage, Loaded},
    records::check_id,
    sandbox::{
        actor::{self, Handle, Start},
        admit::{Creation, Wish},
        guest::Guest,
        phase::{Footprint, Published, State},
        record::{Record, Sandbox},
        shared::Shared,
        spec::Spec,
    },
    snapshots::named,
};

/// Maximum number of sandboxes with a record, those included that are paused or have failed.
const RECORDS_MAX: usize = 16_384;
/// Time that a call to a guest waits for the adoption of its sandbox.
const ADOPTION: Duration = Duration::from_secs(10);

/// Parameters of a create request.
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) template: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    pub(crate) disk_size_mb: u64,
    pub(crate) envs: HashMap<String, String>,
    pub(crate) default_user: String,
    /// Directory of commands that name none.
    pub(crate) default_workdir: String,
    /// Id of the named snapshot that it goes on from, or of the image that it boots from; both are empty for a template.
    pub(crate) snapshot: String,
    pub(crate) image: String,
}

/// The agent of a host.
pub(crate) struct Agent {
    pub(crate) config: Config,
    pub(crate) shared: Arc<Shared>,
    pub(crate) fleets: Fleets,
    pub(crate) machine: Machine,
    pub(crate) driver_reason: String,
    pub(crate) metrics: Arc<Metrics>,
    sandboxes: Mutex<HashMap<String, Handle>>,
}

impl Agent {
    pub(crate) fn new(
        config: Config,
        shared: Arc<Shared>,
        fleets: Fleets,
        machine: Machine,
        driver_reason: String,
        sandboxes: HashMap<String, Handle>,
    ) -> Arc<Self> {
        let metrics = Arc::new(Metrics::new(shared.dir.clone()));
        let none = Mutex::default();
        let agent =
            Arc::new(Self { config, shared, fleets, machine, driver_reason, metrics, sandboxes: none });
        for (id, handle) in sandboxes {
            agent.keep(&mut agent.sandboxes(), id, handle);
        }
        agent
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a sandbox and removes it when its task ends.
    fn keep(self: &Arc<Self>, sandboxes: &mut HashMap<String, Handle>, id: String, handle: Handle) {
        let (mut published, agent) = (handle.published.clone(), Arc::downgrade(self));
        self.metrics.begin(&id);
        sandboxes.insert(id.clone(), handle);
        tokio::spawn(async move {
            let gone = published.wait_for(|published| published.state == State::Gone).await.is_ok();
            let Some(agent) = agent.upgrade() else { return };
            if !gone {
                // The sandbox's resources still exist, and only the next start of the agent can release them.
                tracing::error!(id, "the task of a sandbox died; restart the agent");
                return;
            }
            // First: from the removal on there may be another sandbox of this id.
            agent.metrics.end(&id);
            agent.sandboxes().remove(&id);
        });
    }

    fn check(&self, wanted: &Wanted) -> Result<(), AgentError> {
        let invalid = |what: String| Err(AgentError::new(ErrorCode::InvalidRequest, what));
        if wanted.id.parse::<SandboxId>().is_err() {
            return invalid(format!("{:?} is not a sandbox id", wanted.id));
        }
        if !wanted.snapshot.is_empty() && !wanted.image.is_empty() {
            return invalid("a sandbox begins with a snapshot or with an image: give one of both".to_owned());
        }
        if !wanted.default_workdir.is_empty() && !is_absolute(&wanted.default_workdir) {
            return invalid(format!("default_workdir is an absolute path of at most {PATH_MAX} characters"));
        }
        let capabilities = self.shared.vmm.capabilities();
        let limits = &self.config.settings.limits;
        let most = [
            ("vcpus", u64::from(wanted.vcpus), 1, u64::from(limits.vcpus.min(capabilities.max_vcpus))),
            ("memory_mb", wanted.memory_mb, 128, limits.memory_mb.min(u64::from(capabilities.max_memory_mb))),
            ("disk_size_mb", wanted.disk_size_mb, 1, limits.disk_size_mb),
        ];
        for (field, value, min, max) in most {
            if value < min {
                return invalid(format!("{field} {value} is too small: at least {min}"));
            }
            if value > max {
                let message =
                    format!("{field} {value} is more than this host gives one sandbox: at most {max}");
                return Err(AgentError::new(ErrorCode::ExceedsCapacity, message));
            }
        }
        Ok(())
    }

    /// Properties of a new sandbox, and what it begins with.
    fn plan(&self, wanted: Wanted) -> Result<(Spec, Creation), AgentError> {
        self.check(&wanted)?;
        let spec = |template: &str, default_user: &str, default_workdir: &str| Spec {
            template: template.to_owned(),
            vcpus: wanted.vcpus,
            memory_mb: wanted.memory_mb,
            disk_size_mb: wanted.disk_size_mb,
            default_user: given_or(&wanted.default_user, default_user),
            default_workdir: given_or(&wanted.default_workdir, default_workdir),
            created_at_unix_ms: chrono::Utc::now().timestamp_millis(),
            access_token: token(),
        };
        if !wanted.image.is_empty() {
            let image = self.shared.images.get(&wanted.image)?;
            check_disk(&wanted, image.size_mb)?;
            let spec = spec(&wanted.template, &image.default_user, "");
            let image = Some(images::name_of(&image.id));
            return Ok((spec, Creation { envs: wanted.envs, image, snapshot: None }));
        }
        if wanted.snapshot.is_empty() {
            let template = self.template(&wanted)?;
            let spec = spec(&template.name, &template.default_user, "");
            return Ok((spec, Creation { envs: wanted.envs, image: None, snapshot: None }));
        }
        let named = self.shared.named.get(&wanted.snapshot)?;
        let sizes = [
            ("vcpus", u64::from(wanted.vcpus), u64::from(named.vcpus)),
            ("memory_mb", wanted.memory_mb, named.memory_mb),
            ("disk_size_mb", wanted.disk_size_mb, named.disk_size_mb),
        ];
        if let Some((field, given, has)) = sizes.into_iter().find(|(_, given, has)| given != has) {
            let message = format!("{field} is {given}, and the snapshot has {has}: leave it out");
            return Err(AgentError::new(ErrorCode::InvalidRequest, message));
        }
        let spec = spec(&named.template, &named.default_user, &named.default_workdir);
        let mut envs: HashMap<_, _> = named.envs.clone().into_iter().collect();
        envs.extend(wanted.envs);
        let snapshot = Some(Arc::new(self.shared.named.start(&named)));
        Ok((spec, Creation { envs, image: None, snapshot }))
    }

    fn template(&self, wanted: &Wanted) -> Result<&Template, AgentError> {
        let template = self.shared.assets.templates.get(&wanted.template).ok_or_else(|| {
            let message = format!("there is no template {:?} on this host", wanted.template);
            AgentError::new(ErrorCode::NotFound, message)
        })?;
        check_disk(wanted, template.size_mb)?;
        Ok(template)
    }

    /// Creates a sandbox, or finds the one with this id, and waits until it runs or has failed.
    pub(crate) async fn create(self: &Arc<Self>, wanted: Wanted) -> Result<Handle, AgentError> {
        let handle = self.find_or_begin(wanted)?;
        let mut published = handle.published.clone();
        // An error means that the sandbox's task has died.
        let settled = published.wait_for(|published| published.state != State::Creating).await;
        let (state, failure) = settled.map_or((State::Gone, None), |now| (now.state, now.failure.clone()));
        match failure {
            None if state == State::Running => Ok(handle),
            Some(error) => Err(error),
            None => {
                Err(AgentError::new(ErrorCode::Conflict, "the sandbox was deleted while it was starting"))
            }
        }
    }

    /// Finds or creates under one lock: a concurrent request with the same id must not create a second
    /// sandbox, and concurrent requests must not exceed the maximum.
    fn find_or_begin(self: &Arc<Self>, wanted: Wanted) -> Result<Handle, AgentError> {
        let mut sandboxes = self.sandboxes();
        if let Some(present) = sandboxes.get(&wanted.id) {
            return Ok(present.clone());
        }
        let id = wanted.id.clone();
        let (spec, creation) = self.plan(wanted)?;
        // The others have their disks, and nothing that runs.
        let runs = |handle: &&Handle| {
            !matches!(handle.published.borrow().state, State::Paused | State::Failing | State::Failed)
        };
        let count = sandboxes.values().filter(runs).count();
        if count >= self.config.settings.limits.sandboxes as usize || sandboxes.len() >= RECORDS_MAX {
            let message = format!(
                "this host runs {count} sandboxes of {} with paused and failed ones, as many as it may: delete some",
                sandboxes.len()
            );
            return Err(AgentError::new(ErrorCode::NoHostsAvailable, message));
        }
        let shared = self.shared.clone();
        let record = Record::new(&shared.dir, &id);
        let sandbox = Sandbox { id: id.clone(), spec: Arc::new(spec), shared, record };
        let handle = actor::spawn(sandbox, Start::Create(creation, Span::current()));
        self.keep(&mut sandboxes, id, handle.clone());
        Ok(handle)
    }

    /// Pauses a sandbox; returns its handle.
    pub(crate) async fn pause(&self, id: &str) -> Result<Handle, AgentError> {
        let handle = self.get(id)?;
        handle.pause().await?;
        Ok(handle)
    }

    /// Resumes a sandbox, from its memory or by a boot from its disk; returns its handle.
    pub(crate) async fn resume(&self, id: &str, memory: bool) -> Result<Handle, AgentError> {
        let handle = self.get(id)?;
        handle.resume(memory).await?;
        Ok(handle)
    }

    /// Makes a named snapshot of a sandbox. Does nothing if there is one with this id.
    pub(crate) async fn snapshot(&self, id: &str, wish: Wish) -> Result<(), AgentError> {
        check_id("a snapshot", &wish.id)?;
        if self.shared.named.get(&wish.id).is_ok() {
            return Ok(());
        }
        self.get(id)?.snapshot(wish).await
    }

    /// Bytes that the disk of a named snapshot occupies; 0 if that cannot be told.
    pub(crate) async fn snapshot_disk_bytes(&self, id: &str) -> u64 {
        let Ok(named) = self.shared.named.get(id) else { return 0 };
        let measured = self.shared.volumes.usage(&named::volume_of(named.build)).await;
        measured.unwrap_or_else(|error| {
            tracing::debug!(%error, id, "the size of a snapshot's disk is not known");
            0
        })
    }

    /// Removes a named snapshot with all that was made of it; no error if the id is unknown.
    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), AgentError> {
        // First, so that an agent that dies in between leaves none without its snapshot.
        if let Ok(named) = self.shared.named.get(id) {
            self.shared.template_snapshots.discard_of_named(named.build).await;
        }
        self.shared.named.remove(id).await
    }

    /// Makes an image of the disk of a named snapshot. Does nothing if there is one with this id.
    pub(crate) async fn make_image(&self, snapshot: &str, image: &str) -> Result<Arc<Image>, AgentError> {
        check_id("an image", image)?;
        self.shared.images.make(image, snapshot, &self.shared.named).await
    }

    /// Imports the image of a registry for a team, unless it is here.
    pub(crate) async fn import_image(
        &self,
        team: &str,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<ImportedImage, AgentError> {
        self.shared.imports.import(team, reference, credentials).await
    }

    /// Returns how far the import of an image is for a team. `None` if none has begun.
    pub(crate) fn import_progress(&self, team: &str, reference: &str) -> Option<HowFar> {
        self.shared.imports.how_far(team, reference)
    }

    /// Imports an image of an archive, which comes in pieces, unless the image is here.
    pub(crate) async fn load_image<E: From<AgentError>>(
        &self,
        archive: Archive,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Loaded, E> {
        self.shared.imports.load(archive, pieces).await
    }

    /// Returns the ids of the images that were imported.
    pub(crate) fn imported_images(&self) -> Vec<String> {
        self.shared.images.imported()
    }

    /// Removes an image with the memory of sandboxes that booted from it; no error if the id is unknown.
    pub(crate) async fn delete_image(&self, id: &str) -> Result<(), AgentError> {
        self.shared.images.remove(id).await
    }

    /// Removes a sandbox; no error if the id is unknown.
    pub(crate) async fn destroy(&self, id: &str) -> Result<(), AgentError> {
        let handle = self.sandboxes().get(id).cloned();
        match handle {
            Some(handle) => handle.destroy().await,
            // Every sandbox directory has a handle, so nothing is left to remove.
            None => Ok(()),
        }
    }

    /// Returns the handle of a sandbox.
    pub(crate) fn get(&self, id: &str) -> Result<Handle, AgentError> {
        self.sandboxes().get(id).cloned().ok_or_else(|| unknown(id))
    }

    /// Returns all sandboxes.
    pub(crate) fn list(&self) -> Vec<(String, Handle)> {
        self.sandboxes().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect()
    }

    /// Counts the sandboxes that run, and those that are paused.
    pub(crate) fn running_and_paused(&self) -> (u32, u32) {
        let sandboxes = self.sandboxes();
        let count = |state: State| {
            sandboxes.values().filter(|handle| handle.published.borrow().state == state).count() as u32
        };
        (count(State::Running), count(State::Paused))
    }

    /// Lists the sandboxes that run, as they are measured.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let target = |(id, handle): (&String, &Handle)| {
            let Footprint { process, slot } = handle.published.borrow().footprint.clone()?;
            Some(Target { id: id.clone(), vcpus: handle.spec.vcpus, process, slot })
        };
        self.sandboxes().iter().filter_map(target).collect()
    }

    /// Lists the sandboxes whose guests run, and can be asked what they use.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let asked = |(id, handle): (&String, &Handle)| {
            let now = handle.published.borrow();
            let guest = now.guest.clone().filter(|_| !now.held)?;
            Some(Asked { id: id.clone(), spec: handle.spec.clone(), guest })
        };
        self.sandboxes().iter().filter_map(asked).collect()
    }

    /// Returns what a sandbox has used in so many seconds. It runs or is paused, or will be when the operation in work has ended.
    pub(crate) async fn measured(&self, id: &str, seconds: u32) -> Result<Vec<Sample>, AgentError> {
        let now = self.get(id)?.now();
        if now.runs() || now.state == State::Paused {
            return Ok(self.metrics.range(id, seconds).await);
        }
        let message = format!("sandbox {id} has no metrics: only those of running and paused ones are there");
        Err(AgentError::new(ErrorCode::NotFound, message))
    }

    /// Returns the connection to a running sandbox. Waits for one that this agent is about to adopt.
    pub(crate) async fn guest(&self, id: &str) -> Result<Guest, AgentError> {
        let now = self.get(id)?.begun(ADOPTION).await;
        if now.held {
            let message =
                format!("sandbox {id} is held: the host's disk is full; it goes on when there is room");
            return Err(AgentError::new(ErrorCode::InsufficientStorage, message));
        }
        now.guest.clone().ok_or_else(|| not_running(id, &now))
    }

    /// Total and free MiB of the volume store.
    pub(crate) async fn disk_mb(&self) -> Result<(u64, u64), AgentError> {
        let (total, free) = self.shared.volumes.space().await?;
        Ok((total >> 20, free >> 20))
    }

    /// Maximum size of one sandbox: virtual CPUs, memory in MiB, disk in MiB.
    pub(crate) fn most(&self) -> (u32, u64, u64) {
        let (limits, can) = (&self.config.settings.limits, self.shared.vmm.capabilities());
        let memory = limits.memory_mb.min(u64::from(can.max_memory_mb)).min(self.machine.memory_mb);
        (limits.vcpus.min(can.max_vcpus), memory, limits.disk_size_mb)
    }
}

/// What was asked for, or its own value if nothing was.
fn given_or(given: &str, own: &str) -> String {
    let chosen = if given.is_empty() { own } else { given };
    chosen.to_owned()
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && path.chars().count() <= PATH_MAX
}

/// Fails if the disk is too small for its template.
fn check_disk(wanted: &Wanted, size_mb: u64) -> Result<(), AgentError> {
    let Wanted { template, disk_size_mb, .. } = wanted;
    if *disk_size_mb >= size_mb {
        return Ok(());
    }
    let message =
        format!("disk_size_mb {disk_size_mb} is smaller than template {template:?} of {size_mb} MiB");
    Err(AgentError::new(ErrorCode::InvalidRequest, message))
}

fn unknown(id: &str) -> AgentError {
    AgentError::new(ErrorCode::NotFound, format!("this host has no sandbox {id}"))
}

fn not_running(id: &str, now: &Published) -> AgentError {
    let why = match now.state {
        State::Creating => "is still starting",
        State::Running => "is running",
        State::Pausing => "is being paused; try again when it is, and resume it",
        State::Paused => "is paused; resume it",
        State::Resuming => "is being resumed; try again in a moment",
        State::Destroying => "is being deleted",
        State::Failing | State::Failed => "has failed; delete it",
        State::Unknown => {
            let cause = now.failure.as_ref().map_or("it is not understood", |cause| cause.message.as_str());
            return AgentError::new(ErrorCode::InvalidState, cause);
        }
        State::Gone => "is gone",
    };
    AgentError::new(ErrorCode::InvalidState, format!("sandbox {id} {why}"))
}

fn token() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_directories_are_absolute() {
        assert!(is_absolute("/") && is_absolute("/app/x y"));
        for path in ["", "app", "~", "./app", "/a\0b", &format!("/{}", "x".repeat(PATH_MAX))] {
            assert!(!is_absolute(path), "{path:?}");
        }
    }

    #[test]
    fn what_is_asked_for_wins() {
        assert_eq!([given_or("a", "b"), given_or("", "b"), given_or("a", "")], ["a", "b", "a"]);
    }
}
