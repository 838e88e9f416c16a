//! Slots built before they are needed, and the journal that finds them after a crash.
//!
//! `slots/INDEX` exists from before the first thing of a slot is made until after the last is gone.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    NetworkError, build,
    cidr::Cidr,
    plan::{MAX_SLOTS, Plan, SlotSpec},
    policy::Policy,
    reclaim,
    rules::{Common, Egress},
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
    /// Where guests' questions for names go: the first two, as
    /// [`resolvers::of_host`](crate::resolvers::of_host) finds them. Their port 53 is open to guests wherever
    /// they are, nothing else of them. None: guests cannot look up names.
    pub resolvers: Vec<Ipv4Addr>,
    /// Private networks that a policy's `allow` may open; usually none. Other guests, loopback, link-local
    /// with the metadata service, multicast and reserved networks stay closed.
    pub permitted: Vec<Cidr>,
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
    /// Those of them that are being removed.
    leaving: BTreeSet<u16>,
    closed: bool,
}

/// The slots of one agent.
#[derive(Debug)]
pub struct SlotPool {
    inner: Arc<Inner>,
    refiller: Mutex<Option<JoinHandle<()>>>,
    alone: Mutex<Option<UnixListener>>,
}

/// What outlives a call that nobody waits for any more.
#[derive(Debug)]
struct Inner {
    plan: Plan,
    journal: PathBuf,
    common: Common,
    warm: usize,
    max: u16,
    state: Mutex<State>,
    wanted: Notify,
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.to_owned();
    move |source| NetworkError::Io { action, source }
}

/// Keeps other agents out of this network namespace: their slots would have the same addresses. A name of this kind
/// is known in the namespace alone, and goes with its process.
async fn alone() -> Result<UnixListener, NetworkError> {
    /// A child of one that was killed may hold it until it has become its program.
    const TRIES: u32 = 40;
    let name = SocketAddr::from_abstract_name("wrenn-slots").map_err(failed("name the network namespace"))?;
    for _ in 0..TRIES {
        match UnixListener::bind_addr(&name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bound => return bound.map_err(failed("take the network namespace")),
        }
    }
    Err(NetworkError::Taken)
}

/// Removes every slot of an agent that has ended, and the host's rules for them.
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

