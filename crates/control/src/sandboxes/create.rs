// SPDX-License-Identifier: Apache-2.0
//! Creation of sandboxes: placed and recorded first, then created by the agent, in a task that does not
//! depend on the client's connection.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use uuid::Uuid;
use wrenn_api::{CreateSandbox, ErrorCode, HostId, OnTimeout, SandboxId, SandboxStatus};
use wrenn_rpc::{
    fault::Of,
    host::v1::{CreateRequest, CreateResponse, DestroyRequest},
};

use super::{
    command::check_envs,
    destroy::destroy,
    lookup::{agent, find},
    metadata,
    place::{Need, full, place},
    timeout,
};
use crate::{
    agents::{deadline, within},
    db::{
        hosts::{self, EJECTED, Ejected},
        idempotency::{self, First, Made},
        sandboxes::{self, Change, New, Row},
        snapshots,
    },
    error::Fault,
    fault,
    idempotency::{FIRST, Idempotency, Key, LOOK, TRIES, contested, mismatch},
    lease::Lease,
    names::{self, is_template_name},
    state::App,
};

/// A valid request, with defaults; its meaning for an idempotency key.
#[derive(Debug, Serialize)]
struct Wanted {
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
    /// Snapshot that it goes on from, and the snapshot's host.
    #[serde(skip_serializing_if = "is_default")]
    snapshot: Option<(Uuid, Uuid)>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Wanted {
    /// Validates a request; `snapshot` is what its template names, if it is no template of the platform.
    fn check(request: CreateSandbox, snapshot: Option<snapshots::Row>) -> Result<Self, Fault> {
        let request = match &snapshot {
            Some(snapshot) => sized_as(request, snapshot)?,
            None => request,
        };
        let template = request.template.unwrap_or_else(|| "minimal".to_owned());
        if !is_template_name(&template) {
            return Err(Fault::invalid(format!("template: {}", names::RULE)));
        }
        check_envs(&request.envs)?;
        names::check_labels(&request.labels)?;
        request.name.iter().try_for_each(|name| names::check_sandbox_name(name))?;
        Ok(Self {
            template,
            vcpus: within_bounds("vcpus", request.vcpus, 1, 1, 64)?,
            memory_mb: within_bounds("memory_mb", request.memory_mb, 512, 128, 1 << 20)?,
            disk_size_mb: within_bounds("disk_size_mb", request.disk_size_mb, 5120, 512, 1 << 20)?,
            envs: request.envs,
            name: request.name,
            labels: request.labels,
            timeout_sec: timeout::check(request.timeout_sec)?.unwrap_or_default(),
            on_timeout: request.on_timeout.unwrap_or_default(),
            auto_resume: request.auto_resume.unwrap_or_default(),
            public_ports: request.public_ports.unwrap_or_default(),
            snapshot: snapshot.map(|snapshot| (snapshot.id, snapshot.host_id)),
        })
    }

    fn need(&self) -> Need<'_> {
        Need {
            template: &self.template,
            vcpus: self.vcpus as i32,
            memory_mb: self.memory_mb as i32,
            disk_size_mb: self.disk_size_mb as i32,
            host: self.snapshot.map(|(_, host)| host),
        }
    }
}

fn within_bounds(field: &str, value: Option<u32>, default: u32, min: u32, max: u32) -> Result<u32, Fault> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(Fault::invalid(format!("{field} is {value}: it must be {min} to {max}")))
}

/// Gives a request the sizes of a snapshot. Fails if it asks for others.
fn sized_as(request: CreateSandbox, snapshot: &snapshots::Row) -> Result<CreateSandbox, Fault> {
    let sizes = [
        ("vcpus", request.vcpus, snapshot.vcpus),
        ("memory_mb", request.memory_mb, snapshot.memory_mb),
        ("disk_size_mb", request.disk_size_mb, snapshot.disk_size_mb),
    ];
    for (field, given, has) in sizes {
        if given.is_some_and(|given| i64::from(given) != i64::from(has)) {
            let message = format!(
                "{field} is {}, and snapshot {:?} has {has}: leave it out",
                given.unwrap_or_default(),
                snapshot.name
            );
            return Err(Fault::invalid(message));
        }
    }
    Ok(CreateSandbox {
        vcpus: Some(snapshot.vcpus as u32),
        memory_mb: Some(snapshot.memory_mb as u32),
        disk_size_mb: Some(snapshot.disk_size_mb as u32),
        ..request
    })
}

