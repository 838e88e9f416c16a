//! The task that owns one sandbox: it alone changes it, one step after the other.

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
    guest::Guest,
    journal::{Entry, Journal},
    remove::{remove_record, undo_step},
    spec::Spec,
    summary::{Summary, Undo},
};
use crate::{assets::Assets, config::Rates, error::AgentError, fault, memory::Memory};

/// How much of the guest's console goes into the message when it ends by itself.
const LAST_WORDS: usize = 400;
/// How many lines of it, and of the VMM's log.
const LAST_LINES: usize = 3;
/// How often a sandbox's disk is looked at.
const DISK_LOOK: Duration = Duration::from_secs(5);

/// What all sandboxes of an agent share.
pub(crate) struct Shared {
    /// Starts microVMs.
    pub(crate) vmm: Arc<dyn Vmm>,
    /// Disks.
    pub(crate) volumes: Arc<dyn Volumes>,
    /// Networks.
    pub(crate) slots: Arc<SlotPool>,
    /// Names and numbers of slots.
    pub(crate) plan: Plan,
    /// Kernel, initial RAM disk, templates.
    pub(crate) assets: Assets,
    /// Where each sandbox has a directory.
    pub(crate) dir: PathBuf,
    /// First user id of VMMs.
    pub(crate) uid_base: u32,
    /// From the start of a create until envd answers.
    pub(crate) boot_limit: Duration,
    /// What its devices may move.
    pub(crate) rates: Rates,
    /// Holds the output of guests.
    pub(crate) memory: Arc<Memory>,
    /// Whether there is so little room for disks that sandboxes are held.
    pub(crate) held: watch::Receiver<bool>,
}

/// Where a sandbox is in its life on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made.
    Starting,
    /// Code can run in it.
    Running,
    /// Being removed.
    Stopping,
    /// It ended by itself; its record waits for a destroy.
    Failed(AgentError),
    /// Its journal is not understood: it may run, and is left as it is until somebody destroys it.
    Unknown(AgentError),
    /// Nothing of it is left; with the reason when it never ran.
    Gone(Option<AgentError>),
}

/// What others see of a sandbox.
#[derive(Clone)]
pub(crate) struct Published {
    /// Where it is.
    pub(crate) state: State,
    /// The way in, while it runs.
    pub(crate) guest: Option<Guest>,
    /// What each step of its creation took.
    pub(crate) timings: Vec<(&'static str, Duration)>,
    /// Whether it is held, because its disk could soon not be written.
    pub(crate) held: bool,
}

/// How the rest of the agent speaks to a sandbox.
#[derive(Clone)]
pub(crate) struct Handle {
    /// What it was asked to be.
    pub(crate) spec: Arc<Spec>,
    /// What it is now.
    pub(crate) published: watch::Receiver<Published>,
    destroys: mpsc::Sender<DestroyRequest>,
    give_up: CancellationToken,
}

/// A call that wants the sandbox destroyed: where the result goes, and the call's span.
type DestroyRequest = (oneshot::Sender<Result<(), AgentError>>, Span);

/// With what a sandbox's task begins.
pub(crate) enum Start {
    /// Nothing: make it, with this environment, for the call of this span.
    Create(HashMap<String, String>, Span),
    /// A microVM that a former agent left running, in this slot.
    Adopt(Box<dyn MicroVm>, SlotSpec),
    /// A record of a failure.
    Failed(AgentError),
    /// What is not understood, and is left as it is.
    Unknown(AgentError),
}

pub(super) struct Actor {
    pub(super) id: String,
    pub(super) spec: Arc<Spec>,
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Option<Journal>,
    /// What it holds, also where the journal could not be told.
    pub(super) summary: Summary,
    pub(super) vm: Option<Box<dyn MicroVm>>,
    publish: watch::Sender<Published>,
    pub(super) give_up: CancellationToken,
}

impl Shared {
    /// Where the VMM does not keep the rate of the network, the packet filter does.
    pub(super) fn network_policy(&self) -> Policy {
        let by_vmm = self.vmm.capabilities().network_rate;
        let rate = wrenn_network::Rate { bytes: self.rates.network.filter(|_| !by_vmm), packets: None };
        Policy { upload: rate, download: rate, ..Policy::default() }
    }
}

impl Handle {
    /// Removes the sandbox and everything that belongs to it.
    pub(crate) async fn destroy(&self) -> Result<(), AgentError> {
        self.give_up.cancel();
        let (reply, answer) = oneshot::channel();
        if self.destroys.send((reply, Span::current())).await.is_ok()
            && let Ok(result) = answer.await
        {
            return result;
        }
        // The task ended, as a rule with the sandbox.
        if matches!(self.now().state, State::Gone(_)) {
            return Ok(());
        }
        let message =
            "the sandbox's task in its host's agent died; restart the agent, then delete the sandbox again";
        Err(AgentError::new(ErrorCode::InternalError, message))
    }

