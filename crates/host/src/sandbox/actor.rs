// SPDX-License-Identifier: Apache-2.0
//! Task of one sandbox, the only one that changes it, one step after another.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};
use wrenn_api::ErrorCode;
use wrenn_disk::{DiskError, Health, Volumes};
use wrenn_network::{Plan, Policy, SlotPool, SlotSpec};
use wrenn_vmm::{Exit, MicroVm, Vmm};

use super::{
    guest::{Guest, cut},
    journal::{Entry, Journal},
    remove::{remove_record, undo_step},
    spec::Spec,
    summary::{Summary, Undo},
};
use crate::{assets::Assets, config::Rates, error::AgentError, fault, memory::Memory, uids::Uids};

/// Length of the console's end that is added to the error of a microVM that ended by itself, in bytes.
const LAST_WORDS: usize = 400;
/// Number of last lines of the console, and of the VMM's log, in that error.
const LAST_LINES: usize = 3;
/// Interval between health checks of a sandbox's disk.
const DISK_LOOK: Duration = Duration::from_secs(5);

/// Resources that all sandboxes of an agent share.
pub(crate) struct Shared {
    /// VMM driver.
    pub(crate) vmm: Arc<dyn Vmm>,
    /// Disks of sandboxes.
    pub(crate) volumes: Arc<dyn Volumes>,
    /// Network slots.
    pub(crate) slots: Arc<SlotPool>,
    /// Names and addresses of slots.
    pub(crate) plan: Plan,
    /// Kernel, initial RAM disk and templates.
    pub(crate) assets: Assets,
    /// Parent of the sandboxes' directories.
    pub(crate) dir: PathBuf,
    /// First user id of VMMs.
    pub(crate) uids: Uids,
    /// Time limit from the start of a create to envd's first response.
    pub(crate) boot_limit: Duration,
    /// Rate limits of each sandbox's devices.
    pub(crate) rates: Rates,
    /// Memory for the output of guests.
    pub(crate) memory: Arc<Memory>,
    /// Whether sandboxes are paused because there is too little room for disks.
    pub(crate) held: watch::Receiver<bool>,
}

/// State of a sandbox on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Being created.
    Starting,
    /// Ready to run code.
    Running,
    /// Being removed.
    Stopping,
    /// Ended by itself; its record stays until it is destroyed.
    Failed(AgentError),
    /// Its journal cannot be read: it may run, and stays untouched until it is destroyed.
    Unknown(AgentError),
    /// Removed; with the error if it never ran.
    Gone(Option<AgentError>),
}

/// State of a sandbox, as other tasks see it.
#[derive(Clone)]
pub(crate) struct Published {
    /// State.
    pub(crate) state: State,
    /// Connection to the guest, while it runs.
    pub(crate) guest: Option<Guest>,
    /// Duration of each step of its creation.
    pub(crate) timings: Vec<(&'static str, Duration)>,
    /// Whether it is paused because its disk may soon run out of room.
    pub(crate) held: bool,
}

/// Handle of a sandbox's task.
#[derive(Clone)]
pub(crate) struct Handle {
    /// Specification.
    pub(crate) spec: Arc<Spec>,
    /// Current state.
    pub(crate) published: watch::Receiver<Published>,
    destroys: mpsc::Sender<DestroyRequest>,
    give_up: CancellationToken,
}

/// A destroy request: the sender of its result, and the call's span.
type DestroyRequest = (oneshot::Sender<Result<(), AgentError>>, Span);

/// First step of a sandbox's task.
pub(crate) enum Start {
    /// Create the sandbox, with this environment, for the call of this span.
    Create(HashMap<String, String>, Span),
    /// Adopt a microVM of a former agent, in this slot.
    Adopt(Box<dyn MicroVm>, SlotSpec),
    /// Keep the record of a failure.
    Failed(AgentError),
    /// Keep a sandbox whose journal cannot be read untouched.
    Unknown(AgentError),
}

pub(super) struct Actor {
    pub(super) id: String,
    pub(super) spec: Arc<Spec>,
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Option<Journal>,
    /// Its resources, including those that could not be recorded in the journal.
    pub(super) summary: Summary,
    pub(super) vm: Option<Box<dyn MicroVm>>,
    publish: watch::Sender<Published>,
    pub(super) give_up: CancellationToken,
}

impl Shared {
    /// Rate limits by the packet filter, if the VMM does not enforce them.
    pub(super) fn network_policy(&self) -> Policy {
        let by_vmm = self.vmm.capabilities().network_rate;
        let rate = wrenn_network::Rate { bytes: self.rates.network.filter(|_| !by_vmm), packets: None };
        Policy { upload: rate, download: rate, ..Policy::default() }
    }
}

impl Handle {
    /// Removes the sandbox and all its resources.
    pub(crate) async fn destroy(&self) -> Result<(), AgentError> {
        self.give_up.cancel();
        let (reply, answer) = oneshot::channel();
        if self.destroys.send((reply, Span::current())).await.is_ok()
            && let Ok(result) = answer.await
        {
            return result;
        }
        // The task has ended, usually because the sandbox is gone.
        if matches!(self.now().state, State::Gone(_)) {
            return Ok(());
        }
        let message =
            "the sandbox's task in its host's agent died; restart the agent, then delete the sandbox again";
        Err(AgentError::new(ErrorCode::InternalError, message))
    }

