// SPDX-License-Identifier: Apache-2.0
//! Creation of sandboxes: placed and recorded first, then created by the agent, in a task that does not
//! depend on the client's connection.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use serde::Serialize;
use uuid::Uuid;
use wrenn_api::{CreateSandbox, ErrorCode, HostId, OnTimeout, Sandbox, SandboxId, SandboxStatus};
use wrenn_rpc::{
    fault::Of,
    host::v1::{CreateRequest, CreateResponse, DestroyRequest},
};

use super::{
    Sandboxes,
    command::check_envs,
    destroy::destroy,
    lookup::{agent, find},
    metadata, timeout,
};
use crate::{
    agents::{deadline, within},
    artifacts,
    by::By,
    db::{
        hosts::{self, EJECTED, Ejected},
        idempotency::{self, First, Made},
        sandboxes::{self, Change, New, Row},
    },
    error::Fault,
    fault,
    idempotency::{FIRST, Idempotency, Key, LOOK, TRIES, contested, mismatch},
    lease::Lease,
    names,
    place::{Need, full},
    quotas,
    state::App,
    telemetry,
    templates::{Origin, ROOM_MB, Sizes, Source, within_bounds},
};

/// A valid request, with defaults; its meaning for an idempotency key.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Wanted {
    /// Name of the template, or whole name of an image of a registry, which is never that of a template.
    template: String,
    vcpus: u32,
    memory_mb: u32,
    disk_size_mb: u32,
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    name: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    timeout_sec: u32,
    #[serde(skip_serializing_if = "is_default")]
    on_timeout: OnTimeout,
    #[serde(skip_serializing_if = "is_default")]
    auto_resume: bool,
    #[serde(skip_serializing_if = "is_default")]
    public_ports: bool,
    /// Named snapshot that it goes on from, and the snapshot's host.
    #[serde(skip_serializing_if = "is_default")]
    snapshot: Option<(Uuid, Uuid)>,
    /// What it starts from, and the sizes that it has by that. A version of a template does not belong to the meaning: a
    /// repeated request gets the sandbox of the first one also after the tag was moved.
    #[serde(skip)]
    origin: Origin,
    #[serde(skip)]
    sizes: Sizes,
    #[serde(skip)]
    disk_was_asked: bool,
    /// Who creates it.
    #[serde(skip)]
    by: By,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Wanted {
    /// Validates a request for a sandbox that starts from this.
    fn check(request: CreateSandbox, origin: Origin) -> Result<Self, Fault> {
        let request = match origin.source {
            Source::Snapshot { sizes, .. } => sized_as(request, &origin, sizes)?,
            Source::Platform | Source::Image { .. } | Source::Registry => request,
        };
        check_envs(&request.envs)?;
        names::check_labels(&request.labels)?;
        request.name.iter().try_for_each(|name| names::check_sandbox_name(name))?;
        let asked = Sizes {
            vcpus: within_bounds("vcpus", request.vcpus, 1, 1, 64)?,
            memory_mb: within_bounds("memory_mb", request.memory_mb, 512, 128, 1 << 20)?,
            disk_size_mb: within_bounds("disk_size_mb", request.disk_size_mb, 5120, 512, 1 << 20)?,
        };
        let snapshot = match origin.source {
            Source::Snapshot { id, host, .. } if !origin.is_version => Some((id, host)),
            _ => None,
        };
        Ok(Self {
            template: origin.template.clone(),
            vcpus: asked.vcpus,
            memory_mb: asked.memory_mb,
            disk_size_mb: asked.disk_size_mb,
            envs: request.envs,
            name: request.name,
            labels: request.labels,
            timeout_sec: timeout::check(request.timeout_sec)?.unwrap_or_default(),
            on_timeout: request.on_timeout.unwrap_or_default(),
            auto_resume: request.auto_resume.unwrap_or_default(),
            public_ports: request.public_ports.unwrap_or_default(),
            snapshot,
            sizes: sizes_from(&origin, asked, request.disk_size_mb.is_some())?,
            origin,
            disk_was_asked: request.disk_size_mb.is_some(),
            by: By::SYSTEM,
        })
    }

    /// Names who creates it.
    pub(super) fn by(self, by: By) -> Self {
        Self { by, ..self }
    }

    /// Validates a request for a sandbox that starts from an image of a registry, asked for by this reference, whose whole name
    /// is `name`.
    pub(super) fn of_registry(request: CreateSandbox, reference: &str, name: String) -> Result<Self, Fault> {
        Ok(Self { template: name, ..Self::check(request, Origin::of_registry(reference))? })
    }

    /// Returns the same request for what the image has turned out to be.
    pub(super) fn imported(&self, origin: Origin) -> Result<Self, Fault> {
        let mut envs = origin.envs.clone();
        envs.extend(self.envs.clone());
        check_envs(&envs).map_err(|fault| Fault {
            message: format!("with the variables of the image: {}", fault.message),
            ..fault
        })?;
        let (vcpus, memory_mb, disk_size_mb) = (self.vcpus, self.memory_mb, self.disk_size_mb);
        let sizes = sizes_from(&origin, Sizes { vcpus, memory_mb, disk_size_mb }, self.disk_was_asked)?;
        Ok(Self { origin, sizes, ..self.clone() })
    }

    /// What it needs of a host.
    pub(super) fn need(&self) -> Need<'_> {
        Need {
            template: &self.origin.template,
            vcpus: self.sizes.vcpus as i32,
            memory_mb: self.sizes.memory_mb as i32,
            disk_size_mb: self.sizes.disk_size_mb as i32,
            on: self.origin.hosts(),
        }
    }
}

