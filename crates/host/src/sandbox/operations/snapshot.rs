// SPDX-License-Identifier: Apache-2.0
//! Operations that make a named snapshot: of a sandbox that runs, which stands still only while its memory is captured
//! and its disk copied, and of one that is paused.

use wrenn_memory::BuildId;

use super::{
    pause::prepare,
    steps::{Cancel, Step, Steps, run},
};
use crate::{
    error::AgentError,
    sandbox::{entry::Entry, environment, phase::Live, record::Sandbox, spec::Spec},
    snapshots::{
        Base, Captured,
        named::{self, NamedSnapshot},
    },
};

/// First part of the names of the fault points of both operations.
const NAME: &str = "snapshot";

/// Step of a snapshot of a sandbox that runs.
type RunningStep = Step<OfRunning>;
/// Step of a snapshot of a sandbox that is paused.
type PausedStep = Step<OfPaused>;

/// State of a snapshot of a sandbox that runs.
pub(super) struct OfRunning {
    id: String,
    live: Box<Live>,
    /// Whether the guest stands still for good.
    stuck: bool,
    /// What was captured of it; an error if only that failed.
    captured: Option<Result<Captured, AgentError>>,
    /// Generation that its memory becomes.
    build: Option<BuildId>,
}

/// State of a snapshot of a sandbox that is paused.
pub(super) struct OfPaused {
    id: String,
    /// Memory of the sandbox.
    memory: BuildId,
    /// Generation that the copy of its memory becomes.
    build: BuildId,
}

/// Failure of a snapshot.
pub(in crate::sandbox) enum Failure {
    /// The sandbox is as before.
    Refused(AgentError),
    /// Its guest stands still.
    Stuck(AgentError),
}

impl Steps for OfRunning {
    const NAME: &'static str = NAME;
    const STEPS: &'static [RunningStep] = &[
        RunningStep::new(|snapshot, sandbox| Box::pin(snapshot.prepare(sandbox))),
        // An agent that finds this lets the guest go on.
        RunningStep::write(|_, _| vec![Entry::Pausing]),
        RunningStep::new(|snapshot, sandbox| Box::pin(snapshot.capture(sandbox))),
        // Also if nothing was captured.
        RunningStep::write(Self::goes_on).points(&["captured"]),
        RunningStep::new(|snapshot, sandbox| Box::pin(snapshot.keep(sandbox))).points(&["kept"]),
        RunningStep::new(|snapshot, sandbox| Box::pin(snapshot.record(sandbox))),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Finish
    }
}

impl Steps for OfPaused {
    const NAME: &'static str = NAME;
    const STEPS: &'static [PausedStep] = &[
        PausedStep::new(|snapshot, sandbox| Box::pin(snapshot.copy(sandbox))).points(&["kept"]),
        PausedStep::new(|snapshot, sandbox| Box::pin(snapshot.record(sandbox))),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Finish
    }
}

fn left_out() -> AgentError {
    AgentError::fault("making the snapshot", &"an earlier step was left out")
}

/// Makes snapshot `id` of a sandbox of which this runs, and gives that back. On an error the guest goes on, unless it is
/// [`Failure::Stuck`].
pub(in crate::sandbox) async fn of_running(
    live: Box<Live>,
    sandbox: &mut Sandbox,
    id: &str,
) -> (Box<Live>, Result<(), Failure>) {
    let id = id.to_owned();
    let mut snapshot = OfRunning { id, live, stuck: false, captured: None, build: None };
    let before = sandbox.record.summary().generations();
    let made = run(&mut snapshot, sandbox).await;
    if let (Err(_), Some(build)) = (&made, snapshot.build) {
        sandbox.shared.named.drop_parts(build).await;
    }
    // What its memory is based on now may be the snapshot. The VMM or the page server has the former files open.
    let named = sandbox.record.summary().generations();
    let former = before.into_iter().filter(|build| !named.contains(build));
    sandbox.shared.snapshots.remove_of(&sandbox.id, former).await;
    let failure = if snapshot.stuck { Failure::Stuck } else { Failure::Refused };
    (snapshot.live, made.map(drop).map_err(failure))
}

