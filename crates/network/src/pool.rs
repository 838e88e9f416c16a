// SPDX-License-Identifier: Apache-2.0
//! Pool of slots built in advance, with a journal to find them after a crash.
//!
//! The file `slots/INDEX` exists from before a slot's first resource is created until after its last is
//! removed.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::Instant,
};
use wrenn_os::machine_lock::{LockError, MachineLock};

use crate::{
    NetworkError, build,
    cidr::Cidr,
    plan::{MAX_SLOTS, Plan, SlotSpec},
    policy::Policy,
    reclaim,
    rules::{Common, Egress, Forwarding},
};

/// Configuration of a pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Directory of the journal and of the namespaces' mount points.
    pub state_dir: PathBuf,
    /// Instance tag in the agent's link names: one to four lower-case letters or digits.
    pub instance: String,
    /// Number of slots kept ready.
    pub warm: usize,
    /// Maximum number of slots, including the ready ones.
    pub max: u16,
    /// Outside networks that sandboxes may reach.
    pub egress: Egress,
    /// Resolvers for guests' DNS queries: the first two, as found by
    /// [`resolvers::of_host`](crate::resolvers::of_host). Guests reach only their port 53, even in private
    /// networks. If empty, guests have no DNS.
    pub resolvers: Vec<Ipv4Addr>,
    /// Private networks that a policy's `allow` may open; usually none. Other guests, loopback, link-local
    /// with the metadata service, multicast and reserved networks stay closed.
    pub permitted: Vec<Cidr>,
    /// Slots used by running microVMs; they are not changed.
    pub in_use: Vec<u16>,
}

/// Numbers of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Ready slots.
    pub warm: usize,
    /// Slots in use.
    pub in_use: usize,
}

#[derive(Debug, Default)]
struct State {
    warm: VecDeque<SlotSpec>,
    /// Numbers of all slots: ready, in use, being built or being removed.
    taken: BTreeSet<u16>,
    /// Numbers of the slots being removed.
    leaving: BTreeSet<u16>,
    closed: bool,
}

/// Slots of one agent.
#[derive(Debug)]
pub struct SlotPool {
    inner: Arc<Inner>,
    refiller: Mutex<Option<JoinHandle<()>>>,
    alone: Mutex<Option<MachineLock>>,
}

/// State shared with tasks that outlive a cancelled call.
#[derive(Debug)]
struct Inner {
    plan: Plan,
    journal: PathBuf,
    common: Common,
    forwarding: Forwarding,
    warm: usize,
    max: u16,
    state: Mutex<State>,
    wanted: Notify,
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.to_owned();
    move |source| NetworkError::Io { action, source }
}