/// Fails if a request asks for other sizes than those of the snapshot that it starts from. Gives it those of a named one.
fn sized_as(request: CreateSandbox, origin: &Origin, sizes: Sizes) -> Result<CreateSandbox, Fault> {
    let all = [
        ("vcpus", request.vcpus, sizes.vcpus),
        ("memory_mb", request.memory_mb, sizes.memory_mb),
        ("disk_size_mb", request.disk_size_mb, sizes.disk_size_mb),
    ];
    for (field, given, has) in all {
        if let Some(given) = given.filter(|given| *given != has) {
            let message = format!("{field} is {given}, and {:?} has {has}: leave it out", origin.template);
            return Err(Fault::invalid(message));
        }
    }
    if origin.is_version {
        return Ok(request);
    }
    Ok(CreateSandbox {
        vcpus: Some(sizes.vcpus),
        memory_mb: Some(sizes.memory_mb),
        disk_size_mb: Some(sizes.disk_size_mb),
        ..request
    })
}

/// Returns the sizes of a sandbox for which these were asked. Fails if its disk was asked for and is too small for its image.
fn sizes_from(origin: &Origin, asked: Sizes, disk_was_asked: bool) -> Result<Sizes, Fault> {
    match origin.source {
        Source::Snapshot { sizes, .. } => Ok(sizes),
        Source::Image { least_mb, .. } if disk_was_asked && asked.disk_size_mb < least_mb => {
            let (disk, template) = (asked.disk_size_mb, &origin.template);
            let message = format!("disk_size_mb is {disk}: the image of {template:?} needs {least_mb}");
            Err(Fault::invalid(message))
        }
        Source::Image { least_mb, .. } if !disk_was_asked => {
            // On a disk that an imported image fills there is no room for anything else.
            let room = if origin.image.is_some() { ROOM_MB } else { 0 };
            let disk_size_mb = asked.disk_size_mb.max(least_mb.saturating_add(room));
            Ok(Sizes { disk_size_mb, ..asked })
        }
        Source::Platform | Source::Image { .. } | Source::Registry => Ok(asked),
    }
}

impl Sandboxes {
    /// Creates a sandbox from this, whatever its request names, and waits until it runs. Versions and steps of builds have no
    /// name that means them for ever.
    pub(crate) async fn create_from(
        &self,
        team: Uuid,
        new: CreateSandbox,
        origin: Origin,
    ) -> Result<Sandbox, Fault> {
        Ok(create_once(&self.app, team, Wanted::check(new, origin)?, None).await?.public())
    }
}

