//! Slots built before they are needed, and the journal that finds them after a crash.
//!
//! `slots/INDEX` exists from before the first thing of a slot is made until after the last is gone.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    NetworkError, build,
    plan::{MAX_SLOTS, Plan, SlotSpec},
    rules::Egress,
};

/// How a pool is to be.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Where the journal and the pins of the namespaces are.
    pub state_dir: PathBuf,
    /// One to four lower-case letters or digits that tell this agent's links from another's.
    pub instance: String,
    /// How many slots are kept ready.
    pub warm: usize,
    /// How many slots there may be, the ready ones included.
    pub max: u16,
    /// What sandboxes may reach outside.
    pub egress: Egress,
    /// Slots that running microVMs hold; they stay as they are.
    pub in_use: Vec<u16>,
}

/// How many slots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Ready.
    pub warm: usize,
    /// Handed out.
    pub in_use: usize,
}

#[derive(Debug, Default)]
struct State {
    warm: VecDeque<SlotSpec>,
    /// Every number that is taken: ready, handed out, being built or being removed.
    taken: BTreeSet<u16>,
    closed: bool,
}

/// The slots of one agent.
#[derive(Debug)]
pub struct SlotPool {
    plan: Plan,
    journal: PathBuf,
    warm: usize,
    max: u16,
    state: Mutex<State>,
    wanted: Notify,
    refiller: Mutex<Option<JoinHandle<()>>>,
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.to_owned();
    move |source| NetworkError::Io { action, source }
}

fn dirs(state_dir: &Path) -> (PathBuf, PathBuf) {
    (state_dir.join("slots"), state_dir.join("netns"))
}

fn journaled(journal: &Path) -> Vec<u16> {
    let Ok(entries) = fs::read_dir(journal) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Removes every slot of an agent that has ended, and the host's rules for them.
pub async fn cleanup(state_dir: &Path, instance: &str) -> Result<(), NetworkError> {
    let (journal, netns) = dirs(state_dir);
    let plan = Plan::new(instance, &netns)?;
    for index in journaled(&journal) {
        undo(&plan, &journal, index).await?;
    }
    build::close_host(&plan).await
}

async fn undo(plan: &Plan, journal: &Path, index: u16) -> Result<(), NetworkError> {
    build::remove(&plan.slot(index)?).await?;
    match fs::remove_file(journal.join(index.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove a slot from the journal")(error))
        }
        _ => Ok(()),
    }
}

impl SlotPool {
    /// Undoes what a former agent left, except the slots in use, and begins to build.
    pub async fn start(config: PoolConfig) -> Result<Arc<Self>, NetworkError> {
        let (journal, netns) = dirs(&config.state_dir);
        let plan = Plan::new(&config.instance, &netns)?;
        for dir in [&journal, &netns] {
            fs::create_dir_all(dir).map_err(failed("make the directory of slots"))?;
        }
        let in_use: BTreeSet<u16> = config.in_use.into_iter().collect();
        for index in journaled(&journal).into_iter().filter(|index| !in_use.contains(index)) {
            undo(&plan, &journal, index).await?;
        }
        build::open_host(&plan, config.egress).await?;
        let state = Mutex::new(State { taken: in_use, ..State::default() });
        let max = config.max.min(MAX_SLOTS);
        let (wanted, refiller) = (Notify::new(), Mutex::new(None));
        let pool = Arc::new(Self { plan, journal, warm: config.warm, max, state, wanted, refiller });
        let task = tokio::spawn(refill(Arc::downgrade(&pool)));
        *pool.refiller.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(pool)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lowest free number.
    fn take(&self) -> Result<u16, NetworkError> {
        let mut state = self.state();
        let free = (1..=self.max).find(|index| !state.taken.contains(index));
        let index = free.filter(|_| !state.closed).ok_or(NetworkError::Exhausted(self.max))?;
        state.taken.insert(index);
        Ok(index)
    }

    async fn build(&self) -> Result<SlotSpec, NetworkError> {
        let index = self.take()?;
        let built = async {
            let slot = self.plan.slot(index)?;
            File::create(self.journal.join(index.to_string()))
                .map_err(failed("write a slot to the journal"))?;
            build::build(&slot).await?;
            Ok(slot)
        };
        match built.await {
            Ok(slot) => Ok(slot),
            Err(error) => {
                self.release(index).await?;
                Err(error)
            }
        }
    }

    /// A slot, ready if there is one, else built now.
    pub async fn acquire(&self) -> Result<SlotSpec, NetworkError> {
        let ready = self.state().warm.pop_front();
        self.wanted.notify_one();
        match ready {
            Some(slot) => Ok(slot),
            None => self.build().await,
        }
    }

    /// Removes a slot that was handed out; repeating it is fine.
    pub async fn release(&self, index: u16) -> Result<(), NetworkError> {
        undo(&self.plan, &self.journal, index).await?;
        self.state().taken.remove(&index);
        self.wanted.notify_one();
        Ok(())
    }

    /// How many slots there are.
    pub fn stats(&self) -> PoolStats {
        let state = self.state();
        PoolStats { warm: state.warm.len(), in_use: state.taken.len() - state.warm.len() }
    }

    /// Stops building and removes the ready slots; those handed out stay.
    pub async fn shutdown(&self) -> Result<(), NetworkError> {
        self.state().closed = true;
        self.wanted.notify_one();
        let refiller = self.refiller.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = refiller {
            // A slot that is being built is finished first, so that it can be removed.
            let _ = task.await;
        }
        let warm = std::mem::take(&mut self.state().warm);
        for slot in warm {
            self.release(slot.index).await?;
        }
        Ok(())
    }
}

/// Keeps the ready slots at their number as long as the pool is used.
async fn refill(pool: std::sync::Weak<SlotPool>) {
    /// After a failure: what the kernel refused it will refuse at once again.
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
    while let Some(strong) = pool.upgrade() {
        let lacking = {
            let state = strong.state();
            if state.closed {
                return;
            }
            state.warm.len() < strong.warm
        };
        if !lacking {
            // The pool may be dropped while we wait, so nothing of it is held for ever.
            let wait = std::time::Duration::from_secs(5);
            let _ = tokio::time::timeout(wait, strong.wanted.notified()).await;
            continue;
        }
        match strong.build().await {
            Ok(slot) => strong.state().warm.push_back(slot),
            Err(error) => {
                tracing::warn!(%error, "no slot could be built ahead");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
