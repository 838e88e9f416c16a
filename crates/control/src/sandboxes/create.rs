//! Creation of sandboxes: placed and recorded first, then created by the agent, in a task that does not
//! depend on the client's connection.

use std::{collections::BTreeMap, time::Duration};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use wrenn_api::{CreateSandbox, ErrorCode, HostId, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::{CreateRequest, CreateResponse, DestroyRequest};

use super::{
    agent, find,
    place::{Need, place},
};
use crate::{
    agents::{deadline, within},
    db::{
        hosts::{self, EJECTED, Ejected},
        idempotency,
        sandboxes::{self, Change, New, Row},
    },
    error::ApiError,
    fault,
    state::App,
};

/// Maximum number of environment variables of one sandbox.
const ENVS_MAX: usize = 1024;
/// Maximum length of a variable's name, in characters.
const ENV_NAME_MAX: usize = 255;
/// Maximum size of a variable in the kernel, in bytes: `NAME=VALUE` and a NUL.
const ENV_BYTES: usize = 128 << 10;
/// Maximum size of all names and values, in bytes.
const ENVS_BYTES: usize = 1 << 20;
/// Time limit of a repeated request for waiting for the first one.
const FIRST: Duration = Duration::from_secs(60);
/// How often a worker shows that it still works: well within the lease.
const RENEW: Duration = Duration::from_secs(5);

/// A checked request with its defaults filled in.
pub(crate) struct Wanted {
    template: String,
    vcpus: u32,
    memory_mb: u32,
    disk_size_mb: u32,
    envs: BTreeMap<String, String>,
}

fn within_bounds(field: &str, value: Option<u32>, default: u32, min: u32, max: u32) -> Result<u32, ApiError> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(format!("{field} is {value}: it must be {min} to {max}")))
}

/// Returns whether a text is a valid template name.
fn is_template_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.len() <= 64
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Checks environment variables: number, sizes, and characters that the kernel does not accept.
pub(crate) fn check_envs(envs: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if envs.len() > ENVS_MAX {
        return Err(ApiError::invalid(format!("envs has {} variables: at most {ENVS_MAX}", envs.len())));
    }
    let size: usize = envs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > ENVS_BYTES {
        return Err(ApiError::invalid(format!(
            "envs has {size} bytes: at most {ENVS_BYTES}; pass a file instead"
        )));
    }
    let bad = envs.iter().find(|(name, value)| {
        name.is_empty()
            || name.chars().count() > ENV_NAME_MAX
            || name.contains(['=', '\0'])
            || value.contains('\0')
            || name.len() + value.len() + 2 > ENV_BYTES
    });
    let Some((name, _)) = bad else { return Ok(()) };
    let name: String = name.chars().take(64).collect();
    Err(ApiError::invalid(format!(
        "envs: {name:?} cannot be a variable: a name has 1 to {ENV_NAME_MAX} characters and no '=', neither part has \
         NUL, and both together are less than {ENV_BYTES} bytes; pass larger values as a file"
    )))
}

impl Wanted {
    /// Validates a request.
    pub(crate) fn check(request: CreateSandbox) -> Result<Self, ApiError> {
        let template = request.template.unwrap_or_else(|| "minimal".to_owned());
        if !is_template_name(&template) {
            let message =
                "template: a name has 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit";
            return Err(ApiError::invalid(message));
        }
        check_envs(&request.envs)?;
        Ok(Self {
            template,
            vcpus: within_bounds("vcpus", request.vcpus, 1, 1, 64)?,
            memory_mb: within_bounds("memory_mb", request.memory_mb, 512, 128, 1 << 20)?,
            disk_size_mb: within_bounds("disk_size_mb", request.disk_size_mb, 5120, 512, 1 << 20)?,
            envs: request.envs,
        })
    }
}

/// What a create came to: the sandbox, or the refusal.
pub(crate) struct Outcome {
    pub(crate) status: u16,
    pub(crate) body: serde_json::Value,
}

fn outcome(result: &Result<Row, ApiError>) -> Outcome {
    let (status, body) = match result {
        Ok(row) => (201, serde_json::to_value(row.public())),
        Err(error) => (error.code.status(), serde_json::to_value(error.body())),
    };
    Outcome { status, body: body.unwrap_or_default() }
}