/// Creates a sandbox from a template; with an idempotency key at most once.
pub(super) async fn create(
    app: &App,
    team: Uuid,
    new: CreateSandbox,
    idempotency: Option<Idempotency>,
    by: By,
) -> Result<Row, Fault> {
    let origin = Origin::resolve(app, team, new.template.as_deref()).await?;
    create_once(app, team, Wanted::check(new, origin)?.by(by), idempotency).await
}

async fn create_once(
    app: &App,
    team: Uuid,
    wanted: Wanted,
    idempotency: Option<Idempotency>,
) -> Result<Row, Fault> {
    let key = idempotency.map(|idempotency| idempotency.of(&wanted)).transpose()?;
    let wanted = Arc::new(wanted);
    for _ in 0..TRIES {
        if let Some(row) = before(app, team, key.as_ref()).await? {
            return Ok(row);
        }
        if let Some(row) = begin(app, team, wanted.clone(), key.clone()).await? {
            return Ok(row);
        }
        // Another request with this key was faster.
    }
    Err(contested())
}

/// Returns the sandbox that an earlier request with this key has made; `None` if there was none.
pub(super) async fn before(app: &App, team: Uuid, key: Option<&Key>) -> Result<Option<Row>, Fault> {
    let Some(key) = key else { return Ok(None) };
    match idempotency::first(&app.db, team, &key.text).await? {
        Some(first) => repeat(app, team, key, first).await,
        None => Ok(None),
    }
}

/// Creates a sandbox in a task of its own; `None` if its key is taken.
pub(super) async fn begin(
    app: &App,
    team: Uuid,
    wanted: Arc<Wanted>,
    key: Option<Key>,
) -> Result<Option<Row>, Fault> {
    // A client that disconnects must not leave a sandbox that is recorded but not created.
    let task = crate::request_trace::spawn({
        let app = app.clone();
        async move {
            let begun = Instant::now();
            let made = claim_and_finish(app, team, &wanted, key.as_ref()).await;
            match &made {
                Ok(Some(_)) => telemetry::created(begun.elapsed(), Ok(())),
                Ok(None) => {}
                Err(fault) => telemetry::created(begun.elapsed(), Err(fault.code)),
            }
            made
        }
    });
    task.await.map_err(|error| {
        tracing::error!(%error, "the task of a create failed");
        Fault::new(ErrorCode::InternalError, "the create was interrupted; look at the list of sandboxes")
    })?
}

/// Records a sandbox and creates it; `None` if its key is taken.
async fn claim_and_finish(
    app: App,
    team: Uuid,
    wanted: &Wanted,
    key: Option<&Key>,
) -> Result<Option<Row>, Fault> {
    let begun = Instant::now();
    let Some((row, address)) = claim(&app, team, wanted, key).await? else { return Ok(None) };
    telemetry::placed(begun.elapsed());
    app.outbox.notify_one();
    fault::point("create.inserted");
    finish(app, row, &address, wanted).await.map(Some)
}

/// Chooses a host, which may have to get the template first, and records the sandbox with its key; `None` if the key is taken.
async fn claim(
    app: &App,
    team: Uuid,
    wanted: &Wanted,
    key: Option<&Key>,
) -> Result<Option<(Row, String)>, Fault> {
    let need = wanted.need();
    for host in artifacts::hosts_for(app, &wanted.origin, &need).await? {
        artifacts::note_use(app, &wanted.origin, host).await?;
        match claim_on(app, team, host, wanted, key).await? {
            Claim::Made(row, address) => return Ok(Some((*row, address))),
            Claim::KeyTaken => return Ok(None),
            Claim::Full => {}
        }
    }
    Err(full())
}

/// Result of an attempt to record a sandbox.
enum Claim {
    /// Recorded, on the host at this address.
    Made(Box<Row>, String),
    /// Another request has the key.
    KeyTaken,
    /// The host was filled up meanwhile.
    Full,
}

