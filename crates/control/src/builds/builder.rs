// SPDX-License-Identifier: Apache-2.0
//! A build in work: finds what of its plan is in the cache, does the other steps in a sandbox, and keeps their results.

use std::{
    mem,
    time::{Duration, Instant},
};

use wrenn_api::{BuildSecrets, ErrorCode, SandboxId};
use wrenn_recipe::{Instruction, Recipe};

use super::{
    base::Base,
    cache::{Cache, Miss},
    files,
    guest::{self, Guest},
    inputs::Inputs,
    log::Log,
    plan::{Link, Place, Plan, Planned, Problem, Work},
    planned,
    report::Report,
    steps::Steps,
    stop::{Failure, Stop},
};
use crate::{
    db::{
        builds::{self, Claim, Job},
        layers::{self, Layer},
        snapshots::Row as Snapshot,
    },
    error::Fault,
    snapshots::{self, Keeps},
    state::App,
    templates::{Origin, Sizes, Source},
};

/// Time for which a build waits until there is room for its sandbox, and the interval between its attempts.
pub(super) const FOR_ROOM: Duration = Duration::from_secs(600);
pub(super) const AGAIN: Duration = Duration::from_secs(5);
/// Time for which a build waits for a host that has results of its steps and was there a moment ago, as when its agent or the server
/// that looks after it is started again. Then it does them anew elsewhere.
const FOR_HOST: Duration = Duration::from_secs(20);
/// Interval between looks whether that host is back.
const LOOK: Duration = Duration::from_secs(1);
/// Number of attempts to get the name of its sandbox, which a worker before may have given to another one.
const NAME_TRIES: usize = 4;

/// A build in work.
pub(super) struct Builder {
    pub(super) app: App,
    pub(super) job: Job,
    pub(super) log: Log,
    pub(super) report: Report,
    /// The step that names the base.
    pub(super) from: Place,
    /// Whether this worker has imported the base, if it is an image of a registry.
    pub(super) has_imported: bool,
    /// The sandbox, once there is one.
    sandbox: Option<SandboxId>,
    /// Bytes that its disk occupied after the last step that has a result, or when the first one began, if that is known.
    disk_bytes: Option<i64>,
}

impl Builder {
    /// Prepares to work on a build.
    pub(super) fn new(app: &App, job: Job) -> Self {
        let (log, report) = (Log::new(app, job.claim()), Report::stored(&job.steps));
        let from = Place { number: 1, line: 1 };
        Self {
            app: app.clone(),
            job,
            log,
            report,
            from,
            has_imported: false,
            sandbox: None,
            disk_bytes: None,
        }
    }

    /// The right to write to the build.
    pub(super) const fn claim(&self) -> Claim {
        self.job.claim()
    }

    /// The sandbox of the build, if it has one.
    pub(super) const fn sandbox(&self) -> Option<SandboxId> {
        self.sandbox
    }