/// Locks this network namespace against other agents: their slots would have the same addresses. Only root
/// can take the lock.
async fn alone(state_dir: &Path) -> Result<MachineLock, NetworkError> {
    /// Number of attempts. A child of a killed agent has the lock until its exec.
    const TRIES: u32 = 40;
    let namespace =
        fs::metadata("/proc/thread-self/ns/net").map_err(failed("look at the network namespace"))?;
    let (name, holder) =
        (format!("network-{}", namespace.ino()), format!("an agent in {}", state_dir.display()));
    let mut taken = String::new();
    for _ in 0..TRIES {
        match MachineLock::take(&name, &holder) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Taken(by)) => taken = by,
            Err(LockError::Io(error)) => return Err(failed("take the network namespace")(error)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(NetworkError::Taken(taken))
}

/// Removes all slots of a stopped agent and the host's rules for them.
pub async fn cleanup(state_dir: &Path, instance: &str) -> Result<(), NetworkError> {
    let (journal, netns) = reclaim::dirs(state_dir);
    let plan = Plan::new(instance, &netns)?;
    for index in reclaim::slots(&plan, state_dir)? {
        undo(&plan, &journal, index).await?;
    }
    build::close_host(&plan).await
}

async fn undo(plan: &Plan, journal: &Path, index: u16) -> Result<(), NetworkError> {
    build::remove(plan.slot(index)?).await?;
    match fs::remove_file(journal.join(index.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove a slot from the journal")(error))
        }
        _ => Ok(()),
    }
}

/// Runs `work` to its end even if the caller is cancelled, so that no slot stays half removed.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, NetworkError>> + Send + 'static,
) -> Result<T, NetworkError> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|error| Err(failed("work on a slot")(io::Error::other(error))))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates the lowest free slot number.
    fn take(&self) -> Result<u16, NetworkError> {
        let mut state = self.state();
        if state.closed {
            return Err(NetworkError::Closed);
        }
        let free = (1..=self.max).find(|index| !state.taken.contains(index));
        let index = free.ok_or(NetworkError::Exhausted(self.max))?;
        state.taken.insert(index);
        Ok(index)
    }

    async fn build(&self) -> Result<SlotSpec, NetworkError> {
        let index = self.take()?;
        let built = async {
            let slot = self.plan.slot(index)?;
            File::create(self.journal.join(index.to_string()))
                .map_err(failed("write a slot to the journal"))?;
            build::build(slot.clone(), Policy::default(), self.common.clone()).await?;
            Ok(slot)
        };
        match built.await {
            Ok(slot) => Ok(slot),
            Err(error) => {
                // If it cannot be removed, its number stays allocated until the next start tries again.
                if let Err(error) = self.release(index).await {
                    tracing::warn!(%error, index, "cannot remove a slot whose build failed");
                }
                Err(error)
            }
        }
    }

    async fn release(&self, index: u16) -> Result<(), NetworkError> {
        {
            let mut state = self.state();
            // A repeated release must not affect the next user of the number.
            let ready = state.warm.iter().any(|slot| slot.index == index);
            if ready || !state.taken.contains(&index) || !state.leaving.insert(index) {
                return Ok(());
            }
        }
        let undone = undo(&self.plan, &self.journal, index).await;
        {
            let mut state = self.state();
            state.leaving.remove(&index);
            if undone.is_ok() {
                state.taken.remove(&index);
            }
        }
        self.wanted.notify_one();
        undone
    }

    /// Adds a slot to the ready ones, or removes it if the pool is closed.
    async fn keep(&self, slot: SlotSpec) -> Result<(), NetworkError> {
        {
            let mut state = self.state();
            if !state.closed {
                state.warm.push_back(slot);
                return Ok(());
            }
        }
        self.release(slot.index).await
    }

    /// Returns a slot that is in use.
    fn held(&self, index: u16) -> Result<SlotSpec, NetworkError> {
        let slot = self.plan.slot(index)?;
        let state = self.state();
        let held = state.taken.contains(&index) && state.warm.iter().all(|warm| warm.index != index);
        if held { Ok(slot) } else { Err(NetworkError::NotInUse(index)) }
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        self.inner.state().closed = true;
        self.inner.wanted.notify_one();
    }
}

impl SlotPool {
    /// Removes the slots of a previous agent except those in use, and starts to build slots.
    pub async fn start(config: PoolConfig) -> Result<Arc<Self>, NetworkError> {
        let (journal, netns) = reclaim::dirs(&config.state_dir);
        let plan = Plan::new(&config.instance, &netns)?;
        for dir in [&journal, &netns] {
            fs::create_dir_all(dir).map_err(failed("make the directory of slots"))?;
        }
        let alone = alone(&config.state_dir).await?;
        let in_use: BTreeSet<u16> = config.in_use.into_iter().collect();
        for index in reclaim::slots(&plan, &config.state_dir)?.difference(&in_use) {
            undo(&plan, &journal, *index).await?;
        }
        let common =
            Common { egress: config.egress, resolvers: config.resolvers, permitted: config.permitted };
        let forwarding = build::open_host(&plan, config.max, &common).await?;
        let state = Mutex::new(State { taken: in_use, ..State::default() });
        let (warm, max, wanted) = (config.warm, config.max.min(MAX_SLOTS), Notify::new());
        let inner = Arc::new(Inner { plan, journal, common, forwarding, warm, max, state, wanted });
        let task = tokio::spawn(refill(Arc::downgrade(&inner)));
        Ok(Arc::new(Self { inner, refiller: Mutex::new(Some(task)), alone: Mutex::new(Some(alone)) }))
    }