async fn claim_on(
    app: &App,
    team: Uuid,
    host: Uuid,
    wanted: &Wanted,
    key: Option<&Key>,
) -> Result<Claim, Fault> {
    let (id, need) = (SandboxId::new().uuid(), wanted.need());
    let mut tx = app.db.begin().await?;
    quotas::lock(&mut tx, team, &app.limits).await?.check_create(&mut tx, &need).await?;
    if let Some(key) = key
        && !idempotency::claim(&mut tx, team, &key.text, &key.fingerprint, Made::Sandbox(id)).await?
    {
        return Ok(Claim::KeyTaken);
    }
    // Last, because from here on all creates on this host wait until the transaction ends.
    let Some(address) = hosts::reserve(&mut tx, host, need.vcpus, need.memory_mb).await? else {
        return Ok(Claim::Full);
    };
    let new = New {
        id,
        team_id: team,
        host_id: host,
        template: need.template,
        image: wanted.origin.image.as_ref().and_then(|image| serde_json::to_value(image).ok()),
        vcpus: need.vcpus,
        memory_mb: need.memory_mb,
        disk_size_mb: need.disk_size_mb,
        name: wanted.name.as_deref(),
        labels: &wanted.labels,
        timeout_sec: wanted.timeout_sec as i32,
        on_timeout: wanted.on_timeout,
        auto_resume: wanted.auto_resume,
        public_ports: wanted.public_ports,
        by: wanted.by,
    };
    let Some(row) = sandboxes::insert(&mut tx, &new, app.limits.lease).await? else {
        return Err(names::taken(wanted.name.as_deref().unwrap_or_default()));
    };
    tx.commit().await?;
    Ok(Claim::Made(Box::new(row), address))
}

/// Calls the agent to create it, and records the result.
async fn finish(app: App, row: Row, address: &str, wanted: &Wanted) -> Result<Row, Fault> {
    let lease = Lease::of_sandbox(&app, row.known());
    let result = make(&app, &row, address, wanted).await.map_err(|error| error.leaving(row.public_id()));
    drop(lease);
    app.outbox.notify_one();
    result
}

/// Counts the failure, and logs an ejection of the host: otherwise nobody would notice that there is one host
/// less.
async fn note_failure(app: &App, host: Uuid, address: &str, error: &Fault) {
    let ejected = hosts::create_failed(&app.db, host).await;
    let (host, seconds) = (HostId::from(host), EJECTED.as_secs());
    match ejected {
        Ok(None) => {}
        Ok(Some(Ejected { failures })) => tracing::error!(
            %host, address, failures, seconds, last = %error,
            "creates fail on a host, which gets no more for a while: see the log of its agent, and `wrenn doctor` there"
        ),
        Err(error) => tracing::warn!(%host, %error, "a failed create was not counted against its host"),
    }
}

/// Returns whether a failed create counts against its host: not if the template or the request would fail on
/// any host.
fn is_of_host(of: Option<Of>, code: ErrorCode) -> bool {
    let failed = matches!(code, ErrorCode::AgentError | ErrorCode::HostUnavailable | ErrorCode::Timeout);
    failed && matches!(of, None | Some(Of::OF_HOST | Of::OF_UNSPECIFIED))
}

async fn make(app: &App, row: &Row, address: &str, wanted: &Wanted) -> Result<Row, Fault> {
    let origin = &wanted.origin;
    let (snapshot_id, image_id) = origin.ids();
    // Those of the request come last, and win.
    let envs = origin.envs.iter().chain(&wanted.envs);
    let request = CreateRequest {
        sandbox_id: row.public_id().to_string(),
        template: origin.name().to_owned(),
        vcpus: row.vcpus as u32,
        memory_mb: row.memory_mb as u64,
        disk_size_mb: row.disk_size_mb as u64,
        envs: envs.map(|(name, value)| (name.clone(), value.clone())).collect(),
        snapshot_id,
        image_id,
        default_user: origin.default_user.clone(),
        default_workdir: origin.workdir.clone(),
        ..Default::default()
    };
    let host = row.host_id.unwrap_or_default();
    let agent = app.agents.at(host.into(), address);
    let made = agent.create_with_options(request, within(app.limits.create)).await;
    fault::point("create.made");
    match made {
        Ok(response) => made_it(app, row, host, response.into_owned()).await,
        Err(cause) => {
            let of = wrenn_rpc::fault::of(&cause).map(|(_, of)| of);
            let error = Fault::from(cause);
            if is_of_host(of, error.code) {
                note_failure(app, host, address, &error).await;
            }
            artifacts::note_failure(app, origin, host, error.code).await;
            give_up(app, row, &error).await?.ok_or(error)
        }
    }
}