/// Creates a sandbox; with an idempotency key at most once.
pub(crate) async fn create(
    app: &App,
    team: Uuid,
    wanted: Wanted,
    key: Option<String>,
    raw: &[u8],
) -> Result<Outcome, ApiError> {
    let digest: [u8; 32] = Sha256::digest(raw).into();
    if let Some(key) = &key
        && let Some(first) = idempotency::first(&app.db, team, key).await?
    {
        return repeat(app, team, key, &digest, first).await;
    }
    // A client that leaves must not leave a sandbox behind that is written down and not made.
    let task = tokio::spawn({
        let (app, key) = (app.clone(), key.clone());
        async move {
            let claimed = claim(&app, team, &wanted, key.as_deref().map(|key| (key, &digest))).await?;
            let Some((row, address)) = claimed else { return Ok(None) };
            app.outbox.notify_one();
            fault::point("create.inserted");
            Ok::<_, ApiError>(Some(finish(app, row, address, wanted.envs, key).await))
        }
    });
    let made = task.await.map_err(|error| {
        tracing::error!(%error, "a create died");
        ApiError::new(ErrorCode::InternalError, "the create was interrupted; look at the list of sandboxes")
    })?;
    if let Some(outcome) = made? {
        return Ok(outcome);
    }
    // Another request with this key was faster.
    let key = key.unwrap_or_default();
    let first = idempotency::first(&app.db, team, &key).await?;
    let gone = || ApiError::new(ErrorCode::Conflict, "the first request with this key was undone; try again");
    repeat(app, team, &key, &digest, first.ok_or_else(gone)?).await
}

/// Chooses a host and records the sandbox with its key; `None` if the key is taken.
async fn claim(
    app: &App,
    team: Uuid,
    wanted: &Wanted,
    key: Option<(&str, &[u8; 32])>,
) -> Result<Option<(Row, String)>, ApiError> {
    let mut tx = app.db.begin().await?;
    let hosts = hosts::candidates(&mut tx).await?;
    let need = Need {
        template: &wanted.template,
        vcpus: wanted.vcpus as i32,
        memory_mb: wanted.memory_mb as i32,
        disk_size_mb: wanted.disk_size_mb as i32,
    };
    let host = place(&hosts, &need)?;
    let count = sandboxes::count(&mut tx, team).await?;
    if count >= i64::from(app.limits.sandboxes_per_team) {
        let message = format!("the team has {count} sandboxes, as many as it may: delete some");
        return Err(ApiError::new(ErrorCode::TooManyRequests, message));
    }
    let new = New {
        id: SandboxId::new().uuid(),
        team_id: team,
        host_id: host.id,
        template: need.template,
        vcpus: need.vcpus,
        memory_mb: need.memory_mb,
        disk_size_mb: need.disk_size_mb,
    };
    let row = sandboxes::insert(&mut tx, &new).await?;
    if let Some((key, digest)) = key
        && !idempotency::claim(&mut tx, team, key, digest, new.id).await?
    {
        return Ok(None);
    }
    tx.commit().await?;
    Ok(Some((row, host.address.clone())))
}

/// Has the agent make it, and writes down what came of it.
async fn finish(
    app: App,
    row: Row,
    address: String,
    envs: BTreeMap<String, String>,
    key: Option<String>,
) -> Outcome {
    let lease = tokio::spawn(keep_lease(app.clone(), row.clone()));
    let result = make(&app, &row, &address, envs).await.map_err(|error| error.leaving(row.public_id()));
    lease.abort();
    app.outbox.notify_one();
    let outcome = outcome(&result);
    if let Some(key) = key
        && let Err(error) =
            idempotency::answered(&app.db, row.team_id, &key, i32::from(outcome.status), &outcome.body).await
    {
        // A repeated request then derives the answer from the sandbox.
        tracing::warn!(%error, "an answer could not be kept");
    }
    outcome
}

async fn keep_lease(app: App, row: Row) {
    loop {
        tokio::time::sleep(RENEW).await;
        if matches!(sandboxes::renew(&app.db, &row).await, Ok(false)) {
            return;
        }
    }
}

/// Counts the failure, and says when it leaves the host out: nobody else would notice that there is one host less.
async fn note_failure(app: &App, host: Uuid, address: &str, error: &ApiError) -> Result<(), ApiError> {
    if let Some(Ejected { failures }) = hosts::create_failed(&app.db, host).await? {
        let host = HostId::from(host);
        let seconds = EJECTED.as_secs();
        tracing::error!(
            %host, address, failures, seconds, last = %error,
            "creates fail on a host, which gets no more for a while: see the log of its agent, and `wrenn doctor` there"
        );
    }
    Ok(())
}

