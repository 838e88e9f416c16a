// SPDX-License-Identifier: Apache-2.0
//! Task of one sandbox, the only one that changes it, one operation after another.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior},
};
use tracing::{Instrument as _, Span};
use wrenn_api::ErrorCode;
use wrenn_disk::{DiskError, Health};
use wrenn_network::SlotSpec;
use wrenn_vmm::MicroVm;

use super::{
    admit::{Admit, Cause, Creation, Operation, Request, Wish, admit},
    entry::Thing,
    guest::Guest,
    last_words::{self, LastWords},
    mailbox::{Asked, Mailbox, refusal},
    operations::{self, Cancel, Create, Destroy, Fail, Pause, PauseLeft, Resume, Steps as _, snapshot},
    phase::{Live, Memory, Phase, Published, State, Timings},
    record::Sandbox,
    spec::Spec,
    summary::Stage,
};
use crate::error::AgentError;

/// Interval between health checks of a sandbox's disk.
const DISK_LOOK: Duration = Duration::from_secs(5);

/// Handle of a sandbox's task.
#[derive(Clone)]
pub(crate) struct Handle {
    /// Specification.
    pub(crate) spec: Arc<Spec>,
    /// Current state.
    pub(crate) published: watch::Receiver<Published>,
    requests: mpsc::Sender<Asked>,
}

/// How a sandbox's task begins.
pub(crate) enum Start {
    /// Create the sandbox, for the call of this span.
    Create(Creation, Span),
    /// Adopt a microVM of a former agent, in this slot.
    Adopt(Box<dyn MicroVm>, SlotSpec),
    /// Complete the resume of a former agent, whose microVM is in this slot.
    Resume(Box<dyn MicroVm>, SlotSpec),
    /// Wait for requests in this phase.
    In(Phase),
}

/// Starts the task of a sandbox.
pub(crate) fn spawn(sandbox: Sandbox, start: Start) -> Handle {
    let (publish, published) = watch::channel(Phase::Creating.view());
    let (requests, mailbox) = Mailbox::new();
    let handle = Handle { spec: sandbox.spec.clone(), published, requests };
    let mut held = sandbox.shared.held.clone();
    // Adopted sandboxes are held or go on, too.
    held.mark_changed();
    let span = tracing::info_span!("sandbox", id = sandbox.id);
    let actor = Actor { sandbox, phase: Phase::Creating, mailbox, publish, held };
    tokio::spawn(actor.run(start).instrument(span));
    handle
}

struct Actor {
    sandbox: Sandbox,
    phase: Phase,
    mailbox: Mailbox,
    publish: watch::Sender<Published>,
    held: watch::Receiver<bool>,
}

impl Handle {
    /// Returns the current state.
    pub(crate) fn now(&self) -> Published {
        self.published.borrow().clone()
    }

    /// Returns the state when the sandbox was created or adopted, or after this time.
    pub(crate) async fn begun(&self, limit: Duration) -> Published {
        let mut published = self.published.clone();
        let begun = published.wait_for(|now| now.state != State::Creating);
        // If its task has ended, its last state is what there is.
        drop(tokio::time::timeout(limit, begun).await);
        self.now()
    }

    /// Removes the sandbox and all its resources.
    pub(crate) async fn destroy(&self) -> Result<(), AgentError> {
        self.ask(Request::Destroy).await
    }

    /// Pauses the sandbox. Does nothing if it is paused.
    pub(crate) async fn pause(&self) -> Result<(), AgentError> {
        self.ask(Request::Pause).await
    }

    /// Makes a named snapshot of the sandbox.
    pub(crate) async fn snapshot(&self, wish: Wish) -> Result<(), AgentError> {
        self.ask(Request::Snapshot(wish)).await
    }

    /// Resumes the sandbox, from its memory or by a boot from its disk. Does nothing if it runs.
    pub(crate) async fn resume(&self, memory: bool) -> Result<(), AgentError> {
        self.ask(Request::Resume(memory)).await
    }