/// Records that it runs. If this fails, the sandbox continues to run: the reconciler records it later, and a
/// repeated request with the same key then returns it.
async fn made_it(app: &App, row: &Row, host: Uuid, response: CreateResponse) -> Result<Row, Fault> {
    let change = Change { metadata: metadata(response), ..Change::to(SandboxStatus::Running) };
    let changed = sandboxes::change(&app.db, &row.known(), change, app.limits.lease).await?;
    fault::point("create.running");
    if let Err(error) = hosts::create_succeeded(&app.db, host).await {
        tracing::warn!(host = %HostId::from(host), %error, "a create that went well was not counted for its host");
    }
    match changed {
        Some(row) => Ok(row),
        None => moved_on(app, row).await,
    }
}

/// Records that it failed; returns the sandbox if it runs all the same.
async fn give_up(app: &App, row: &Row, error: &Fault) -> Result<Option<Row>, Fault> {
    let change = Change::error(error.code, error.message.clone());
    if sandboxes::change(&app.db, &row.known(), change, app.limits.lease).await?.is_none() {
        return moved_on(app, row).await.map(Some);
    }
    // The sandbox, which the agent may still be creating, is not wanted any more. If this call does not reach
    // the agent, the reconciler removes it.
    if let Ok(client) = agent(app, row.host_id.unwrap_or_default()).await {
        let destroy = DestroyRequest { sandbox_id: row.public_id().to_string(), ..Default::default() };
        let _ = client.destroy_with_options(destroy, within(deadline::STATE)).await;
    }
    Ok(None)
}

/// Handles a concurrent change of the sandbox: the reconciler finished it, or a client deleted it.
async fn moved_on(app: &App, row: &Row) -> Result<Row, Fault> {
    let now = find(app, row.team_id, row.public_id()).await?;
    match now.status() {
        SandboxStatus::Running
        | SandboxStatus::Pausing
        | SandboxStatus::Paused
        | SandboxStatus::Resuming
        | SandboxStatus::Missing => Ok(now),
        SandboxStatus::Error => Err(why_failed(&now)),
        SandboxStatus::Pending
        | SandboxStatus::Starting
        | SandboxStatus::Stopping
        | SandboxStatus::Stopped => {
            let message = format!("sandbox {} was deleted while it was starting", row.public_id());
            Err(Fault::new(ErrorCode::Conflict, message))
        }
    }
}

/// Returns the error of a failed sandbox.
fn why_failed(row: &Row) -> Fault {
    let code = row.error_code.as_deref().and_then(|code| code.parse().ok());
    Fault::new(code.unwrap_or(ErrorCode::AgentError), row.error_message.clone().unwrap_or_default())
}

/// Returns the metadata of a new sandbox.
fn metadata(response: CreateResponse) -> BTreeMap<String, String> {
    telemetry::create_steps(&response.timings);
    let sandbox = response.sandbox.into_option().unwrap_or_default();
    metadata::of(sandbox, "create", response.timings)
}

