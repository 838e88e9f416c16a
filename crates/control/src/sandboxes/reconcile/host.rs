// SPDX-License-Identifier: Apache-2.0
//! Reconciliation of one host: its rounds, and the removals that they start.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use connectrpc::ConnectError;
use tokio::{sync::Semaphore, task::JoinHandle};
use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::{
    DestroyRequest, Fleet as FleetMessage, ListRequest, PingRequest, PingResponse, Sandbox as OnHost,
};

use super::{PERIOD, Said, killed::Killed, strays::Strays};
use crate::{
    agents::{AgentClient, deadline, within},
    by::By,
    db::{
        fleet::{self, Fleet},
        hosts::{self, Seen},
        images,
        sandboxes::{self, Change, Known},
    },
    error::Fault,
    images::of_digests,
    place::Digest,
    sandboxes::{
        destroy,
        lookup::cut,
        metrics,
        step::{Step, cause_unknown, ends, may_be_stray, step},
    },
    state::App,
    telemetry,
};

/// Maximum number of concurrent removals of a host.
const REMOVALS: usize = 8;
/// Maximum number of sandboxes that the host has paused by itself whose metrics are kept at a time.
const KEEPS: usize = 4;
/// Number of rounds between recounts of the host's reservations, with a look at its images.
const RECOUNT_EVERY: u64 = 60;
/// Time after which an imported image is removed that nothing refers to: whoever did not wait for it may ask again until then.
const UNKNOWN_IMAGE: Duration = Duration::from_secs(3600);
/// Limits on data of an agent: number of templates, and length of a name and of a message in bytes.
const TEMPLATES_MAX: usize = 1024;
const NAME_MAX: usize = 64;
const SENTENCE_MAX: usize = 1024;