    /// Returns the current state.
    pub(crate) fn now(&self) -> Published {
        self.published.borrow().clone()
    }
}

/// Starts the task of a sandbox. `journal` is `None` for a new one, and for one whose journal cannot be read.
pub(crate) fn spawn(
    shared: Arc<Shared>,
    id: String,
    spec: Spec,
    (journal, summary): (Option<Journal>, Summary),
    start: Start,
) -> Handle {
    let spec = Arc::new(spec);
    let first = Published { state: State::Starting, guest: None, timings: Vec::new(), held: false };
    let (publish, published) = watch::channel(first);
    let (destroys, requests) = mpsc::channel(8);
    let give_up = CancellationToken::new();
    let handle = Handle { spec: spec.clone(), published, destroys, give_up: give_up.clone() };
    let actor = Actor { id, spec, shared, journal, summary, vm: None, publish, give_up };
    let span = tracing::info_span!("sandbox", id = actor.id);
    tokio::spawn(actor.run(start, requests).instrument(span));
    handle
}

/// The directory of sandbox `id`.
pub(crate) fn directory(sandboxes: &Path, id: &str) -> PathBuf {
    sandboxes.join(id)
}

/// Joins the last lines of a log, without the paths of the agent's own directories.
pub(super) fn last_lines(log: &str, sandboxes: &Path) -> String {
    let own = sandboxes.parent().unwrap_or(sandboxes).display().to_string();
    let lines: Vec<_> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ");
    cut(&last.replace(&own, ""))
}

impl Actor {
    async fn run(mut self, start: Start, mut destroys: mpsc::Receiver<DestroyRequest>) {
        match start {
            Start::Create(envs, call) => {
                if let Err(error) = self.create(&envs).instrument(call.clone()).await {
                    call.in_scope(|| tracing::warn!(code = %error.code, %error, "a create failed"));
                    // No one can use the rest, so it is removed at once; whatever cannot be removed stays in
                    // the record.
                    match self.take_back().instrument(call).await {
                        Ok(()) => return self.set(State::Gone(Some(error))),
                        Err(stuck) => {
                            tracing::error!(id = self.id, %stuck, "cannot undo a failed create");
                            self.set(State::Failed(error));
                        }
                    }
                }
            }
            Start::Adopt(vm, slot) => {
                match Guest::new(slot.host_address, &self.spec.access_token, &self.shared.memory) {
                    Ok(guest) => {
                        // The host's resolvers and this agent's rules may differ from those of the former
                        // agent.
                        if let Err(error) =
                            self.shared.slots.set_policy(slot.index, &self.shared.network_policy()).await
                        {
                            tracing::error!(id = self.id, %error, "cannot update the network rules of a sandbox");
                        }
                        self.vm = Some(vm);
                        self.running(guest, Vec::new());
                    }
                    Err(error) => self.set(State::Failed(error)),
                }
            }
            Start::Failed(error) => self.set(State::Failed(error)),
            Start::Unknown(error) => self.set(State::Unknown(error)),
        }
        let mut held = self.shared.held.clone();
        // Adopted sandboxes are paused or resumed, too.
        held.mark_changed();
        let mut looks = tokio::time::interval(DISK_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ended = async {
                match &self.vm {
                    Some(vm) => {
                        let exit = vm.exited().await;
                        let words = self.last_words(&**vm, &exit).await;
                        (exit, words)
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                (exit, words) = ended => {
                    tracing::warn!(id = self.id, status = ?exit.status, log = exit.log, "a microVM ended by itself");
                    self.ended(&format!("the microVM ended by itself; {words}")).await;
                }
                Ok(()) = held.changed(), if self.vm.is_some() => {
                    let hold = *held.borrow_and_update();
                    self.hold(hold);
                }
                _ = looks.tick(), if self.vm.is_some() => self.check_disk().await,
                request = destroys.recv() => {
                    // Without a sender the agent is stopping; the microVM continues to run.
                    let Some((reply, call)) = request else { return };
                    let result = self.destroy().instrument(call).await;
                    let done = result.is_ok();
                    if done {
                        self.set(State::Gone(None));
                    }
                    let _ = reply.send(result);
                    if done {
                        return;
                    }
                }
            }
        }
    }

    /// Pauses the guest while there is no room for its writes, or resumes it. By signal, so that no VMM can
    /// refuse at the expense of the others.
    fn hold(&self, hold: bool) {
        let Some(vm) = &self.vm else { return };
        match vm.freeze(hold) {
            Ok(()) => self.publish.send_modify(|published| published.held = hold),
            Err(error) => tracing::error!(id = self.id, hold, %error, "cannot pause or resume a microVM"),
        }
    }

    /// Ends a guest whose disk is lost, so that it does not continue with data that cannot be stored.
    async fn check_disk(&mut self) {
        let cause = match self.shared.volumes.health(&self.id).await {
            Ok(Health::Ok | Health::Low { .. }) => return,
            Ok(Health::Invalid) => "it lost changes when the host's store was full",
            Ok(Health::CowMissing) | Err(DiskError::UnknownVolume(_)) => "its file was removed from the host",
            Err(error) => {
                tracing::warn!(id = self.id, %error, "cannot check a disk");
                return;
            }
        };
        tracing::error!(id = self.id, cause, "a sandbox lost its disk");
        self.ended(&format!("the sandbox's disk is lost: {cause}")).await;
    }

    fn set(&self, state: State) {
        self.publish.send_modify(|published| {
            published.state = state;
            if let Some(guest) = published.guest.take() {
                guest.end();
            }
        });
    }

    pub(super) fn running(&self, guest: Guest, timings: Vec<(&'static str, Duration)>) {
        self.publish.send_replace(Published {
            state: State::Running,
            guest: Some(guest),
            timings,
            held: false,
        });
    }

    /// Appends entries to the journal; on a blocking thread, because the file system may block.
    pub(super) async fn record(&mut self, entries: Vec<Entry>) -> Result<(), AgentError> {
        // Recorded in memory even if the write fails: the resources exist, and must be released.
        entries.iter().for_each(|entry| self.summary.add(entry));
        let Some(mut journal) = self.journal.take() else {
            return Err(AgentError::fault("writing the sandbox's journal", &"it is not open"));
        };
        let result = tokio::task::spawn_blocking(move || {
            let result = journal.append(&entries);
            (journal, result)
        });
        let (journal, result) =
            result.await.map_err(|error| AgentError::fault("writing the sandbox's journal", &error))?;
        self.journal = Some(journal);
        Ok(result?)
    }

    pub(super) fn still_wanted(&self) -> Result<(), AgentError> {
        if self.give_up.is_cancelled() {
            return Err(AgentError::new(
                ErrorCode::Conflict,
                "the sandbox was deleted while it was starting",
            ));
        }
        Ok(())
    }

    /// Formats the end of the console and of the VMM's log, for the sandbox's owner.
    pub(super) async fn last_words(&self, vm: &dyn MicroVm, exit: &Exit) -> String {
        let console = String::from_utf8_lossy(&vm.console(LAST_WORDS).await).into_owned();
        let [console, log] = [&console, &exit.log].map(|text| last_lines(text, &self.shared.dir));
        let status = exit.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        format!("its console's last lines: {console:?}; its VMM's, which ended with status {status}: {log:?}")
    }

    /// Marks the sandbox as failed and releases its resources.
    async fn ended(&mut self, why: &str) {
        let message = format!("{why}. Delete the sandbox");
        let error = AgentError::new(ErrorCode::AgentError, message);
        let entry = Entry::Failed { code: error.code.as_str().to_owned(), message: error.message.clone() };
        let told = self.record(vec![entry]).await;
        if let Err(cause) = &told {
            tracing::error!(id = self.id, %cause, "cannot record a failure");
        }
        self.set(State::Failed(error));
        // Its resources are released at once; its record stays. If the record does not contain the failure,
        // the slot stays, too: the next start would take it from its next owner.
        let held = self.summary.undo();
        if let Err(cause) = self.release(told.is_ok()).await {
            tracing::error!(id = self.id, %cause, "cannot release all resources of a failed sandbox");
        }
        let left = self.summary.undo();
        let gone = held.iter().filter(|step| !left.contains(step));
        let released = gone.map(|step| Entry::Released { thing: step.thing() }).collect();
        if let Err(cause) = self.record(released).await {
            tracing::error!(id = self.id, %cause, "cannot record the released resources of a failed sandbox");
        }
    }

    async fn destroy(&mut self) -> Result<(), AgentError> {
        self.set(State::Stopping);
        let result = async {
            if self.journal.is_some() && self.record(vec![Entry::Destroy]).await.is_err() {
                // The disk may be full; releasing the resources may make room.
                self.release(false).await?;
                self.record(vec![Entry::Destroy]).await?;
            }
            fault::point("destroy.recorded");
            self.take_back().await
        }
        .await;
        if let Err(error) = &result {
            self.set(State::Failed(error.clone()));
        }
        result
    }

    /// Kills the VMM of this task, whatever its state.
    pub(super) async fn kill_vm(&mut self) -> Result<(), AgentError> {
        if let Some(vm) = &self.vm {
            vm.kill().await?;
            self.vm = None;
        }
        Ok(())
    }

    /// Releases the resources in the journal, the latest first; the slot only with `slot_too`.
    async fn release(&mut self, slot_too: bool) -> Result<(), AgentError> {
        self.kill_vm().await?;
        for step in self.summary.undo() {
            if !slot_too && matches!(step, Undo::Slot(_)) {
                continue;
            }
            undo_step(&self.shared, &self.id, &step).await?;
            self.summary.forget(&step);
            fault::point(match step {
                Undo::Vmm(_) => "destroy.vmm",
                Undo::Volume => "destroy.volume",
                Undo::Slot(_) => "destroy.slot",
            });
        }
        Ok(())
    }

    /// Releases all resources and removes the record.
    async fn take_back(&mut self) -> Result<(), AgentError> {
        self.release(true).await?;
        self.journal = None;
        remove_record(&self.shared.dir, &self.id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_tell_no_paths() {
        let log = "one\n\n two \nqemu: /var/lib/wrenn/agent/volumes/x.img: gone\nfour\n";
        let words = last_lines(log, Path::new("/var/lib/wrenn/agent/sandboxes"));
        assert_eq!(words, "two | qemu: /volumes/x.img: gone | four");
        assert_eq!(last_lines("", Path::new("/")), "");
        assert!(last_lines(&"x".repeat(1 << 20), Path::new("/")).len() < 600);
    }
}