    /// What it is now.
    pub(crate) fn now(&self) -> Published {
        self.published.borrow().clone()
    }
}

/// Starts the task of a sandbox. `journal` is `None` for a new one, and for one whose journal is left alone.
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

/// The last lines of a log in one, without the paths of the agent's own directories.
pub(super) fn last_lines(log: &str, sandboxes: &Path) -> String {
    let own = sandboxes.parent().unwrap_or(sandboxes).display().to_string();
    let lines: Vec<_> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ");
    last.replace(&own, "")
}

impl Actor {
    async fn run(mut self, start: Start, mut destroys: mpsc::Receiver<DestroyRequest>) {
        match start {
            Start::Create(envs, call) => {
                if let Err(error) = self.create(&envs).instrument(call.clone()).await {
                    call.in_scope(|| tracing::warn!(code = %error.code, %error, "a create failed"));
                    // Nobody can use what is left, so it goes at once; what cannot go stays on record.
                    match self.take_back().instrument(call).await {
                        Ok(()) => return self.set(State::Gone(Some(error))),
                        Err(stuck) => {
                            tracing::error!(id = self.id, %stuck, "a failed create could not be undone");
                            self.set(State::Failed(error));
                        }
                    }
                }
            }
            Start::Adopt(vm, slot) => {
                match Guest::new(slot.host_address, &self.spec.access_token, &self.shared.memory) {
                    Ok(guest) => {
                        // The host's resolvers and this agent's rules may be others than the former one's.
                        if let Err(error) =
                            self.shared.slots.set_policy(slot.index, &self.shared.network_policy()).await
                        {
                            tracing::error!(id = self.id, %error, "a sandbox keeps its former network rules");
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
        // Also what was adopted is held, or goes on.
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
                    // Without a sender the agent stops; the microVM goes on.
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

    /// Holds the guest while there is no room for what it writes, or lets it go on. The kernel does it, so that no
    /// VMM can refuse at its neighbours' cost.
    fn hold(&self, hold: bool) {
        let Some(vm) = &self.vm else { return };
        match vm.freeze(hold) {
            Ok(()) => self.publish.send_modify(|published| published.held = hold),
            Err(error) => tracing::error!(id = self.id, hold, %error, "a microVM could not be held or go on"),
        }
    }

    /// A guest whose disk is lost is ended, before it works on with what it cannot keep.
    async fn check_disk(&mut self) {
        let cause = match self.shared.volumes.health(&self.id).await {
            Ok(Health::Ok | Health::Low { .. }) => return,
            Ok(Health::Invalid) => "it lost changes when the host's store was full",
            Ok(Health::CowMissing) | Err(DiskError::UnknownVolume(_)) => "its file was removed from the host",
            Err(error) => {
                tracing::warn!(id = self.id, %error, "a disk could not be looked at");
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

    /// Writes entries; the file system may block, so not on the runtime's threads.
    pub(super) async fn record(&mut self, entries: Vec<Entry>) -> Result<(), AgentError> {
        // Remembered even when the write fails: what they name is there, and must be taken back.
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

    /// What a microVM and its VMM said last, for the sandbox's owner.
    pub(super) async fn last_words(&self, vm: &dyn MicroVm, exit: &Exit) -> String {
        let console = String::from_utf8_lossy(&vm.console(LAST_WORDS).await).into_owned();
        let [console, log] = [&console, &exit.log].map(|text| last_lines(text, &self.shared.dir));
        let status = exit.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        format!("its console's last lines: {console:?}; its VMM's, which ended with status {status}: {log:?}")
    }

    /// It cannot go on.
    async fn ended(&mut self, why: &str) {
        let message = format!("{why}. Delete the sandbox");
        let error = AgentError::new(ErrorCode::AgentError, message);
        let entry = Entry::Failed { code: error.code.as_str().to_owned(), message: error.message.clone() };
        let told = self.record(vec![entry]).await;
        if let Err(cause) = &told {
            tracing::error!(id = self.id, %cause, "a failure could not be recorded");
        }
        self.set(State::Failed(error));
        // What it held is free again at once; its record stays. Its slot stays with a record that does not tell of the
        // failure: the next start would take it from its next owner.
        let held = self.summary.undo();
        if let Err(cause) = self.release(told.is_ok()).await {
            tracing::error!(id = self.id, %cause, "a failed sandbox still holds something");
        }
        let left = self.summary.undo();
        let gone = held.iter().filter(|step| !left.contains(step));
        let released = gone.map(|step| Entry::Released { thing: step.thing() }).collect();
        if let Err(cause) = self.record(released).await {
            tracing::error!(id = self.id, %cause, "what a failed sandbox gave back could not be recorded");
        }
    }

    async fn destroy(&mut self) -> Result<(), AgentError> {
        self.set(State::Stopping);
        let result = async {
            if self.journal.is_some() && self.record(vec![Entry::Destroy]).await.is_err() {
                // Perhaps there is no room, and what it holds makes some.
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

    /// Ends the VMM that this task knows, whatever it has become.
    pub(super) async fn kill_vm(&mut self) -> Result<(), AgentError> {
        if let Some(vm) = &self.vm {
            vm.kill().await?;
            self.vm = None;
        }
        Ok(())
    }

    /// Undoes what the journal lists, latest first; the slot only where that is said.
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

    /// Undoes everything, the record included.
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
    }
}