/// Runs `work` to its end also where the caller stops waiting: half a slot is nobody's.
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

    /// Takes the lowest free number.
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
                // Where it cannot be undone, its number stays taken until the next start tries again.
                if let Err(error) = self.release(index).await {
                    tracing::warn!(%error, index, "a slot that could not be built could not be undone");
                }
                Err(error)
            }
        }
    }

    async fn release(&self, index: u16) -> Result<(), NetworkError> {
        {
            let mut state = self.state();
            // Who releases it again must not take it from its next owner.
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

    /// Keeps a slot for the next one who asks, unless there will be none.
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

    /// A slot that somebody holds.
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
    /// Undoes what a former agent left, except the slots in use, and begins to build.
    pub async fn start(config: PoolConfig) -> Result<Arc<Self>, NetworkError> {
        let (journal, netns) = reclaim::dirs(&config.state_dir);
        let plan = Plan::new(&config.instance, &netns)?;
        for dir in [&journal, &netns] {
            fs::create_dir_all(dir).map_err(failed("make the directory of slots"))?;
        }
        let alone = alone().await?;
        let in_use: BTreeSet<u16> = config.in_use.into_iter().collect();
        for index in reclaim::slots(&plan, &config.state_dir)?.difference(&in_use) {
            undo(&plan, &journal, *index).await?;
        }
        let common =
            Common { egress: config.egress, resolvers: config.resolvers, permitted: config.permitted };
        build::open_host(&plan, config.max, &common).await?;
        let state = Mutex::new(State { taken: in_use, ..State::default() });
        let (warm, max, wanted) = (config.warm, config.max.min(MAX_SLOTS), Notify::new());
        let inner = Arc::new(Inner { plan, journal, common, warm, max, state, wanted });
        let task = tokio::spawn(refill(Arc::downgrade(&inner)));
        Ok(Arc::new(Self { inner, refiller: Mutex::new(Some(task)), alone: Mutex::new(Some(alone)) }))
    }

    /// A slot, ready if there is one, else built now. No sandbox had it before, and its policy is the
    /// default one.
    pub async fn acquire(&self) -> Result<SlotSpec, NetworkError> {
        let ready = self.inner.state().warm.pop_front();
        self.inner.wanted.notify_one();
        if let Some(slot) = ready {
            return Ok(slot);
        }
        let (done, built) = oneshot::channel();
        let inner = self.inner.clone();
        tokio::spawn(async move {
            // Nobody waits any more: the next one gets it.
            if let Err(Ok(slot)) = done.send(inner.build().await)
                && let Err(error) = inner.keep(slot).await
            {
                tracing::warn!(%error, "a slot that nobody waits for could not be undone");
            }
        });
        built.await.map_err(|error| failed("build a slot")(io::Error::other(error)))?
    }

    /// Removes a slot that was handed out, with all that the kernel remembers of it; repeating it is fine.
    pub async fn release(&self, index: u16) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        to_its_end(async move { inner.release(index).await }).await
    }

    /// Puts a policy in the place of the former one, in one step: flows that it forbids stop with the next
    /// packet, others notice nothing.
    pub async fn set_policy(&self, index: u16, policy: &Policy) -> Result<(), NetworkError> {
        policy.validate()?;
        let slot = self.inner.held(index)?;
        build::set_policy(slot, policy.clone(), self.inner.common.clone()).await
    }

    /// Forgets the flows and neighbours of a slot that a snapshot was restored into: those that the guest
    /// remembers are another time's.
    pub async fn refresh(&self, index: u16) -> Result<(), NetworkError> {
        build::refresh(self.inner.held(index)?).await
    }

    /// How many slots there are.
    pub fn stats(&self) -> PoolStats {
        let state = self.inner.state();
        PoolStats { warm: state.warm.len(), in_use: state.taken.len() - state.warm.len() }
    }

    /// Stops building and removes the ready slots; those handed out stay.
    pub async fn shutdown(&self) -> Result<(), NetworkError> {
        self.inner.state().closed = true;
        self.inner.wanted.notify_one();
        let refiller = self.refiller.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = refiller {
            // A slot that is being built is finished first, so that it can be removed.
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

/// How often the host's packet filter is looked after.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

async fn look_after(pool: &Inner, next: &mut Instant) {
    if Instant::now() < *next || pool.state().closed {
        return;
    }
    *next = Instant::now() + LOOK_PERIOD;
    if let Err(error) = build::keep_host(&pool.plan, &pool.common).await {
        tracing::error!(%error, "the host's packet filter for guests could not be looked after");
    }
}

/// Keeps the ready slots at their number, and the host's packet filter where it is, as long as the pool is used.
async fn refill(pool: Weak<Inner>) {
    /// After a failure: what the kernel refused it will refuse at once again.
    const PAUSE: Duration = Duration::from_secs(1);
    let mut next_look = Instant::now() + LOOK_PERIOD;
    while let Some(strong) = pool.upgrade() {
        look_after(&strong, &mut next_look).await;
        let lacking = {
            let state = strong.state();
            if state.closed {
                return;
            }
            state.warm.len() < strong.warm
        };
        if !lacking {
            // The pool may be dropped while we wait, so nothing of it is held for ever.
            let _ = tokio::time::timeout_at(next_look, strong.wanted.notified()).await;
            continue;
        }
        let built = match strong.build().await {
            Ok(slot) => strong.keep(slot).await,
            Err(error) => Err(error),
        };
        if let Err(error) = built {
            tracing::warn!(%error, "no slot could be built ahead");
            // Not until somebody wants one: undoing what failed has just said so.
            tokio::time::sleep(PAUSE).await;
        }
    }
}
