// SPDX-License-Identifier: Apache-2.0
//! Task of one sandbox, the only one that changes it, one operation after another.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
    admit::{Admit, Operation, Request, admit},
    guest::Guest,
    last_words,
    mailbox::{Asked, Mailbox, refusal},
    operations::{self, Cancel, Create, Destroy, Fail, Steps as _},
    phase::{Live, Phase, Published, State, Timings},
    record::Sandbox,
    spec::Spec,
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
    /// Create the sandbox, with this environment, for the call of this span.
    Create(HashMap<String, String>, Span),
    /// Adopt a microVM of a former agent, in this slot.
    Adopt(Box<dyn MicroVm>, SlotSpec),
    /// Wait for requests in this phase.
    In(Phase),
}

/// Starts the task of a sandbox.
pub(crate) fn spawn(sandbox: Sandbox, start: Start) -> Handle {
    let (publish, published) = watch::channel(Phase::Creating.view());
    let (requests, mailbox) = Mailbox::new();
    let handle = Handle { spec: sandbox.spec.clone(), published, requests };
    let mut held = sandbox.shared.held.clone();
    // Adopted sandboxes are paused or resumed, too.
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

    /// Removes the sandbox and all its resources.
    pub(crate) async fn destroy(&self) -> Result<(), AgentError> {
        self.ask(Request::Destroy).await
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
            Start::Create(envs, call) => {
                drop(self.perform(Operation::Create(envs)).instrument(call).await);
            }
            Start::Adopt(vm, slot) => self.adopt(vm, &slot).await,
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
                    Some(cause) => Request::Fail(cause),
                    None => continue,
                },
                asked = mailbox.next() => return asked,
            };
            return Some(Asked::by_itself(request));
        }
    }

    async fn perform(&mut self, operation: Operation) -> Result<(), AgentError> {
        match operation {
            Operation::Create(envs) => self.create(envs).await,
            Operation::Destroy => self.destroy().await,
            Operation::Hold(hold) => self.hold(hold),
            Operation::Fail(cause) => self.fail(&cause).await,
        }
    }

    /// Enters a phase and publishes it; returns the microVM that the former phase owned.
    fn enter(&mut self, next: Phase) -> Option<Box<dyn MicroVm>> {
        self.publish.send_replace(next.view());
        std::mem::replace(&mut self.phase, next).leave()
    }

    async fn create(&mut self, envs: HashMap<String, String>) -> Result<(), AgentError> {
        let mut create = Create::new(envs);
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
        let live = Live { vm, guest, timings: Timings::new(), held: false };
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

    /// Marks the sandbox as failed and releases its resources.
    async fn fail(&mut self, cause: &str) -> Result<(), AgentError> {
        let error = AgentError::new(ErrorCode::AgentError, format!("{cause}. Delete the sandbox"));
        let vm = self.enter(Phase::Failing(error.clone()));
        let mut fail = Fail::new(error.clone(), vm);
        let cancel = fail.cancel();
        let ran = operations::run(&mut fail, &mut self.sandbox);
        let result = self.mailbox.during(State::Failing, &cancel, ran).await.map(drop);
        drop(self.enter(Phase::Failed { error, vm: fail.vm }));
        result
    }

    /// Pauses the guest while there is no room for its writes, or resumes it. By signal, so that no VMM can
    /// refuse at the expense of the others.
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
async fn ended(vm: Option<&dyn MicroVm>, sandbox: &Sandbox) -> String {
    let Some(vm) = vm else { return std::future::pending().await };
    let exit = vm.exited().await;
    let words = last_words::of(vm, &exit, &sandbox.shared.dir).await;
    tracing::warn!(id = sandbox.id, status = ?exit.status, log = exit.log, "a microVM ended by itself");
    format!("the microVM ended by itself; {words}")
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