/// Makes snapshot `id` of a sandbox that is paused with this memory.
pub(in crate::sandbox) async fn of_paused(
    memory: BuildId,
    sandbox: &mut Sandbox,
    id: &str,
) -> Result<(), AgentError> {
    let mut snapshot = OfPaused { id: id.to_owned(), memory, build: BuildId::new() };
    let made = run(&mut snapshot, sandbox).await;
    if made.is_err() {
        sandbox.shared.named.drop_parts(snapshot.build).await;
    }
    made.map(drop)
}

impl OfRunning {
    /// Checks that there is room, and tells the guest.
    async fn prepare(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        prepare(&self.live, sandbox).await
    }

    /// Writes memory and disk of one instant, and lets the guest go on.
    async fn capture(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let captured = capture(&self.live, sandbox, &self.id).await;
        if let Err(error) = self.live.vm.resume().await {
            self.stuck = true;
            return Err(error.into());
        }
        let base = sandbox.shared.snapshots.base_after(self.live.base);
        self.live.base = match &captured {
            // It is what the changes are since; should it not be kept, it is not found when it is needed.
            Ok(captured) if base == Base::Unknown => Base::Generation(captured.build),
            _ => base,
        };
        self.build = captured.as_ref().map(|captured| captured.build).ok();
        self.captured = Some(captured);
        Ok(())
    }

    /// Entries of the guest that goes on.
    fn goes_on(&self, _: &Sandbox) -> Vec<Entry> {
        vec![Entry::Vmm { process: self.live.vm.process(), base: self.live.base }, Entry::Running]
    }

    /// Keeps the memory: it survives a power failure afterwards.
    async fn keep(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let captured = self.captured.take().ok_or_else(left_out)??;
        sandbox.shared.snapshots.keep(captured, None).await.map(drop)
    }

    async fn record(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        record(sandbox, &self.id, self.build.ok_or_else(left_out)?).await
    }
}

impl OfPaused {
    /// Copies disk and memory, if there is room.
    async fn copy(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let shared = &sandbox.shared;
        shared.check_snapshots(false).await?;
        shared.volumes.copy(&sandbox.id, &named::volume_of(self.build)).await?;
        shared.snapshots.copy(self.memory, self.build, &named::label(&self.id)).await
    }

    async fn record(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        record(sandbox, &self.id, self.build).await
    }
}

/// Stops the guest, and writes its memory and its disk of this instant for snapshot `id`.
async fn capture(live: &Live, sandbox: &Sandbox, id: &str) -> Result<Captured, AgentError> {
    let shared = &sandbox.shared;
    live.vm.pause().await?;
    let captured =
        shared.snapshots.capture(&*live.vm, sandbox.captures(), live.base, &named::label(id)).await?;
    shared.volumes.copy(&sandbox.id, &named::volume_of(captured.build)).await?;
    Ok(captured)
}

/// Keeps the disk and the record of snapshot `id`, whose memory is kept.
async fn record(sandbox: &Sandbox, id: &str, build: BuildId) -> Result<(), AgentError> {
    let shared = &sandbox.shared;
    shared.volumes.sync(&named::volume_of(build)).await?;
    let Spec { template, vcpus, memory_mb, disk_size_mb, default_user, access_token, .. } = &*sandbox.spec;
    let record = NamedSnapshot {
        id: id.to_owned(),
        build,
        template: template.clone(),
        vcpus: *vcpus,
        memory_mb: *memory_mb,
        disk_size_mb: *disk_size_mb,
        default_user: default_user.clone(),
        access_token: access_token.clone(),
        envs: environment::read(sandbox).await?.into_iter().collect(),
    };
    shared.named.keep(record).await
}