    /// Sends a request and waits for its result.
    async fn ask(&self, request: Request) -> Result<(), AgentError> {
        let (asked, answer) = Asked::by_call(request.clone());
        if self.requests.send(asked).await.is_ok()
            && let Ok(result) = answer.await
        {
            return result;
        }
        // The task has ended, usually because the sandbox is gone.
        let state = self.now().state;
        if state == State::Gone {
            return match admit(state, &request) {
                Admit::Refuse(code) => Err(refusal(state, code)),
                Admit::Already | Admit::Wait | Admit::Run(_) => Ok(()),
            };
        }
        let message =
            "the sandbox's task in its host's agent died; restart the agent, then delete the sandbox again";
        Err(AgentError::new(ErrorCode::InternalError, message))
    }
}

impl Actor {
    async fn run(mut self, start: Start) {
        match start {
            // An error is in the phase.
            Start::Create(creation, call) => {
                drop(self.perform(Operation::Create(creation)).instrument(call).await);
            }
            Start::Adopt(vm, slot) => self.adopt(vm, &slot).await,
            Start::Resume(vm, slot) => self.complete_resume(vm, &slot).await,
            Start::In(phase) => drop(self.enter(phase)),
        }
        let mut looks = tokio::time::interval(DISK_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.phase.state() != State::Gone {
            // Without a sender the agent is stopping; the microVM continues to run.
            let Some(asked) = self.next(&mut looks).await else { return };
            let state = self.phase.state();
            match admit(state, &asked.request) {
                Admit::Run(operation) => {
                    let result = self.perform(operation).instrument(asked.call.clone()).await;
                    asked.answer(result);
                }
                Admit::Already => asked.answer(Ok(())),
                Admit::Refuse(code) => asked.refuse(state, code),
                // Only operations are waited for, and none is running.
                Admit::Wait => asked.refuse(state, ErrorCode::InternalError),
            }
        }
    }

    /// Waits for the next request: of a call, or what the sandbox's microVM, disk or store make necessary.
    async fn next(&mut self, looks: &mut Interval) -> Option<Asked> {
        let Self { sandbox, phase, mailbox, held, .. } = self;
        let running = phase.state() == State::Running;
        loop {
            let request = tokio::select! {
                cause = ended(phase.vm(), sandbox) => Request::Fail(cause),
                Ok(()) = held.changed(), if running => Request::Hold(*held.borrow_and_update()),
                _ = looks.tick(), if running => match lost_disk(sandbox).await {
                    Some(cause) => Request::Fail(Cause::Disk(cause)),
                    None => continue,
                },
                asked = mailbox.next() => return asked,
            };
            return Some(Asked::by_itself(request));
        }
    }

    async fn perform(&mut self, operation: Operation) -> Result<(), AgentError> {
        match operation {
            Operation::Create(creation) => self.create(creation).await,
            Operation::Snapshot(wish) => self.snapshot(&wish).await,
            Operation::Destroy => self.destroy().await,
            Operation::Pause => self.pause().await,
            Operation::Resume(memory) => self.resume(memory).await,
            Operation::Hold(hold) => self.hold(hold),
            Operation::Fail(cause) => self.fail(&cause).await,
        }
    }

    /// Enters a phase and publishes it; returns the microVM that the former phase owned.
    fn enter(&mut self, next: Phase) -> Option<Box<dyn MicroVm>> {
        self.publish.send_replace(next.view());
        std::mem::replace(&mut self.phase, next).leave()
    }

    async fn create(&mut self, creation: Creation) -> Result<(), AgentError> {
        let mut create = Create::new(creation);
        let (state, cancel) = (State::Creating, create.cancel());
        let ran = operations::run(&mut create, &mut self.sandbox);
        let created = self.mailbox.during(state, &cancel, ran).await;
        let error = match created.and_then(|timings| create.finish(timings)) {
            Ok(live) => {
                drop(self.enter(Phase::Running(Box::new(live))));
                return Ok(());
            }
            Err(error) => error,
        };
        tracing::warn!(code = %error.code, %error, "a create failed");
        // No one can use the rest, so it is removed at once; whatever cannot be removed stays in the record.
        let undo = operations::take_back(&mut self.sandbox, &mut create.vm);
        let next = match self.mailbox.during(state, &Cancel::Finish, undo).await {
            Ok(()) => Phase::Gone(Some(error.clone())),
            Err(stuck) => {
                tracing::error!(id = self.sandbox.id, %stuck, "cannot undo a failed create");
                Phase::Failed { error: error.clone(), vm: create.vm }
            }
        };
        drop(self.enter(next));
        Err(error)
    }

    async fn adopt(&mut self, vm: Box<dyn MicroVm>, slot: &SlotSpec) {
        let Sandbox { id, spec, shared, .. } = &self.sandbox;
        let guest = match Guest::new(slot.host_address, &spec.access_token, &shared.memory) {
            Ok(guest) => guest,
            Err(error) => return drop(self.enter(Phase::Failed { error, vm: Some(vm) })),
        };
        // The host's resolvers and this agent's rules may differ from those of the former agent.
        if let Err(error) = shared.slots.set_policy(slot.index, &shared.network_policy()).await {
            tracing::error!(id, %error, "cannot update the network rules of a sandbox");
        }
        let base = self.sandbox.record.summary().base();
        let timings = Timings::new();
        let live = Live { vm, slot: slot.index, guest, base, timings, boot_reason: None, held: false };
        drop(self.enter(Phase::Running(Box::new(live))));
    }

    async fn destroy(&mut self) -> Result<(), AgentError> {
        let mut destroy = Destroy { vm: self.enter(Phase::Destroying) };
        let cancel = destroy.cancel();
        let ran = operations::run(&mut destroy, &mut self.sandbox);
        let result = self.mailbox.during(State::Destroying, &cancel, ran).await.map(drop);
        let next = match &result {
            Ok(()) => Phase::Gone(None),
            Err(error) => Phase::Failed { error: error.clone(), vm: destroy.vm },
        };
        drop(self.enter(next));
        result
    }

    async fn pause(&mut self) -> Result<(), AgentError> {
        let live = match std::mem::replace(&mut self.phase, Phase::Pausing) {
            Phase::Running(live) => live,
            other => {
                self.phase = other;
                return Err(AgentError::fault("pausing the sandbox", &"it does not run"));
            }
        };
        // Pending calls of the guest only fail if it is paused indeed.
        self.publish.send_replace(self.phase.view());
        let mut pause = Pause::new(live);
        let cancel = pause.cancel();
        let ran = operations::run(&mut pause, &mut self.sandbox);
        let paused = self.mailbox.during(State::Pausing, &cancel, ran).await;
        let error = match paused.and_then(|_| pause.finish()) {
            Ok(memory) => {
                drop(self.enter(Phase::Paused(memory)));
                return Ok(());
            }
            Err(error) => error,
        };
        tracing::warn!(code = %error.code, %error, "a pause failed");
        let left = pause.give_up(&mut self.sandbox);
        match self.mailbox.during(State::Pausing, &Cancel::Finish, left).await {
            PauseLeft::Running(live) => drop(self.enter(Phase::Running(live))),
            PauseLeft::Paused(memory, None) => drop(self.enter(Phase::Paused(memory))),
            PauseLeft::Paused(_, Some(live)) => {
                drop(self.enter(Phase::Failed { error: error.clone(), vm: Some(live.vm) }));
            }
            PauseLeft::Stuck(live) => {
                drop(self.enter(Phase::Running(live)));
                self.fail(&Cause::Guest("the guest does not go on after a pause that failed".into())).await?;
            }
        }
        Err(error)
    }

    /// Makes a named snapshot. The sandbox stays in its phase: one that runs stands still for a moment.
    async fn snapshot(&mut self, wish: &Wish) -> Result<(), AgentError> {
        let live = match std::mem::replace(&mut self.phase, Phase::Pausing) {
            Phase::Running(live) => live,
            other => {
                self.phase = other;
                return self.snapshot_paused(wish).await;
            }
        };
        // Nothing is published: for all others it runs.
        let made = snapshot::of_running(live, &mut self.sandbox, wish);
        let (live, made) = self.mailbox.during(State::Running, &Cancel::Finish, made).await;
        self.phase = Phase::Running(live);
        match made {
            Ok(()) => Ok(()),
            Err(snapshot::Failure::Refused(error)) => Err(error),
            Err(snapshot::Failure::Stuck(error)) => {
                self.fail(&Cause::Guest("its guest does not go on after a snapshot".into())).await?;
                Err(error)
            }
        }
    }

    async fn snapshot_paused(&mut self, wish: &Wish) -> Result<(), AgentError> {
        match &self.phase {
            Phase::Paused(Memory::Kept(build)) => {
                let made = snapshot::of_paused(*build, &mut self.sandbox, wish);
                self.mailbox.during(State::Paused, &Cancel::Finish, made).await
            }
            Phase::Paused(Memory::Lost(error)) => Err(error.clone()),
            _ => {
                let cause = &"the sandbox neither runs nor is paused";
                Err(AgentError::fault("making the snapshot", cause))
            }
        }
    }

    async fn resume(&mut self, memory: bool) -> Result<(), AgentError> {
        let kept = match &self.phase {
            Phase::Paused(Memory::Kept(build)) => Some(*build),
            Phase::Paused(Memory::Lost(error)) if memory => return Err(error.clone()),
            Phase::Failed { error, .. } if !self.sandbox.record.summary().has(Thing::Volume) => {
                let message = format!("it has no disk: {}", error.message);
                return Err(AgentError::new(ErrorCode::InvalidState, message));
            }
            _ => None,
        };
        if let Phase::Failed { vm, .. } = &mut self.phase {
            // What could not be released then must not be left behind, nor have the disk.
            operations::release_running(&mut self.sandbox, vm, None).await?;
        }
        let before = std::mem::replace(&mut self.phase, Phase::Resuming);
        self.publish.send_replace(self.phase.view());
        let mut resume = Resume::new(kept, memory);
        let cancel = resume.cancel();
        let ran = operations::run(&mut resume, &mut self.sandbox);
        let resumed = self.mailbox.during(State::Resuming, &cancel, ran).await;
        self.settle_resume(resume, resumed, before).await
    }

    async fn complete_resume(&mut self, vm: Box<dyn MicroVm>, slot: &SlotSpec) {
        drop(self.enter(Phase::Resuming));
        let mut resume = match Resume::adopted(&self.sandbox, vm, slot) {
            Ok(resume) => resume,
            Err(error) => return drop(self.enter(Phase::Failed { error, vm: None })),
        };
        let cancel = resume.cancel();
        let completed = resume.complete(&mut self.sandbox);
        let resumed = self.mailbox.during(State::Resuming, &cancel, completed).await;
        // An error is in the phase.
        drop(self.settle_resume(resume, resumed, Phase::Resuming).await);
    }

    /// Enters the phase after a resume that has ended like this; `before` is the one before it.
    async fn settle_resume(
        &mut self,
        mut resume: Resume,
        resumed: Result<Timings, AgentError>,
        before: Phase,
    ) -> Result<(), AgentError> {
        let error = match resumed.and_then(|timings| resume.finish(timings)) {
            Ok(live) => {
                drop(self.enter(Phase::Running(Box::new(live))));
                // The disk may have run out of room meanwhile.
                self.held.mark_changed();
                return Ok(());
            }
            Err(error) => error,
        };
        tracing::warn!(code = %error.code, %error, "a resume failed");
        // The guest may have changed its disk, so that its former memory is of no use.
        if matches!(self.sandbox.record.summary().stage(), Stage::Resuming { .. }) {
            let cause =
                Cause::Guest(format!("the sandbox was resumed and did not come up: {}", error.message));
            drop(self.enter(Phase::Failed { error: error.clone(), vm: resume.vm.take() }));
            self.fail(&cause).await?;
            return Err(error);
        }
        let undo = resume.take_back(&mut self.sandbox);
        let undone = self.mailbox.during(State::Resuming, &Cancel::Finish, undo).await;
        let next = match undone {
            Ok(()) => before,
            Err(stuck) => {
                tracing::error!(id = self.sandbox.id, %stuck, "cannot undo a failed resume");
                Phase::Failed { error: error.clone(), vm: resume.vm.take() }
            }
        };
        drop(self.enter(next));
        Err(error)
    }

    /// Marks the sandbox as failed and releases its resources.
    async fn fail(&mut self, cause: &Cause) -> Result<(), AgentError> {
        let remedy =
            "Its disk is kept: resume it with memory false, which boots it from its disk, or delete it";
        let (code, message) = match cause {
            Cause::Guest(cause) => (ErrorCode::AgentError, format!("{cause}. {remedy}")),
            Cause::OutOfMemory(cause) => (ErrorCode::OutOfMemory, format!("{cause}. {remedy}")),
            Cause::Disk(cause) => (ErrorCode::AgentError, format!("{cause}. Delete the sandbox")),
        };
        let keeps_disk = !matches!(cause, Cause::Disk(_));
        let error = AgentError::new(code, message);
        if let (Cause::OutOfMemory(_), Phase::Running(live)) = (cause, &self.phase) {
            live.guest.had_no_memory();
        }
        let vm = self.enter(Phase::Failing(error.clone()));
        let mut fail = Fail::new(error.clone(), vm, keeps_disk);
        let cancel = fail.cancel();
        let ran = operations::run(&mut fail, &mut self.sandbox);
        let result = self.mailbox.during(State::Failing, &cancel, ran).await.map(drop);
        drop(self.enter(Phase::Failed { error, vm: fail.vm }));
        result
    }

    /// Holds the guest while there is no room for its writes, or lets it go on. By signal, so that no VMM can refuse at
    /// the expense of the others.
    fn hold(&mut self, hold: bool) -> Result<(), AgentError> {
        let Phase::Running(live) = &mut self.phase else { return Ok(()) };
        live.vm.freeze(hold).map_err(|error| {
            tracing::error!(id = self.sandbox.id, hold, %error, "cannot pause or resume a microVM");
            AgentError::from(error)
        })?;
        live.held = hold;
        self.publish.send_replace(self.phase.view());
        Ok(())
    }
}

/// Waits for the end of the microVM, if there is one; returns the cause for the sandbox's owner.
async fn ended(vm: Option<&dyn MicroVm>, sandbox: &Sandbox) -> Cause {
    let Some(vm) = vm else { return std::future::pending().await };
    let exit = vm.exited().await;
    let how = "the microVM ended by itself";
    let LastWords { of_memory, text } =
        last_words::of(how, vm, &exit, &sandbox.id, &sandbox.shared.dir).await;
    tracing::warn!(
        id = sandbox.id, status = ?exit.status, of_memory, log = exit.log, "a microVM ended by itself"
    );
    if of_memory { Cause::OutOfMemory(text) } else { Cause::Guest(text) }
}

/// Returns why the sandbox's disk is lost, if it is. Its guest must not continue with data that cannot be
/// stored.
async fn lost_disk(sandbox: &Sandbox) -> Option<String> {
    let cause = match sandbox.shared.volumes.health(&sandbox.id).await {
        Ok(Health::Ok | Health::Low { .. }) => return None,
        Ok(Health::Invalid) => "it lost changes when the host's store was full",
        Ok(Health::CowMissing) | Err(DiskError::UnknownVolume(_)) => "its file was removed from the host",
        Err(error) => {
            tracing::warn!(id = sandbox.id, %error, "cannot check a disk");
            return None;
        }
    };
    tracing::error!(id = sandbox.id, cause, "a sandbox lost its disk");
    Some(format!("the sandbox's disk is lost: {cause}"))
}