async fn make(app: &App, row: &Row, address: &str, envs: BTreeMap<String, String>) -> Result<Row, ApiError> {
    let id = row.public_id().to_string();
    let request = CreateRequest {
        sandbox_id: id.clone(),
        template: row.template.clone(),
        vcpus: row.vcpus as u32,
        memory_mb: row.memory_mb as u64,
        disk_size_mb: row.disk_size_mb as u64,
        envs: envs.into_iter().collect(),
        ..Default::default()
    };
    let host = row.host_id.unwrap_or_default();
    let made =
        app.agents.at(host.into(), address).create_with_options(request, within(app.limits.create)).await;
    let made = made.map(connectrpc::UnaryResponse::into_owned).map_err(ApiError::from);
    fault::point("create.made");
    match made {
        Ok(response) => {
            let change = Change { metadata: metadata(response), ..Change::to(SandboxStatus::Running) };
            let changed = sandboxes::change(&app.db, row, change).await?;
            fault::point("create.running");
            hosts::create_succeeded(&app.db, host).await?;
            match changed {
                Some(row) => Ok(row),
                None => moved_on(app, row).await,
            }
        }
        Err(error) => {
            if matches!(error.code, ErrorCode::AgentError | ErrorCode::HostUnavailable | ErrorCode::Timeout) {
                note_failure(app, host, address, &error).await?;
            }
            let change = Change::error(error.code, error.message.clone());
            sandboxes::change(&app.db, row, change).await?;
            // Whatever the agent may still be making: it is not wanted any more. If this does not reach it,
            // the reconciler will.
            if let Ok(client) = agent(app, host).await {
                let destroy = DestroyRequest { sandbox_id: id, ..Default::default() };
                let _ = client.destroy_with_options(destroy, within(deadline::STATE)).await;
            }
            Err(error)
        }
    }
}

/// Somebody else changed the sandbox meanwhile: the reconciler finished it, or a client deleted it.
async fn moved_on(app: &App, row: &Row) -> Result<Row, ApiError> {
    let now = find(app, row.team_id, row.public_id()).await?;
    match now.status() {
        SandboxStatus::Running => Ok(now),
        _ => Err(ApiError::new(ErrorCode::Conflict, "the sandbox was deleted while it was starting")),
    }
}

fn metadata(response: CreateResponse) -> BTreeMap<String, String> {
    let sandbox = response.sandbox.into_option().unwrap_or_default();
    let timings = response.timings.into_iter().map(|timing| {
        (format!("create_{}_ms", timing.step), format!("{:.1}", timing.micros as f64 / 1000.0))
    });
    sandbox.metadata.into_iter().chain(timings).collect()
}

/// The answer of the first request with this key.
async fn repeat(
    app: &App,
    team: Uuid,
    key: &str,
    digest: &[u8; 32],
    first: idempotency::First,
) -> Result<Outcome, ApiError> {
    if first.request_sha256 != digest {
        let message = "this Idempotency-Key was used with another request: use a new key for a new request";
        return Err(ApiError::new(ErrorCode::IdempotencyMismatch, message));
    }
    let begin = tokio::time::Instant::now();
    let mut first = first;
    loop {
        if let (Some(status), Some(body)) = (first.response_status, first.response_body) {
            return Ok(Outcome { status: u16::try_from(status).unwrap_or(500), body });
        }
        let row = find(app, team, SandboxId::from(first.sandbox_id)).await?;
        // A first request that was cut off left no answer, but its sandbox.
        let settled = match row.status() {
            SandboxStatus::Starting | SandboxStatus::Pending => None,
            SandboxStatus::Error => Some(Err(ApiError::new(
                row.error_code.as_deref().and_then(|code| code.parse().ok()).unwrap_or(ErrorCode::AgentError),
                row.error_message.clone().unwrap_or_default(),
            )
            .leaving(row.public_id()))),
            _ => Some(Ok(row)),
        };
        if let Some(result) = settled {
            return Ok(outcome(&result));
        }
        if begin.elapsed() > FIRST {
            let message = "the first request with this key is still in work: ask again in a moment";
            return Err(ApiError::new(ErrorCode::IdempotencyInProgress, message));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let again = idempotency::first(&app.db, team, key).await?;
        let gone =
            || ApiError::new(ErrorCode::Conflict, "the first request with this key was undone; try again");
        first = again.ok_or_else(gone)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(Wanted::check(request).is_err());
        }
        let wanted = Wanted::check(CreateSandbox::default()).expect("valid");
        assert_eq!((wanted.vcpus, wanted.memory_mb, wanted.disk_size_mb), (1, 512, 5120));
    }

    #[test]
    fn variables_that_no_kernel_takes_are_refused() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(check_envs(&one("A", "b=c")).is_ok());
        for envs in [one("", "x"), one("A=B", "x"), one("A", "\0"), one("A", &"x".repeat(ENVS_BYTES))] {
            assert!(check_envs(&envs).is_err());
        }
        assert!(check_envs(&(0..=ENVS_MAX).map(|i| (format!("V{i}"), String::new())).collect()).is_err());
    }
}