    /// Returns a ready slot, or builds one. No sandbox used it before, and it has the default policy.
    pub async fn acquire(&self) -> Result<SlotSpec, NetworkError> {
        let ready = self.inner.state().warm.pop_front();
        self.inner.wanted.notify_one();
        if let Some(slot) = ready {
            return Ok(slot);
        }
        let (done, built) = oneshot::channel();
        let inner = self.inner.clone();
        tokio::spawn(async move {
            // If the caller no longer waits, keep the slot for the next one.
            if let Err(Ok(slot)) = done.send(inner.build().await)
                && let Err(error) = inner.keep(slot).await
            {
                tracing::warn!(%error, "cannot remove an unused slot");
            }
        });
        built.await.map_err(|error| failed("build a slot")(io::Error::other(error)))?
    }

    /// Removes a slot that is in use, with its conntrack entries; may be repeated.
    pub async fn release(&self, index: u16) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        to_its_end(async move { inner.release(index).await }).await
    }

    /// Replaces the policy of a slot atomically: forbidden flows stop with their next packet, other flows are
    /// not interrupted.
    pub async fn set_policy(&self, index: u16, policy: &Policy) -> Result<(), NetworkError> {
        policy.validate()?;
        let slot = self.inner.held(index)?;
        build::set_policy(slot, policy.clone(), self.inner.common.clone()).await
    }

    /// Deletes the conntrack and neighbour entries of a slot after a snapshot was restored into it, because
    /// they do not match the guest's state.
    pub async fn refresh(&self, index: u16) -> Result<(), NetworkError> {
        build::refresh(self.inner.held(index)?).await
    }

    /// Returns the numbers of slots.
    pub fn stats(&self) -> PoolStats {
        let state = self.inner.state();
        PoolStats { warm: state.warm.len(), in_use: state.taken.len() - state.warm.len() }
    }

    /// Stops building and removes the ready slots; slots in use stay.
    pub async fn shutdown(&self) -> Result<(), NetworkError> {
        self.inner.state().closed = true;
        self.inner.wanted.notify_one();
        let refiller = self.refiller.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = refiller {
            // A slot being built is finished first, so that it can be removed.
            let _ = task.await;
        }
        let warm = std::mem::take(&mut self.inner.state().warm);
        for slot in warm {
            self.release(slot.index).await?;
        }
        self.alone.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }
}

/// Delay before a slot is built in advance, while half of the ready ones are left: the sandbox that took one
/// is starting, and shares the processors and the kernel's network lock with the build.
const REFILL_DELAY: Duration = Duration::from_millis(100);

/// Interval between checks of the host's nftables table.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

async fn look_after(pool: &Inner, next: &mut Instant) {
    if Instant::now() < *next || pool.state().closed {
        return;
    }
    *next = Instant::now() + LOOK_PERIOD;
    if let Err(error) = build::keep_host(&pool.plan, &pool.common, pool.forwarding).await {
        tracing::error!(%error, "cannot check the host's nftables table for guests");
    }
}

/// Keeps the number of ready slots and the host's nftables table, as long as the pool exists.
async fn refill(pool: Weak<Inner>) {
    /// Delay after a failed build, which would probably fail again at once.
    const PAUSE: Duration = Duration::from_secs(1);
    let mut next_look = Instant::now() + LOOK_PERIOD;
    while let Some(strong) = pool.upgrade() {
        look_after(&strong, &mut next_look).await;
        let warm = {
            let state = strong.state();
            if state.closed {
                return;
            }
            state.warm.len()
        };
        if warm >= strong.warm {
            // Wait with a timeout, so that a dropped pool is not kept alive forever.
            let _ = tokio::time::timeout_at(next_look, strong.wanted.notified()).await;
            continue;
        }
        if warm > strong.warm / 2 {
            tokio::time::sleep(REFILL_DELAY).await;
        }
        let built = match strong.build().await {
            Ok(slot) => strong.keep(slot).await,
            Err(error) => Err(error),
        };
        if let Err(error) = built {
            tracing::warn!(%error, "cannot build a slot in advance");
            // Sleep instead of waiting for a notification, because removing the failed slot has just sent
            // one.
            tokio::time::sleep(PAUSE).await;
        }
    }
}
