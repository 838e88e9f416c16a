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
    sandbox::{admit::Wish, entry::Entry, environment, phase::Live, record::Sandbox},
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
    wish: Wish,
    live: Box<Live>,
    /// Whether the guest stands still for good.
    stuck: bool,
    /// What was captured of its memory, if that is kept; an error if only that or the copy of the disk failed.
    captured: Option<Result<Option<Captured>, AgentError>>,
    /// Generation that its memory becomes, or would; the disk is named after it.
    build: Option<BuildId>,
}

/// State of a snapshot of a sandbox that is paused.
pub(super) struct OfPaused {
    wish: Wish,
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

/// Makes a snapshot of a sandbox of which this runs, and gives that back. On an error the guest goes on, unless it is
/// [`Failure::Stuck`].
pub(in crate::sandbox) async fn of_running(
    live: Box<Live>,
    sandbox: &mut Sandbox,
    wish: &Wish,
) -> (Box<Live>, Result<(), Failure>) {
    let wish = wish.clone();
    let mut snapshot = OfRunning { wish, live, stuck: false, captured: None, build: None };
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

/// Makes a snapshot of a sandbox that is paused with this memory.
pub(in crate::sandbox) async fn of_paused(
    memory: BuildId,
    sandbox: &mut Sandbox,
    wish: &Wish,
) -> Result<(), AgentError> {
    let mut snapshot = OfPaused { wish: wish.clone(), memory, build: BuildId::new() };
    let made = run(&mut snapshot, sandbox).await;
    if made.is_err() {
        sandbox.shared.named.drop_parts(snapshot.build).await;
    }
    made.map(drop)
}

impl OfRunning {
    /// Checks that there is room, and tells the guest.
    async fn prepare(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if !self.wish.without_memory {
            return prepare(&self.live, sandbox).await;
        }
        sandbox.shared.check_snapshots(self.live.held).await?;
        // What has not reached the disk is not kept.
        self.live.guest.sync().await
    }

    /// Writes memory and disk of one instant, or the disk alone, and lets the guest go on.
    async fn capture(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let captured = if self.wish.without_memory {
            capture_disk(&self.live, sandbox).await.map(|build| (build, None))
        } else {
            let captured = capture(&self.live, sandbox, &self.wish.id).await;
            captured.map(|captured| (captured.build, Some(captured)))
        };
        if let Err(error) = self.live.vm.resume().await {
            self.stuck = true;
            return Err(error.into());
        }
        self.build = captured.as_ref().map(|(build, _)| *build).ok();
        let captured = captured.map(|(_, captured)| captured);
        if self.wish.without_memory {
            // Nothing was read of the memory, so that its base is what it was.
            self.captured = Some(captured);
            return Ok(());
        }
        let base = sandbox.shared.snapshots.base_after(self.live.base);
        self.live.base = match &captured {
            // It is what the changes are since; should it not be kept, it is not found when it is needed.
            Ok(Some(captured)) if base == Base::Unknown => Base::Generation(captured.build),
            _ => base,
        };
        self.captured = Some(captured);
        Ok(())
    }

    /// Entries of the guest that goes on.
    fn goes_on(&self, _: &Sandbox) -> Vec<Entry> {
        vec![Entry::Vmm { process: self.live.vm.process(), base: self.live.base }, Entry::Running]
    }

    /// Keeps the memory: it survives a power failure afterwards.
    async fn keep(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        match self.captured.take().ok_or_else(left_out)?? {
            Some(captured) => sandbox.shared.snapshots.keep(captured, None).await.map(drop),
            None => Ok(()),
        }
    }

    async fn record(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        record(sandbox, &self.wish, self.build.ok_or_else(left_out)?).await
    }
}

impl OfPaused {
    /// Copies disk and memory, if there is room.
    async fn copy(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let shared = &sandbox.shared;
        shared.check_snapshots(false).await?;
        shared.volumes.copy(&sandbox.id, &named::volume_of(self.build)).await?;
        if self.wish.without_memory {
            return Ok(());
        }
        shared.snapshots.copy(self.memory, self.build, &named::label(&self.wish.id)).await
    }

    async fn record(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        record(sandbox, &self.wish, self.build).await
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

/// Stops the guest, and copies its disk of this instant; returns what the copy is named after.
async fn capture_disk(live: &Live, sandbox: &Sandbox) -> Result<BuildId, AgentError> {
    let build = BuildId::new();
    live.vm.pause().await?;
    sandbox.shared.volumes.copy(&sandbox.id, &named::volume_of(build)).await?;
    Ok(build)
}

/// Keeps the disk and the record of a snapshot, whose memory is kept if it has any.
async fn record(sandbox: &Sandbox, wish: &Wish, build: BuildId) -> Result<(), AgentError> {
    let shared = &sandbox.shared;
    shared.volumes.sync(&named::volume_of(build)).await?;
    let spec = &*sandbox.spec;
    let record = NamedSnapshot {
        id: wish.id.clone(),
        build,
        without_memory: wish.without_memory,
        template: spec.template.clone(),
        vcpus: spec.vcpus,
        memory_mb: spec.memory_mb,
        disk_size_mb: spec.disk_size_mb,
        default_user: spec.default_user.clone(),
        default_workdir: spec.default_workdir.clone(),
        access_token: spec.access_token.clone(),
        envs: environment::read(sandbox).await?.into_iter().collect(),
    };
    shared.named.keep(record).await
}