/// Returns the sandbox of the first request with this key. `None` if that request failed temporarily: the key
/// is free again.
async fn repeat(app: &App, team: Uuid, key: &Key, first: First) -> Result<Option<Row>, Fault> {
    key.check(&first)?;
    let id = SandboxId::from(first.sandbox_id.ok_or_else(mismatch)?);
    let begin = tokio::time::Instant::now();
    loop {
        let row = find(app, team, id).await?;
        match (row.status(), row.started_at) {
            (SandboxStatus::Starting | SandboxStatus::Pending, _) => {}
            (
                SandboxStatus::Running
                | SandboxStatus::Pausing
                | SandboxStatus::Paused
                | SandboxStatus::Resuming
                | SandboxStatus::Missing,
                _,
            )
            | (SandboxStatus::Error, Some(_)) => return Ok(Some(row)),
            (SandboxStatus::Stopping | SandboxStatus::Stopped, _) => {
                let message = format!(
                    "the first request with this Idempotency-Key made sandbox {id}, which was deleted since: use a new key \
                     for a new sandbox"
                );
                return Err(Fault::new(ErrorCode::IdempotencySandboxDeleted, message));
            }
            (SandboxStatus::Error, None) => {
                let error = why_failed(&row);
                if is_final(error.code) {
                    return Err(error.leaving(row.public_id()));
                }
                idempotency::release(&app.db, team, &key.text, row.id).await?;
                // The client may never have learnt of it, and gets another one.
                destroy(app, team, id, By::SYSTEM).await?;
                return Ok(None);
            }
        }
        if begin.elapsed() > FIRST {
            let message = format!(
                "sandbox {id} of the first request with this Idempotency-Key is still starting: ask again in a moment"
            );
            return Err(Fault::new(ErrorCode::IdempotencyInProgress, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns whether an error of a create is permanent.
fn is_final(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::InvalidRequest | ErrorCode::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        idempotency::fingerprint,
        images::{ImageConfig, Imported},
        place::On,
    };

    fn checked(request: CreateSandbox) -> Result<Wanted, Fault> {
        Wanted::check(request, Origin::of_platform("minimal"))
    }

    fn of_version(source: Source) -> Origin {
        Origin { source, is_version: true, ..Origin::of_platform("web:v1") }
    }

    #[test]
    fn absurd_sizes_are_refused_and_defaults_filled_in() {
        let refused = [
            CreateSandbox { vcpus: Some(0), ..Default::default() },
            CreateSandbox { vcpus: Some(65), ..Default::default() },
            CreateSandbox { memory_mb: Some(127), ..Default::default() },
            CreateSandbox { disk_size_mb: Some(u32::MAX), ..Default::default() },
        ];
        for request in refused {
            assert!(checked(request).is_err());
        }
        let wanted = checked(CreateSandbox::default()).expect("valid");
        assert_eq!(wanted.sizes, Sizes { vcpus: 1, memory_mb: 512, disk_size_mb: 5120 });
    }

    #[test]
    fn a_snapshot_has_its_sizes_and_an_image_its_least_disk() {
        let (id, host) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sizes = Sizes { vcpus: 2, memory_mb: 1024, disk_size_mb: 8192 };
        let snapshot = of_version(Source::Snapshot { id, host, sizes });
        let image = |least_mb| of_version(Source::Image { id, host, least_mb });
        let check = |origin: Origin, vcpus, disk_size_mb| {
            let request = CreateSandbox { vcpus, disk_size_mb, ..Default::default() };
            Wanted::check(request, origin).map(|wanted| wanted.sizes).map_err(|error| error.message)
        };
        assert_eq!(check(snapshot.clone(), None, None), Ok(sizes));
        assert_eq!(check(snapshot.clone(), Some(2), Some(8192)), Ok(sizes));
        let told = "vcpus is 1, and \"web:v1\" has 2: leave it out".to_owned();
        assert_eq!(check(snapshot, Some(1), None), Err(told));
        let with_disk = |disk_size_mb| Sizes { vcpus: 1, memory_mb: 512, disk_size_mb };
        assert_eq!(check(image(912), None, None), Ok(with_disk(5120)));
        assert_eq!(check(image(912), None, Some(912)), Ok(with_disk(912)));
        assert_eq!(check(image(6000), None, None), Ok(with_disk(6000)));
        let told = "disk_size_mb is 911: the image of \"web:v1\" needs 912".to_owned();
        assert_eq!(check(image(912), None, Some(911)), Err(told));
    }

    fn imported(digest: &str, size_mb: u32) -> Imported {
        let config = ImageConfig {
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            user: "app".to_owned(),
            workdir: "/srv".to_owned(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
        };
        Imported {
            image_id: Uuid::from_u128(3),
            host: Uuid::from_u128(9),
            digest: digest.to_owned(),
            size_mb,
            config,
            skipped: 0,
            first_skipped: Vec::new(),
        }
    }

    #[test]
    fn an_image_of_a_registry_has_room_on_its_disk_and_its_name_is_its_meaning() {
        let asked = |reference: &str, disk_size_mb| {
            let request = CreateSandbox { disk_size_mb, ..Default::default() };
            Wanted::of_registry(request, reference, "docker.io/library/a:latest".to_owned()).expect("valid")
        };
        let disk = |wanted: &Wanted, size_mb| {
            let origin = Origin::of_image("a", &imported("sha256:0", size_mb));
            wanted.imported(origin).map(|wanted| wanted.sizes.disk_size_mb).map_err(|fault| fault.message)
        };
        let (usual, given) = (asked("a", None), asked("a:latest", Some(5000)));
        assert_eq!((disk(&usual, 100), disk(&usual, 5000)), (Ok(5120), Ok(6024)));
        assert_eq!(disk(&given, 5000), Ok(5000));
        assert!(disk(&given, 5001).is_err_and(|told| told.contains("\"a\" needs 5001")));
        assert_eq!(usual.need().on, On::Any);
        let first = usual.imported(Origin::of_image("a", &imported("sha256:0", 1))).expect("valid");
        let moved = usual.imported(Origin::of_image("a", &imported("sha256:1", 2))).expect("valid");
        assert_eq!((first.need().template, first.need().on), ("a", On::Hosts(&[Uuid::from_u128(9)])));
        let print = |wanted: &Wanted| fingerprint(wanted).expect("a fingerprint");
        // What the registry has under the name may change, and a name can be written out.
        assert!(print(&first) == print(&moved) && print(&first) == print(&asked("a:latest", None)));
        assert_ne!(print(&first), print(&checked(CreateSandbox::default()).expect("valid")));
    }

    #[test]
    fn a_moved_tag_does_not_change_the_meaning() {
        let print = |origin: Origin| {
            let request = CreateSandbox { template: Some("web:v1".into()), ..Default::default() };
            fingerprint(&Wanted::check(request, origin).expect("valid")).expect("a fingerprint")
        };
        let host = Uuid::from_u128(9);
        let sizes = Sizes { vcpus: 2, memory_mb: 1024, disk_size_mb: 8192 };
        let snapshot = |id| Source::Snapshot { id: Uuid::from_u128(id), host, sizes };
        let image = Source::Image { id: Uuid::from_u128(3), host, least_mb: 6000 };
        let first = print(of_version(snapshot(1)));
        assert_eq!(first, print(of_version(snapshot(2))));
        assert_eq!(first, print(of_version(image)));
        // The name of a snapshot means another one only after it was deleted.
        let named = |id| Origin { source: snapshot(id), ..Origin::of_platform("mine") };
        assert_ne!(print(named(1)), print(named(2)));
    }

    #[test]
    fn a_fingerprint_is_of_the_meaning() {
        let fingerprint = |text: &str| {
            let request = serde_json::from_str(text).expect("a request");
            let wanted = checked(request).expect("valid");
            fingerprint(&wanted).expect("a fingerprint")
        };
        let all = [
            "{}",
            r#"{"vcpus": 1, "memory_mb": 512}"#,
            r#"{"memory_mb": 512, "vcpus": 1, "template": "minimal", "disk_size_mb": 5120, "envs": {}}"#,
            r#"{"vcpus": null}"#,
        ];
        assert!(all.iter().all(|text| fingerprint(text) == fingerprint("{}")));
        let (one, other) = (r#"{"envs": {"A": "1", "B": "2"}}"#, r#"{"envs": {"B": "2", "A": "1"}}"#);
        assert_eq!(fingerprint(one), fingerprint(other));
        assert_ne!(fingerprint(one), fingerprint(r#"{"envs": {"A": "2", "B": "1"}}"#));
        assert_ne!(fingerprint("{}"), fingerprint(r#"{"vcpus": 2}"#));
    }

    #[test]
    fn only_a_hosts_own_faults_count_against_it() {
        assert!(is_of_host(Some(Of::OF_HOST), ErrorCode::AgentError));
        assert!(is_of_host(None, ErrorCode::HostUnavailable));
        assert!(!is_of_host(Some(Of::OF_TEMPLATE), ErrorCode::AgentError));
        assert!(!is_of_host(Some(Of::OF_CALLER), ErrorCode::AgentError));
        assert!(!is_of_host(Some(Of::OF_HOST), ErrorCode::InsufficientStorage));
    }
}
