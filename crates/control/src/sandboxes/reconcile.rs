//! Compares what is wanted with what each host has, again and again, and finishes or undoes what was
//! interrupted. Level-triggered: it needs to know nothing of how a difference came about, and every step may
//! be done twice.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt as _, stream};
use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::{
    DestroyRequest, ListRequest, PingRequest, PingResponse, Sandbox as OnHost, SandboxState,
};

use super::destroy;
use crate::{
    agents::{AgentClient, deadline, within},
    db::{
        hosts::{self, Address, Seen},
        idempotency, outbox,
        sandboxes::{self, Change, Row},
    },
    error::ApiError,
    state::App,
};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// Hosts looked at side by side: one that hangs delays no other.
const HOSTS: usize = 32;
/// Rounds between two prunings of old answers.
const PRUNE_EVERY: u64 = 600;

/// Reconciles until the server stops.
pub(crate) async fn run(app: App) {
    let mut round = 0_u64;
    loop {
        if let Err(error) = once(&app, round).await {
            tracing::debug!(%error, "a round of the reconciler was cut short");
        }
        round += 1;
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn once(app: &App, round: u64) -> Result<(), ApiError> {
    let all = hosts::all(&app.db).await?;
    app.agents.keep(|known| all.iter().any(|host| HostId::from(host.id) == known));
    stream::iter(all)
        .for_each_concurrent(HOSTS, async |host| {
            if let Err(error) = host_round(app, &host).await {
                tracing::debug!(host = host.address, %error, "a host could not be reconciled");
            }
        })
        .await;
    measure(app).await?;
    if round.is_multiple_of(PRUNE_EVERY) {
        idempotency::prune(&app.db).await?;
    }
    Ok(())
}

async fn measure(app: &App) -> Result<(), ApiError> {
    let counts: HashMap<String, i64> = sandboxes::by_status(&app.db).await?.into_iter().collect();
    for status in ["pending", "starting", "running", "stopping", "missing", "error"] {
        let count = counts.get(status).copied().unwrap_or_default();
        metrics::gauge!("wrenn_sandboxes", "status" => status).set(count as f64);
    }
    metrics::gauge!("wrenn_hosts_ejected").set(hosts::ejected(&app.db).await? as f64);
    metrics::gauge!("wrenn_outbox_events").set(outbox::waiting(&app.db).await? as f64);
    Ok(())
}

async fn host_round(app: &App, host: &Address) -> Result<(), ApiError> {
    let client = app.agents.at(host.id.into(), &host.address);
    let pinged = client.ping_with_options(PingRequest::default(), within(deadline::STATE)).await;
    let ping = match pinged {
        Ok(response) => response.into_owned(),
        Err(error) => {
            if hosts::silent(&app.db, host.id).await? {
                lost_host(app, host.id).await?;
            }
            return Err(error.into());
        }
    };
    if ping.host_id.parse() != Ok(wrenn_api::HostId::from(host.id)) {
        tracing::error!(address = host.address, found = ping.host_id, "another host answers at this address");
        return Ok(());
    }
    note(app, host.id, &ping).await?;
    // Rows first, then the list: what is in the rows and not in the list is really not there.
    let rows = sandboxes::on_host(&app.db, host.id).await?;
    let listed =
        client.list_with_options(ListRequest::default(), within(deadline::STATE)).await?.into_owned();
    let mut there: HashMap<Uuid, OnHost> = listed
        .sandboxes
        .into_iter()
        .filter_map(|sandbox| Some((sandbox.id.parse::<SandboxId>().ok()?.uuid(), sandbox)))
        .collect();
    for row in rows {
        let found = there.remove(&row.id);
        settle(app, &client, row, found).await?;
    }
    strays(app, &client, there).await
}

async fn note(app: &App, id: Uuid, ping: &PingResponse) -> Result<(), ApiError> {
    let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let long = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let seen = Seen {
        id,
        cpus: int(ping.cpus),
        memory_mb: long(ping.memory_mb),
        disk_mb: long(ping.disk_mb),
        disk_free_mb: long(ping.disk_free_mb),
        max_sandboxes: int(ping.max_sandboxes),
        max_vcpus: int(ping.max_vcpus),
        max_memory_mb: long(ping.max_memory_mb),
        max_disk_size_mb: long(ping.max_disk_size_mb),
        templates: &ping.templates,
        agent_version: &ping.agent_version,
        driver: &ping.driver,
        driver_reason: &ping.driver_reason,
    };
    Ok(hosts::seen(&app.db, &seen).await?)
}

/// A host has been silent for too long: what ran on it is missing.
async fn lost_host(app: &App, host: Uuid) -> Result<(), ApiError> {
    for row in sandboxes::on_host(&app.db, host).await? {
        let change = match row.status() {
            SandboxStatus::Running => Change::to(SandboxStatus::Missing),
            SandboxStatus::Starting if row.abandoned() => Change::error(
                ErrorCode::HostUnavailable,
                "its host stopped answering while it was starting; delete it",
            ),
            _ => continue,
        };
        sandboxes::change(&app.db, &row, change).await?;
    }
    app.outbox.notify_one();
    Ok(())
}

/// What to do about one sandbox. Pure.
#[derive(Debug)]
enum Step {
    Nothing,
    Change(Change),
    /// Ask the agent again to remove it.
    Destroy,
    /// The agent has what nobody wants.
    DestroyStray,
}

fn lost(what: &str) -> Step {
    Step::Change(Change::error(ErrorCode::AgentError, format!("{what}; delete it")))
}

fn failure(sandbox: &OnHost) -> Change {
    let failure = sandbox.failure.as_option();
    let code = failure.and_then(|failure| failure.code.parse().ok()).unwrap_or(ErrorCode::AgentError);
    let message = failure.map(|failure| failure.message.clone()).unwrap_or_default();
    Change::error(code, message)
}

fn step(row: &Row, found: Option<&OnHost>) -> Step {
    use SandboxState as Host;
    use SandboxStatus as Wanted;
    let state = found.map(|sandbox| sandbox.state.as_known().unwrap_or_default());
    match (row.status(), state, found) {
        (Wanted::Starting | Wanted::Missing, Some(Host::SANDBOX_STATE_RUNNING), _) => {
            Step::Change(Change::to(Wanted::Running))
        }
        (
            Wanted::Starting | Wanted::Running | Wanted::Missing,
            Some(Host::SANDBOX_STATE_FAILED),
            Some(found),
        ) => Step::Change(failure(found)),
        (Wanted::Starting, None, _) if row.abandoned() => {
            lost("the control plane was interrupted while it was created")
        }
        (Wanted::Running | Wanted::Missing, None, _) => {
            lost("its host no longer has it, as after a restart of the host")
        }
        (Wanted::Stopping, None, _) => Step::Change(Change::to(Wanted::Stopped)),
        (Wanted::Stopping, Some(_), _) if row.abandoned() => Step::Destroy,
        (Wanted::Error, Some(Host::SANDBOX_STATE_RUNNING | Host::SANDBOX_STATE_STARTING), _) => {
            Step::DestroyStray
        }
        _ => Step::Nothing,
    }
}

async fn settle(app: &App, client: &AgentClient, row: Row, found: Option<OnHost>) -> Result<(), ApiError> {
    match step(&row, found.as_ref()) {
        Step::Nothing => Ok(()),
        Step::Change(change) => {
            tracing::info!(id = %row.public_id(), from = row.status, to = ?change.to, "reconciled");
            sandboxes::change(&app.db, &row, change).await?;
            app.outbox.notify_one();
            Ok(())
        }
        Step::Destroy => {
            // Ours for the length of a lease, so that other servers do not do the same.
            let ours = sandboxes::change(&app.db, &row, Change::to(SandboxStatus::Stopping)).await?;
            match ours {
                Some(row) => {
                    // A host that takes its time holds up neither its other sandboxes nor other hosts.
                    let app = app.clone();
                    tokio::spawn(async move {
                        if let Err(error) = destroy::finish(&app, &row).await {
                            tracing::warn!(id = %row.public_id(), %error, "a delete waits for its host");
                        }
                    });
                    Ok(())
                }
                None => Ok(()),
            }
        }
        Step::DestroyStray => {
            remove(client, &row.public_id().to_string()).await;
            Ok(())
        }
    }
}

/// Has the agent remove a sandbox. It goes on where this does not wait, and the next round asks again.
async fn remove(client: &AgentClient, id: &str) {
    tracing::info!(id, "removing what nobody wants");
    let request = DestroyRequest { sandbox_id: id.to_owned(), ..Default::default() };
    if let Err(error) = client.destroy_with_options(request, within(deadline::STATE)).await {
        tracing::warn!(id, %error, "what nobody wants is not gone yet");
    }
}

/// Removes what a host has and nobody wants: rows are written before an agent hears of a sandbox, so what
/// has no row, or one that is stopped, was given up.
async fn strays(app: &App, client: &AgentClient, there: HashMap<Uuid, OnHost>) -> Result<(), ApiError> {
    let ids: Vec<Uuid> = there.keys().copied().collect();
    let expected = sandboxes::expected(&app.db, &ids).await?;
    for (id, sandbox) in there {
        if !expected.contains(&id) {
            remove(client, &sandbox.id).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    fn row(status: SandboxStatus, abandoned: bool) -> Row {
        let now = Utc::now();
        Row {
            id: Uuid::nil(),
            team_id: Uuid::nil(),
            host_id: Some(Uuid::nil()),
            template: "minimal".into(),
            vcpus: 1,
            memory_mb: 512,
            disk_size_mb: 5120,
            status: status.as_str().into(),
            version: 1,
            lease_until: (!abandoned).then(|| now + chrono::TimeDelta::minutes(1)),
            error_code: None,
            error_message: None,
            metadata: serde_json::json!({}),
            created_at: now,
            started_at: None,
            last_updated: now,
        }
    }

    fn on_host(state: SandboxState) -> OnHost {
        OnHost { state: state.into(), ..Default::default() }
    }

    fn describe(status: SandboxStatus, abandoned: bool, state: Option<SandboxState>) -> String {
        let found = state.map(on_host);
        match step(&row(status, abandoned), found.as_ref()) {
            Step::Nothing => "nothing".into(),
            Step::Change(change) => change.to.expect("a status").as_str().into(),
            Step::Destroy => "destroy".into(),
            Step::DestroyStray => "destroy stray".into(),
        }
    }

    #[test]
    fn every_difference_has_its_step() {
        use SandboxState as H;
        use SandboxStatus as S;
        let (running, starting) = (Some(H::SANDBOX_STATE_RUNNING), Some(H::SANDBOX_STATE_STARTING));
        let (stopping, failed) = (Some(H::SANDBOX_STATE_STOPPING), Some(H::SANDBOX_STATE_FAILED));
        let table = [
            (S::Starting, false, None, "nothing"),
            (S::Starting, true, None, "error"),
            (S::Starting, true, starting, "nothing"),
            (S::Starting, false, running, "running"),
            (S::Starting, false, failed, "error"),
            (S::Running, true, running, "nothing"),
            (S::Running, true, None, "error"),
            (S::Running, true, failed, "error"),
            (S::Missing, true, running, "running"),
            (S::Missing, true, None, "error"),
            (S::Stopping, false, running, "nothing"),
            (S::Stopping, true, running, "destroy"),
            (S::Stopping, true, failed, "destroy"),
            (S::Stopping, true, stopping, "destroy"),
            (S::Stopping, false, None, "stopped"),
            (S::Error, true, running, "destroy stray"),
            (S::Error, true, starting, "destroy stray"),
            (S::Error, true, failed, "nothing"),
            (S::Error, true, None, "nothing"),
        ];
        for (status, abandoned, state, expected) in table {
            assert_eq!(describe(status, abandoned, state), expected, "{status:?} {abandoned} {state:?}");
        }
    }
}
