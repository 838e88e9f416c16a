// SPDX-License-Identifier: Apache-2.0
//! Operation that pauses a sandbox: its memory becomes a generation, and only that and its disk stay.

use super::{
    steps::{Cancel, Steps},
    undo::release_running,
};
use crate::{
    error::AgentError,
    sandbox::{
        entry::Entry,
        phase::{Live, Memory},
        record::Sandbox,
        summary::Stage,
    },
    snapshots::Captured,
};

/// Step of the operation.
type Step = super::steps::Step<Pause>;

/// State of a pause.
pub(in crate::sandbox) struct Pause {
    /// What runs; gone when the sandbox is paused.
    live: Option<Box<Live>>,
    captured: Option<Captured>,
    memory: Option<Memory>,
}

/// What is left of a pause that failed.
pub(in crate::sandbox) enum Left {
    /// The guest goes on.
    Running(Box<Live>),
    /// The sandbox is paused, and something that it does not need could not be released.
    Paused(Memory, Option<Box<Live>>),
    /// The guest does not go on.
    Stuck(Box<Live>),
}

impl Steps for Pause {
    const NAME: &'static str = "pause";
    const STEPS: &'static [Step] = &[
        Step::new(|pause, sandbox| Box::pin(pause.prepare(sandbox))),
        Step::write(|_, _| vec![Entry::Pausing]).points(&["recorded"]),
        Step::new(|pause, sandbox| Box::pin(pause.capture(sandbox))).points(&["captured"]),
        Step::new(|pause, sandbox| Box::pin(pause.keep(sandbox))).points(&["kept"]),
        Step::write(|pause, _| pause.memory.iter().map(Memory::entry).collect()).points(&["paused"]),
        Step::new(|pause, sandbox| Box::pin(pause.release(sandbox))).points(&["released"]),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Finish
    }
}

fn left_out() -> AgentError {
    AgentError::fault("pausing the sandbox", &"an earlier step was left out")
}

/// Checks that there is room for a guest's memory, and tells the guest that it is about to be stopped.
pub(super) async fn prepare(live: &Live, sandbox: &Sandbox) -> Result<(), AgentError> {
    sandbox.shared.check_snapshots(live.held).await?;
    if let Err(error) = live.guest.prepare_pause().await {
        tracing::warn!(id = sandbox.id, %error, "a guest is stopped without being prepared");
    }
    Ok(())
}

impl Pause {
    /// Pause of a sandbox of which this runs.
    pub(in crate::sandbox) fn new(live: Box<Live>) -> Self {
        Self { live: Some(live), captured: None, memory: None }
    }

    /// Memory of the paused sandbox, after all steps.
    pub(in crate::sandbox) fn finish(&mut self) -> Result<Memory, AgentError> {
        self.memory.take().ok_or_else(left_out)
    }

    fn live(&self) -> Result<&Live, AgentError> {
        self.live.as_deref().ok_or_else(left_out)
    }

    /// Checks that there is room, and tells the guest.
    async fn prepare(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        prepare(self.live()?, sandbox).await
    }

    /// Stops the guest and writes its memory.
    async fn capture(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let snapshots = &sandbox.shared.snapshots;
        let live = self.live.as_deref_mut().ok_or_else(left_out)?;
        let base = live.base;
        live.vm.pause().await?;
        // From here on it is only known again if the capture is kept.
        live.base = snapshots.base_after(base);
        self.captured = Some(snapshots.capture(&*live.vm, sandbox.captures(), base, &sandbox.id).await?);
        Ok(())
    }

    /// Keeps memory and disk: they survive a power failure afterwards.
    async fn keep(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let captured = self.captured.take().ok_or_else(left_out)?;
        let build = captured.build;
        let shared = &sandbox.shared;
        let (kept, disk) = futures::join!(
            shared.snapshots.keep(captured, Some(sandbox.working_set())),
            shared.volumes.sync(&sandbox.id)
        );
        let kept = kept.and_then(|_| Ok(disk?));
        if let Err(error) = kept {
            shared.snapshots.remove(build).await;
            return Err(error);
        }
        self.memory = Some(Memory::Kept(build));
        Ok(())
    }

    /// Releases what only a running sandbox needs, and its former memory.
    async fn release(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let Some(live) = self.live.take() else { return Err(left_out()) };
        live.guest.end();
        let memory = self.memory.as_ref().and_then(Memory::build);
        let former: Vec<_> = sandbox
            .record
            .summary()
            .generations()
            .into_iter()
            .filter(|build| Some(*build) != memory)
            .collect();
        let mut vm = Some(live.vm);
        let released = release_running(sandbox, &mut vm, None).await;
        if let Some(vm) = vm {
            self.live = Some(Box::new(Live { vm, guest: live.guest, timings: live.timings, ..*live }));
        }
        released?;
        sandbox.shared.snapshots.remove_of(&sandbox.id, former).await;
        Ok(())
    }

    /// Lets the guest go on after a failure, if the sandbox was not paused yet.
    pub(in crate::sandbox) async fn give_up(mut self, sandbox: &mut Sandbox) -> Left {
        let paused = matches!(sandbox.record.summary().stage(), Stage::Paused { .. });
        if let (true, Some(memory)) = (paused, self.memory.take()) {
            return Left::Paused(memory, self.live.take());
        }
        let Some(live) = self.live.take() else {
            return Left::Paused(Memory::recorded(None, None), None);
        };
        if let Err(error) = live.vm.resume().await {
            tracing::error!(id = sandbox.id, %error, "a guest does not go on after a pause that failed");
            return Left::Stuck(live);
        }
        let entries = vec![Entry::Vmm { process: live.vm.process(), base: live.base }, Entry::Running];
        match sandbox.record.write(entries).await {
            Ok(()) => {
                if let Some(build) = self.memory.as_ref().and_then(Memory::build) {
                    sandbox.shared.snapshots.remove(build).await;
                }
            }
            // The next start finds a guest that was being paused, and lets it go on.
            Err(error) => tracing::error!(id = sandbox.id, %error, "cannot record that a guest goes on"),
        }
        Left::Running(live)
    }
}