/// Reconciles one host until the server stops.
pub(super) async fn run(app: App, id: Uuid) {
    let mut host = Host::new(app.clone(), id);
    let mut said = Said::default();
    let what = format!("host {} cannot be reconciled", HostId::from(id));
    loop {
        let done = host.round().await;
        said.tell(&done, &what);
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// State of a host between two rounds.
struct Host {
    app: App,
    id: Uuid,
    rounds: u64,
    strays: Strays,
    removals: HashMap<Uuid, JoinHandle<()>>,
    keeps: Arc<Semaphore>,
    killed: Killed,
    quarantine: String,
    /// Sandboxes without a row and with an unreadable journal that were already logged.
    not_understood: HashSet<Uuid>,
}

fn message(fleet: Fleet) -> FleetMessage {
    FleetMessage {
        id: fleet.id.to_string(),
        epoch: u64::try_from(fleet.epoch).unwrap_or_default(),
        ..Default::default()
    }
}

impl Host {
    fn new(app: App, id: Uuid) -> Self {
        let (strays, removals) = (Strays::default(), HashMap::new());
        Self {
            app,
            id,
            rounds: 0,
            strays,
            removals,
            keeps: Arc::new(Semaphore::new(KEEPS)),
            killed: Killed::default(),
            quarantine: String::new(),
            not_understood: HashSet::new(),
        }
    }

    async fn round(&mut self) -> Result<(), Fault> {
        self.removals.retain(|_, removal| !removal.is_finished());
        let Some(address) = hosts::address(&self.app.db, self.id).await? else { return Ok(()) };
        let is_recount = self.rounds.is_multiple_of(RECOUNT_EVERY);
        if is_recount {
            hosts::recount(&self.app.db, self.id).await?;
        }
        self.rounds += 1;
        let client = self.app.agents.at(self.id.into(), &address);
        let (fleet, answer) = self.introduce(&client, &address).await?;
        let ping = match answer {
            Ok(ping) => ping,
            Err(error) => {
                telemetry::host_away(self.id.into());
                if hosts::silent(&self.app.db, self.id).await? {
                    self.lost().await?;
                }
                return Err(error);
            }
        };
        self.note(&ping).await?;
        // Rows first, then the list: a sandbox in the rows but not in the list does not exist on the host.
        let rows = sandboxes::on_host(&self.app.db, self.id).await?;
        let request = ListRequest { images: is_recount, ..Default::default() };
        let listed = client.list_with_options(request, within(deadline::STATE)).await?.into_owned();
        self.unknown_images(&listed.image_ids).await?;
        let mut there: HashMap<Uuid, OnHost> = listed
            .sandboxes
            .into_iter()
            .filter_map(|sandbox| Some((sandbox.id.parse::<SandboxId>().ok()?.uuid(), sandbox)))
            .collect();
        self.killed.retain(|id| there.contains_key(id));
        let pairs = rows.into_iter().map(|row| (there.remove(&row.id), row)).collect();
        let expected = self.settle_all(&client, fleet, pairs).await;
        // The rest has no row, or that of an ended sandbox, which is only relevant if a host still has it.
        let ended = sandboxes::of_ids(&self.app.db, &there.keys().copied().collect::<Vec<_>>()).await?;
        let pairs = ended.into_iter().map(|row| (there.remove(&row.id), row)).collect();
        let unexpected = self.settle_all(&client, fleet, pairs).await;
        self.strays(&client, fleet, &there);
        expected.and(unexpected)
    }

    /// Notes that those images are to be removed later which were imported for somebody who did not wait. A host that has quarantined
    /// this database keeps them.
    async fn unknown_images(&self, there: &[String]) -> Result<(), Fault> {
        let there = of_digests(there);
        if there.is_empty() || !self.quarantine.is_empty() {
            return Ok(());
        }
        let doomed = images::doom_unknown(&self.app.db, self.id, &there, UNKNOWN_IMAGE).await?;
        if doomed > 0 {
            tracing::info!(host = %HostId::from(self.id), doomed, "images that nobody waited for are removed later");
        }
        Ok(())
    }

    /// Sends the fleet to the agent, and checks its host id.
    async fn introduce(
        &self,
        client: &AgentClient,
        address: &str,
    ) -> Result<(Fleet, Result<PingResponse, Fault>), Fault> {
        let fleet = fleet::current(&self.app.db).await?;
        let answer = self.ping(client, address, fleet).await;
        if answer.as_ref().is_ok_and(|ping| !ping.quarantine.is_empty()) {
            // Another server may have raised the epoch meanwhile, and sent it to the agent first.
            let now = fleet::current(&self.app.db).await?;
            if now != fleet {
                return Ok((now, self.ping(client, address, now).await));
            }
        }
        Ok((fleet, answer))
    }

    /// Checks the agent's host id. If another host's agent is at the address, this host is unreachable.
    async fn ping(&self, client: &AgentClient, address: &str, fleet: Fleet) -> Result<PingResponse, Fault> {
        let request = PingRequest { fleet: Some(message(fleet)).into(), ..Default::default() };
        let answered = client.ping_with_options(request, within(deadline::STATE)).await;
        let ping = match answered.map(connectrpc::UnaryResponse::into_owned) {
            Ok(ping) if ping.host_id.parse() == Ok(HostId::from(self.id)) => return Ok(ping),
            Ok(ping) => ping.host_id,
            Err(error) if is_of_another_host(&error) => error.message.unwrap_or_default(),
            Err(error) => return Err(error.into()),
        };
        hosts::unreachable(&self.app.db, self.id).await?;
        let message = format!(
            "another host answers at {address} ({}): correct the address of host {}",
            cut(&ping, NAME_MAX * 4),
            HostId::from(self.id)
        );
        Err(Fault::new(ErrorCode::HostUnavailable, message))
    }

    /// Records the agent's data about its host.
    async fn note(&mut self, ping: &PingResponse) -> Result<(), Fault> {
        telemetry::host(self.id.into(), ping);
        let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let long = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let names = ping.templates.iter().filter(|name| name.len() <= NAME_MAX);
        let templates: Vec<String> = names.take(TEMPLATES_MAX).cloned().collect();
        let digests = ping.template_digests.iter().take(TEMPLATES_MAX);
        let digests = digests.filter(|(name, digest)| name.len() <= NAME_MAX && Digest::of(digest).is_some());
        let template_digests: Vec<String> =
            digests.map(|(name, digest)| format!("{name}@{digest}")).collect();
        let quarantine = cut(&ping.quarantine, SENTENCE_MAX);
        let seen = Seen {
            id: self.id,
            cpus: int(ping.cpus),
            memory_mb: long(ping.memory_mb),
            disk_mb: long(ping.disk_mb),
            disk_free_mb: long(ping.disk_free_mb),
            max_sandboxes: int(ping.max_sandboxes),
            max_vcpus: int(ping.max_vcpus),
            max_memory_mb: long(ping.max_memory_mb),
            max_disk_size_mb: long(ping.max_disk_size_mb),
            templates: &templates,
            template_digests: &template_digests,
            agent_version: &cut(&ping.agent_version, NAME_MAX),
            driver: &cut(&ping.driver, NAME_MAX),
            driver_reason: &cut(&ping.driver_reason, SENTENCE_MAX),
            security_boundary: ping.security_boundary,
            quarantine: &quarantine,
        };
        hosts::seen(&self.app.db, &seen).await?;
        self.note_quarantine(quarantine);
        Ok(())
    }

    fn note_quarantine(&mut self, quarantine: String) {
        if quarantine == self.quarantine {
            return;
        }
        let host = HostId::from(self.id);
        if quarantine.is_empty() {
            tracing::info!(%host, "the host is not in quarantine any more");
        } else {
            tracing::error!(
                %host, cause = quarantine,
                "the host is in quarantine: it keeps what this database does not know, until it is clear which one is right"
            );
        }
        self.quarantine = quarantine;
    }

    /// Marks the sandboxes of a host that has been silent for too long as missing.
    async fn lost(&self) -> Result<(), Fault> {
        let mut done = Ok(());
        for row in sandboxes::on_host(&self.app.db, self.id).await? {
            let change = match row.status() {
                SandboxStatus::Running => Change::to(SandboxStatus::Missing),
                SandboxStatus::Pausing | SandboxStatus::Resuming if row.abandoned() => {
                    Change::to(SandboxStatus::Missing)
                }
                SandboxStatus::Starting if row.abandoned() => Change::error(
                    ErrorCode::HostUnavailable,
                    "its host stopped answering while it was starting; delete it",
                ),
                _ => continue,
            };
            let change = change.by(By::host(self.id.into()));
            let changed = sandboxes::change(&self.app.db, &row, change, self.app.limits.lease).await;
            done = done.and(changed.map(drop).map_err(Fault::from));
        }
        self.app.outbox.notify_one();
        done
    }

    /// Executes the steps for all these sandboxes. A failure does not stop the others; the first one is
    /// returned.
    async fn settle_all(
        &mut self,
        client: &AgentClient,
        fleet: Fleet,
        pairs: Vec<(Option<OnHost>, Known)>,
    ) -> Result<(), Fault> {
        let mut done = Ok(());
        for (found, row) in pairs {
            let id = row.id;
            let mut settled = self.settle(client, fleet, row, found.as_ref()).await;
            if let Some(found) = &found {
                settled = settled.and(self.killed.note(&self.app, id, found).await);
            }
            let away = settled.as_ref().is_err_and(|error| error.code == ErrorCode::ServiceUnavailable);
            done = done.and(settled);
            if away {
                // An error of the database, which the others would get, too.
                break;
            }
        }
        done
    }

    async fn settle(
        &mut self,
        client: &AgentClient,
        fleet: Fleet,
        row: Known,
        found: Option<&OnHost>,
    ) -> Result<(), Fault> {
        match step(&row, found) {
            Step::Nothing => {}
            Step::Change(change) => {
                tracing::info!(sandbox_id = %row.public_id(), from = row.status, to = ?change.to, "reconciled");
                let is_pause =
                    change.to == Some(SandboxStatus::Paused) && row.status() != SandboxStatus::Paused;
                let (by_itself, of_memory) = (!ends(row.status(), change.to), change.is_of_memory());
                let host = HostId::from(self.id);
                let by = if of_memory { By::out_of_memory(host) } else { By::host(host) };
                let change = if by_itself { change.by(by) } else { change };
                let changed = sandboxes::change(&self.app.db, &row, change, self.app.limits.lease).await?;
                self.app.outbox.notify_one();
                if changed.is_some() && of_memory {
                    telemetry::out_of_memory(telemetry::Killed::Machine);
                }
                if changed.is_some() && is_pause {
                    self.keep_metrics(row);
                }
            }
            Step::Finish => {
                // Takes the lease, so that other servers do not do the same.
                if self.may_remove(row.id)
                    && sandboxes::take_over(&self.app.db, &row, self.app.limits.lease).await?
                {
                    let app = self.app.clone();
                    self.remove(row.id, async move { destroy::finish(&app, &row).await });
                }
            }
            Step::Destroy => self.destroy(client, fleet, row.id),
        }
        Ok(())
    }

    fn may_remove(&self, id: Uuid) -> bool {
        self.removals.len() < REMOVALS && !self.removals.contains_key(&id)
    }

    /// Removes a sandbox in a task of its own, so that a slow host delays nothing else.
    fn remove(&mut self, id: Uuid, work: impl Future<Output = Result<(), Fault>> + Send + 'static) {
        let removal = tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(sandbox_id = %SandboxId::from(id), %error, "a sandbox is not removed yet");
            }
        });
        self.removals.insert(id, removal);
    }

    /// Keeps what a sandbox used that its host has paused by itself, in a task of its own.
    fn keep_metrics(&self, row: Known) {
        let (app, keeps) = (self.app.clone(), self.keeps.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            if let Ok(_place) = keeps.acquire().await {
                metrics::keep_paused(&app, &row).await;
            }
        });
    }

    /// Calls the agent to destroy an unwanted sandbox; the agent refuses if it has quarantined this database.
    fn destroy(&mut self, client: &AgentClient, fleet: Fleet, id: Uuid) {
        if !self.quarantine.is_empty() || !self.may_remove(id) {
            return;
        }
        let (client, sandbox_id) = (client.clone(), SandboxId::from(id).to_string());
        tracing::info!(sandbox_id, "destroying a sandbox that the database says is not wanted");
        let request = DestroyRequest { sandbox_id, fleet: Some(message(fleet)).into(), ..Default::default() };
        self.remove(id, async move {
            client.destroy_with_options(request, within(deadline::DESTROY)).await?;
            Ok(())
        });
    }

    /// Destroys microVMs without a row after a grace period; rows are written before an agent is called.
    fn strays(&mut self, client: &AgentClient, fleet: Fleet, there: &HashMap<Uuid, OnHost>) {
        self.not_understood.retain(|id| there.contains_key(id));
        for (id, sandbox) in there {
            if let Some(cause) = cause_unknown(sandbox)
                && self.not_understood.insert(*id)
            {
                let sandbox_id = SandboxId::from(*id);
                tracing::warn!(%sandbox_id, cause, "a host does not understand a sandbox that has no record; both are left alone");
            }
        }
        if !self.quarantine.is_empty() {
            self.strays.forget();
            return;
        }
        let present = there.iter().filter(|(_, sandbox)| may_be_stray(sandbox)).map(|(id, _)| *id).collect();
        let grace = self.app.limits.stray_grace;
        let look = self.strays.seen(&present, Instant::now(), grace);
        for id in look.new {
            let (sandbox_id, host) = (SandboxId::from(id), HostId::from(self.id));
            tracing::warn!(%sandbox_id, %host, ?grace, "a host has a sandbox without a record; it is destroyed later");
        }
        for id in look.due {
            self.destroy(client, fleet, id);
        }
    }
}

/// Returns whether an agent rejected a call that was meant for another host. Only errors of the agent itself
/// have a code.
fn is_of_another_host(error: &ConnectError) -> bool {
    wrenn_rpc::fault::of(error).is_some_and(|(code, _)| code == ErrorCode::HostUnavailable.as_str())
}