/// Creates a sandbox; with an idempotency key at most once.
pub(super) async fn create(
    app: &App,
    team: Uuid,
    new: CreateSandbox,
    idempotency: Option<Idempotency>,
) -> Result<Row, Fault> {
    let snapshot = match &new.template {
        Some(name) => snapshots::find(&app.db, team, name).await?,
        None => None,
    };
    let wanted = Wanted::check(new, snapshot)?;
    let key = idempotency.map(|idempotency| idempotency.of(&wanted)).transpose()?;
    let wanted = Arc::new(wanted);
    for _ in 0..TRIES {
        if let Some(key) = &key
            && let Some(first) = idempotency::first(&app.db, team, &key.text).await?
            && let Some(row) = repeat(app, team, key, first).await?
        {
            return Ok(row);
        }
        if let Some(row) = begin(app, team, wanted.clone(), key.clone()).await? {
            return Ok(row);
        }
        // Another request with this key was faster.
    }
    Err(contested())
}

/// Creates a sandbox in a task of its own; `None` if its key is taken.
async fn begin(app: &App, team: Uuid, wanted: Arc<Wanted>, key: Option<Key>) -> Result<Option<Row>, Fault> {
    // A client that disconnects must not leave a sandbox that is recorded but not created.
    let task = crate::request_trace::spawn({
        let app = app.clone();
        async move {
            let Some((row, address)) = claim(&app, team, &wanted, key.as_ref()).await? else {
                return Ok(None);
            };
            app.outbox.notify_one();
            fault::point("create.inserted");
            finish(app, row, &address, &wanted).await.map(Some)
        }
    });
    task.await.map_err(|error| {
        tracing::error!(%error, "the task of a create failed");
        Fault::new(ErrorCode::InternalError, "the create was interrupted; look at the list of sandboxes")
    })?
}

/// Chooses a host and records the sandbox with its key; `None` if the key is taken.
async fn claim(
    app: &App,
    team: Uuid,
    wanted: &Wanted,
    key: Option<&Key>,
) -> Result<Option<(Row, String)>, Fault> {
    let need = wanted.need();
    for host in place(&hosts::candidates(&app.db).await?, &need)? {
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
    let count = sandboxes::count(&mut tx, team).await?;
    if count >= i64::from(app.limits.sandboxes_per_team) {
        let message = format!("the team has {count} sandboxes, as many as it may: delete some");
        return Err(Fault::new(ErrorCode::TooManyRequests, message));
    }
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
        vcpus: need.vcpus,
        memory_mb: need.memory_mb,
        disk_size_mb: need.disk_size_mb,
        name: wanted.name.as_deref(),
        labels: &wanted.labels,
        timeout_sec: wanted.timeout_sec as i32,
        on_timeout: wanted.on_timeout,
        auto_resume: wanted.auto_resume,
        public_ports: wanted.public_ports,
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
    let request = CreateRequest {
        sandbox_id: row.public_id().to_string(),
        template: row.template.clone(),
        vcpus: row.vcpus as u32,
        memory_mb: row.memory_mb as u64,
        disk_size_mb: row.disk_size_mb as u64,
        envs: wanted.envs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        snapshot_id: wanted.snapshot.map(|(id, _)| id.simple().to_string()).unwrap_or_default(),
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
                destroy(app, team, id).await?;
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
    use crate::idempotency::fingerprint;

    #[test]
    fn names_of_templates() {
        assert!(is_template_name("minimal") && is_template_name("a") && is_template_name("py3.12_x-y"));
        for bad in ["", ".", "-a", "a/b", "a b", "ä", "../etc", &"x".repeat(65)] {
            assert!(!is_template_name(bad), "{bad:?}");
        }
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
            assert!(Wanted::check(request, None).is_err());
        }
        let wanted = Wanted::check(CreateSandbox::default(), None).expect("valid");
        assert_eq!((wanted.vcpus, wanted.memory_mb, wanted.disk_size_mb), (1, 512, 5120));
    }

    #[test]
    fn a_fingerprint_is_of_the_meaning() {
        let fingerprint = |text: &str| {
            let request = serde_json::from_str(text).expect("a request");
            let wanted = Wanted::check(request, None).expect("valid");
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