    /// Builds, and returns the number of the template's new version.
    pub(super) async fn run(&mut self) -> Result<i32, Stop> {
        if self.job.cancel_requested {
            return Err(Stop::Cancelled);
        }
        if self.job.attempt > 1 {
            self.log.say(0, format!("attempt {}: the worker before is gone", self.job.attempt));
        }
        self.save().await?;
        guest::remove_all(&self.app, &self.job).await.map_err(Stop::of)?;
        let base: Base = serde_json::from_value(self.job.base.clone()).map_err(|error| unreadable(&error))?;
        let recipe = wrenn_recipe::parse(self.job.recipe.as_bytes());
        let recipe = recipe.map_err(|errors| Failure::new(errors.to_string()))?;
        let mut base = self.known(&recipe, base).await?;
        let files = files::get(&self.app, self.job.context.as_deref()).await.map_err(Stop::of)?;
        let (recipe, plan) = planned(recipe, &base, self.sizes(), files.clone()).await.map_err(Stop::of)?;
        let plan = plan.map_err(|problems| refused(&problems))?;
        let before = mem::replace(&mut self.report, Report::new(&plan));

        let until = Instant::now() + FOR_HOST;
        let mut cache = self.cache(&plan, until).await?;
        loop {
            let begin = cache.begin(&plan);
            let (after, layer) = (begin.after, begin.layer.cloned());
            self.tell(&plan, &cache, &base, after, &before).await?;
            let failed = match self.begin(&plan, &cache, &mut base, after, layer.as_ref()).await? {
                Begun::Ended(version) => return Ok(version),
                Begun::In(guest) => {
                    self.disk_bytes = match &layer {
                        Some(layer) => layer.disk_bytes,
                        None => guest.disk_bytes().await,
                    };
                    let kept = layer.map(|layer| (layer.snapshot_id, layer.host_id));
                    let mut steps = Steps::new(guest, files, after, kept, self.secrets(&plan).await?);
                    steps.entrypoint = base.entrypoint().to_vec();
                    return self.build(steps, &recipe, &plan, &base).await;
                }
                Begun::Failed(fault) => fault,
            };
            // Without this layer, it begins with one before, or with the base.
            let Some(layer) = layer else { return Err(Stop::of(failed)) };
            if failed.code == ErrorCode::HostUnavailable && Instant::now() < until {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            self.give_up(&mut cache, &layer, failed).await?;
        }
    }

    /// Begins after the step `after`, whose result is `layer`. If nothing is left to do in a sandbox, this also ends the build.
    async fn begin(
        &mut self,
        plan: &Plan,
        cache: &Cache,
        base: &mut Base,
        after: u32,
        layer: Option<&Layer>,
    ) -> Result<Begun, Stop> {
        if Cache::has_all(plan, after) {
            if cache.may_take_template(plan)
                && let Some(version) = self.take_same(plan).await?
            {
                return Ok(Begun::Ended(version));
            }
            if let Some(layer) = layer.filter(|_| !plan.has_start) {
                // Nothing is to be done for those after it.
                let rest = plan.steps.iter().filter(|step| step.place.number > after);
                rest.for_each(|step| self.report.done(step.place.number, None, None));
                let made = self.image(plan, layer.snapshot_id, layer.host_id).await?;
                return Ok(made.map_or_else(Begun::Failed, Begun::Ended));
            }
        }
        let created = match layer {
            None => self.create_from(base).await?,
            Some(layer) => {
                let (id, host, sizes) = (layer.snapshot_id, layer.host_id, self.sizes());
                let source = Source::Snapshot { id, host, sizes };
                let origin = Origin { source, is_version: true, ..Origin::of_platform(base.name()) };
                self.create(origin).await?
            }
        };
        Ok(created.map_or_else(Begun::Failed, |guest| Begun::In(Box::new(guest))))
    }

    /// Does the steps in the sandbox, and makes the template of what is there then.
    async fn build(
        &mut self,
        mut steps: Steps,
        recipe: &Recipe,
        plan: &Plan,
        base: &Base,
    ) -> Result<i32, Stop> {
        let mut context = base.context();
        steps.is_checked =
            recipe.steps.iter().any(|step| matches!(step.instruction, Instruction::Healthcheck(_)));
        for (step, planned) in recipe.steps.iter().zip(&plan.steps) {
            let number = planned.place.number;
            let action = context.apply(step).map_err(|error| Failure::new(error.to_string()))?;
            if number <= steps.after {
                steps.pass(planned.place, &action);
                continue;
            }
            if let Work::Nothing = planned.work {
                self.report.done(number, None, None);
                continue;
            }
            if steps.is_spent() {
                self.move_on(&mut steps, base).await?;
            }
            self.report.running(number);
            self.save().await?;
            let begun = Instant::now();
            let done = match steps.perform(&mut self.log, planned.place, action, &context).await {
                Ok(exit_code) => self.keep(&mut steps, planned).await.map(|()| exit_code),
                Err(stop) => Err(stop),
            };
            match done {
                Ok(exit_code) => self.report.done(number, Some(begun.elapsed()), exit_code),
                Err(stop) => {
                    if let Stop::Failed(failure) = &stop {
                        self.report.failed(number, Some(begun.elapsed()), failure.exit_code);
                    }
                    return Err(stop);
                }
            }
        }
        self.save().await?;
        steps.leave();
        self.complete(&steps, plan).await
    }

    /// Keeps the result of a step that was done, if it has one.
    async fn keep(&mut self, steps: &mut Steps, planned: &Planned) -> Result<(), Stop> {
        let Some(link) = planned.layer() else { return Ok(()) };
        let keeps = if planned.has_secrets { Keeps::DiskAlone } else { Keeps::Memory };
        let snapshot = snapshots::of_build(&self.app, steps.guest().row(), keeps).await;
        let snapshot = snapshot.map_err(|fault| Stop::in_step(planned.place, fault))?;
        let added = self.added(snapshot.disk_bytes);
        self.report.added(planned.place.number, added.and_then(|bytes| bytes.try_into().ok()));
        self.put(link, &snapshot, added).await?;
        steps.kept = Some((snapshot.id, snapshot.host_id));
        if planned.has_secrets {
            steps.spend();
        }
        Ok(())
    }

    /// Leaves the sandbox of a step that had secrets, of which its memory may have something, and goes on in another one that boots
    /// from what the step has left on the disk.
    async fn move_on(&mut self, steps: &mut Steps, base: &Base) -> Result<(), Stop> {
        let Some((id, host)) = steps.kept else { return Ok(()) };
        self.log.say(0, "the sandbox of the step with secrets is left; the next step is done in another one");
        self.log.flush().await?;
        guest::remove_all(&self.app, &self.job).await.map_err(Stop::of)?;
        self.sandbox = None;
        let source = Source::Snapshot { id, host, sizes: self.sizes() };
        let origin = Origin { source, is_version: true, ..Origin::of_platform(base.name()) };
        let guest = self.create(origin).await?.map_err(Stop::of)?;
        steps.enter(guest);
        Ok(())
    }

    /// Returns the values of the build's secrets, if a step may need them.
    async fn secrets(&self, plan: &Plan) -> Result<BuildSecrets, Stop> {
        if !plan.steps.iter().any(|step| step.has_secrets) {
            return Ok(BuildSecrets::default());
        }
        let values = builds::secrets(&self.app.db, self.claim()).await?;
        values.map_or(Ok(BuildSecrets::default()), serde_json::from_value).map_err(|_| {
            // The error may quote them.
            tracing::error!("the secrets of a build cannot be read");
            Stop::of(Fault::internal())
        })
    }

    /// Returns how many bytes a step has added to the disk that occupies so many now, if that is known.
    fn added(&mut self, now: Option<i64>) -> Option<i64> {
        let before = mem::replace(&mut self.disk_bytes, now)?;
        // What a step removes may free room, too.
        Some(now?.saturating_sub(before).max(0))
    }

    async fn put(&self, link: &Link, snapshot: &Snapshot, bytes_added: Option<i64>) -> Result<(), Stop> {
        let new = layers::New {
            team_id: self.job.team_id,
            key: &link.key,
            snapshot_id: snapshot.id,
            parent: &link.parent,
            inputs: serde_json::to_value(&link.inputs).unwrap_or_default(),
            bytes_added,
        };
        if !layers::put(&self.app.db, new).await? {
            tracing::warn!(snapshot = %snapshot.id, "the result of a step was removed before it was recorded");
        }
        Ok(())
    }

    /// Finds the layers that there are. Waits until then for hosts with some of them that were there a moment ago.
    async fn cache(&self, plan: &Plan, until: Instant) -> Result<Cache, Stop> {
        let keys: Vec<String> =
            plan.steps.iter().filter_map(Planned::layer).map(|link| link.key.clone()).collect();
        loop {
            let layers = layers::of_keys(&self.app.db, self.job.team_id, &keys).await?;
            let may_return = layers.iter().any(|layer| !layer.is_online && layer.was_online);
            if !may_return || Instant::now() >= until {
                return Ok(Cache::new(layers, self.job.no_cache_from.map(|number| number as u32)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells which steps are in the cache, and of the others why they are not.
    async fn tell(
        &mut self,
        plan: &Plan,
        cache: &Cache,
        base: &Base,
        after: u32,
        before: &Report,
    ) -> Result<(), Stop> {
        self.report.begin_after(after, before);
        for step in plan.steps.iter().filter(|step| step.place.number <= after) {
            self.report.added(step.place.number, cache.bytes_added(step));
        }
        for (number, miss) in cache.misses(plan, after) {
            let link = plan.steps.iter().find(|step| step.place.number == number).and_then(Planned::layer);
            let reason = match (miss, link) {
                (Miss::Absent, Some(link)) => self.compared(plan, base, link).await?,
                _ => None,
            };
            self.report.miss(number, reason.unwrap_or_else(|| miss.reason().to_owned()));
        }
        self.save().await
    }

    /// Says how a step differs from what was done in its place before, or that the base is another one; `None` if there was nothing.
    async fn compared(&self, plan: &Plan, base: &Base, link: &Link) -> Result<Option<String>, Stop> {
        let (team, kind) = (self.job.team_id, &link.inputs.kind);
        let before = layers::latest_inputs(&self.app.db, team, &link.parent, kind).await?;
        let before = before.and_then(|before| serde_json::from_value::<Inputs>(before).ok());
        if let Some(before) = before {
            return Ok(Some(link.inputs.difference(&before)));
        }
        let Some((kind, of, now)) = base.digest().filter(|_| link.parent == plan.base) else {
            return Ok(None);
        };
        let (id, name) = (self.job.id, &self.job.name);
        let digest = builds::digest_before(&self.app.db, team, id, name, (kind, of)).await?;
        let has_moved = digest.is_some_and(|digest| digest != now);
        Ok(has_moved.then(|| "base digest moved".to_owned()))
    }

    /// Gives a layer up from which the build could not begin. Fails with the fault if that is not the layer's.
    async fn give_up(&self, cache: &mut Cache, layer: &Layer, fault: Fault) -> Result<(), Stop> {
        use ErrorCode::{HostUnavailable, NotFound, SnapshotDamaged, SnapshotIncompatible, SnapshotMissing};
        match fault.code {
            HostUnavailable => cache.unreachable(&layer.key),
            NotFound | SnapshotDamaged | SnapshotIncompatible | SnapshotMissing => {
                layers::forget(&self.app.db, self.job.team_id, &layer.key, layer.snapshot_id).await?;
                cache.broken(&layer.key);
            }
            _ => return Err(Stop::of(fault)),
        }
        tracing::info!(snapshot = %layer.snapshot_id, %fault, "the result of a step cannot be used");
        Ok(())
    }

    /// Creates the sandbox. Waits for room for it, for a while.
    pub(super) async fn create(&mut self, origin: Origin) -> Result<Result<Guest, Fault>, Stop> {
        let (begun, mut names, mut is_told) = (Instant::now(), 0, false);
        loop {
            let fault = match Guest::create(&self.app, &self.job, origin.clone(), self.sizes()).await {
                Ok(guest) => {
                    self.sandbox = Some(guest.id());
                    self.save().await?;
                    return Ok(Ok(guest));
                }
                Err(fault) => fault,
            };
            match fault.code {
                ErrorCode::NoHostsAvailable if begun.elapsed() < FOR_ROOM => {
                    if !mem::replace(&mut is_told, true) {
                        self.log.say(0, format!("waiting for a host: {}", fault.message));
                        self.log.flush().await?;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                ErrorCode::SandboxNameTaken if names < NAME_TRIES => {
                    names += 1;
                    // Stops if the name is that of the sandbox of another worker, which has the build now.
                    self.save().await?;
                    guest::remove_all(&self.app, &self.job).await.map_err(Stop::of)?;
                }
                _ => return Ok(Err(fault)),
            }
        }
    }

    /// Records how far the build is, with all of the log so far.
    pub(super) async fn save(&mut self) -> Result<(), Stop> {
        self.log.flush().await?;
        let sandbox = self.sandbox.map(SandboxId::uuid);
        if builds::progress(&self.app.db, self.claim(), self.report.to_json(), sandbox).await? {
            return Ok(());
        }
        Err(Stop::Lost)
    }

    pub(super) fn sizes(&self) -> Sizes {
        let (vcpus, memory_mb) = (self.job.vcpus as u32, self.job.memory_mb as u32);
        Sizes { vcpus, memory_mb, disk_size_mb: self.job.disk_size_mb as u32 }
    }
}

/// How a build began.
enum Begun {
    /// In this sandbox.
    In(Box<Guest>),
    /// It has ended with this version.
    Ended(i32),
    /// Not, because of this.
    Failed(Fault),
}

fn unreadable(error: &serde_json::Error) -> Stop {
    tracing::error!(%error, "the base of a build cannot be read");
    Stop::of(Fault::internal())
}

/// The failure of a recipe that was taken, and cannot be built any more.
fn refused(problems: &[Problem]) -> Failure {
    let all: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    Failure::new(all.join("\n"))
}
