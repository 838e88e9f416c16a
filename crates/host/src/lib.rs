// SPDX-License-Identifier: Apache-2.0
//! Host agent: runs the microVMs of one machine.
//!
//! Every sandbox has one task that changes it, and a journal on disk; microVMs outlive the agent, and the
//! next one adopts them. The control plane connects by mutual TLS (`host.v1`).
#![allow(refining_impl_trait_internal, refining_impl_trait_reachable)]

mod agent;
mod answer;
mod artifacts;
mod assets;
mod call;
mod cgroup;
mod cleanup;
mod config;
mod directory;
mod disk_pressure;
pub mod driver;
mod error;
mod fleet;
mod images;
mod layout;
mod listener;
mod machine;
mod memory;
mod metrics;
mod oci;
mod port_stream;
mod process_stream;
mod records;
mod recover;
mod sandbox;
mod service;
mod snapshots;
mod tls;
mod uids;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::Context;
use connectrpc::{DeadlinePolicy, Limits as RpcLimits, Router};
use futures::stream::{self, StreamExt as _};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use wrenn_disk::{Backend, DiskError, Reclaimed, StoreConfig, Volumes, loopfs};
use wrenn_network::{Plan, PoolConfig, SlotPool};
use wrenn_rpc::host::v1::HostExt as _;

pub use cleanup::Keep;
pub use config::{Config, Driver, Egress, ImageSettings, Limits, MemoryLayout, Rates, Settings, TlsFiles};
pub use oci::unpack_image_if_asked;
pub use uids::DEFAULT_BASE as VMM_UID_BASE;

use crate::{
    agent::Agent,
    artifacts::Artifacts,
    config::MESSAGE_MAX,
    fleet::Fleets,
    images::{Image, Images},
    machine::Machine,
    memory::Memory,
    metrics::{Sampler, ask_all},
    oci::Imports,
    sandbox::shared::Shared,
    service::Service,
    snapshots::{
        Snapshots,
        named::{self, NamedSnapshot, NamedSnapshots},
        origin,
        templates::{self, TemplateSnapshots},
    },
};

/// Time limit for writing the metrics of all sandboxes at the end: a disk that hangs holds nothing up.
const METRICS_KEPT: Duration = Duration::from_secs(5);

/// Interval between looks at images that are left of removed snapshots.
const LEFT: Duration = Duration::from_secs(300);

/// Runs the agent until `shutdown` is cancelled. Its microVMs continue to run; the next start adopts them.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = tls::server(&config.tls)?;
    let address = config.settings.listen;
    // Each microVM uses some.
    if let Err(error) = wrenn_os::open_files::allow_all() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // Before the slow part: a second agent must not touch the first one's microVMs.
    let listener = listener::bind(address).await?;
    let state_dir = config.state_dir.clone();
    let _lock = spawn_blocking(move || lock(&state_dir)).await??;
    let agent = tokio::select! {
        agent = start(config) => agent?,
        // Unfinished steps are in the journal: the next start undoes them.
        () = shutdown.cancelled() => return Ok(()),
    };
    let (slots, measured) = (agent.shared.slots.clone(), agent.clone());
    let sampler =
        Sampler::new(agent.metrics.clone(), agent.shared.volumes.clone(), agent.shared.plan.clone());
    let sampling = tokio::spawn(sampler.run(move || measured.targets(), shutdown.clone()));
    let asked = agent.clone();
    tokio::spawn(ask_all(agent.metrics.clone(), move || asked.asked(), shutdown.clone()));
    let limits =
        RpcLimits::default().with_max_message_size(MESSAGE_MAX).with_max_request_body_size(MESSAGE_MAX);
    let service = Arc::new(Service { agent }).register(Router::new());
    let service = service
        .into_axum_service()
        .with_limits(limits)
        .with_deadline_policy(DeadlinePolicy::new().with_enforce_on_streams(false));
    let router =
        axum::Router::new().fallback_service(service).layer(axum::middleware::from_fn(answer::keep_memory));
    tracing::info!(%address, "the agent listens");
    let serving = listener::serve(listener, router, tls, shutdown.clone());
    tokio::select! {
        result = serving => result.context("the agent's listener failed")?,
        // Streams may last for days: after a grace period they are closed.
        () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(2)).await } => {}
    }
    drop(tokio::time::timeout(METRICS_KEPT, sampling).await);
    slots.shutdown().await.context("the spare network slots cannot be removed")?;
    Ok(())
}

/// Result of [`pause_all`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paused {
    /// Number of sandboxes that were paused.
    pub paused: usize,
    /// Ids of those that could not be paused, and why.
    pub failed: Vec<(String, String)>,
}

/// Maximum number of sandboxes that are paused at a time.
const PAUSES: usize = 4;

/// Pauses all sandboxes that run on this host, after its agent has ended. Calls `before` with the number of sandboxes
/// if there are any.
pub async fn pause_all(config: Config, before: impl FnOnce(usize)) -> anyhow::Result<Paused> {
    let dir = layout::sandboxes(&config.state_dir);
    // An agent takes a while to start.
    let records =
        spawn_blocking(move || if layout::exists(&dir)? { recover::read(&dir) } else { Ok(Vec::new()) });
    let running = records.await??.iter().filter(|record| record.may_run()).count();
    if running == 0 {
        return Ok(Paused::default());
    }
    before(running);
    let state_dir = config.state_dir.clone();
    let _lock = spawn_blocking(move || lock(&state_dir)).await??;
    let agent = start(config).await?;
    let running = agent.list().into_iter().filter(|(_, handle)| handle.now().runs());
    let pauses = running.map(|(id, handle)| async move { (id, handle.pause().await) });
    let mut pauses = stream::iter(pauses).buffer_unordered(PAUSES);
    let mut all = Paused::default();
    while let Some((id, result)) = pauses.next().await {
        match result {
            Ok(()) => all.paused += 1,
            Err(error) => all.failed.push((id, error.message)),
        }
    }
    agent.shared.slots.shutdown().await.context("the spare network slots cannot be removed")?;
    Ok(all)
}

/// Kills every microVM of the agent with state directory `state_dir` and removes all its kernel objects,
/// after the agent has ended. Blocking. Idempotent.
pub fn cleanup(state_dir: &Path, keep: Keep) -> anyhow::Result<()> {
    let state_dir = state_dir.to_owned();
    // On a thread of its own, so that the caller may be inside a runtime.
    let work = move || {
        let _lock = layout::exists(&state_dir)?.then(|| lock(&state_dir)).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(cleanup::run(&state_dir, keep))
    };
    let done = std::thread::spawn(work).join();
    done.unwrap_or_else(|_| Err(anyhow::anyhow!("the clean-up died; run it again")))
}

/// Lists the kernel objects and processes of an agent with this state directory, one per line.
pub fn leftovers(state_dir: &Path) -> Vec<String> {
    cleanup::leftovers(state_dir)
}

async fn open_volumes(config: &Config, instance: &str) -> anyhow::Result<Arc<dyn Volumes>> {
    let dir = layout::volumes(&config.state_dir);
    let file = layout::store_file(&config.state_dir);
    let size = config.settings.store_size_mb << 20;
    let with = |backend| wrenn_disk::open(StoreConfig::new(&dir, backend, instance));
    // Mounting another kind of store over this one would hide its images.
    let in_file = layout::exists(&file)?;
    if !in_file && wrenn_disk::is_of_device_mapper(&dir)? {
        return with(Backend::Dm).await.with_context(|| {
            format!("{0} is a store of device-mapper; for another kind of store, remove {0}", dir.display())
        });
    }
    // If the directory's own file system works, no loop mount is needed.
    if !in_file {
        for backend in [Backend::Dm, Backend::Reflink] {
            match with(backend).await {
                Ok(store) => return Ok(store),
                Err(error @ DiskError::Full) => {
                    return Err(error).context("the volume store cannot be opened");
                }
                Err(error) => tracing::info!(%error, "trying the next backend of volumes"),
            }
        }
    }
    let (mount_dir, mount_file) = (dir.clone(), file.clone());
    let mounted = spawn_blocking(move || loopfs::mount_store(&mount_file, &mount_dir, size)).await?;
    if let Err(error) = mounted {
        tracing::warn!(%error, "cannot mount a volume store; disks are copied instead of cloned");
    }
    let below = layout::exists(&file)?.then(|| config.state_dir.clone());
    let store = StoreConfig { below, ..StoreConfig::new(&dir, Backend::Auto, instance) };
    wrenn_disk::open(store).await.context("the volume store cannot be opened")
}

/// Maximum number of network slots, including those built in advance.
fn slots_max(config: &Config) -> u16 {
    let sandboxes = u16::try_from(config.settings.limits.sandboxes).unwrap_or(u16::MAX);
    sandboxes.saturating_add(config.settings.warm_slots).min(wrenn_network::MAX_SLOTS)
}

async fn start(config: Config) -> anyhow::Result<Arc<Agent>> {
    let state = config.state_dir.clone();
    let sandboxes_dir = layout::sandboxes(&state);
    for dir in [&state, &sandboxes_dir] {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        // VMMs access their own directories below, but cannot list the others.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    }
    let instance = layout::keep_instance(&state, config.host_id)?;
    let volumes = open_volumes(&config, &instance).await?;
    let mut records = recover::read(&sandboxes_dir).context("the sandboxes' journals cannot be read")?;
    let claim = uids::Claim {
        state_dir: state.clone(),
        base: config.settings.vmm_uid_base,
        // One for each slot, and one for the KVM probe.
        count: u32::from(slots_max(&config)) + 1,
        in_use: records.iter().any(recover::Recorded::may_run),
    };
    let uids = spawn_blocking(move || claim.take()).await??;
    let wish = driver::Wish {
        driver: config.settings.driver,
        firecracker: config.settings.firecracker.clone(),
        unjailed: config.settings.unjailed,
        share_dir: config.share_dir.clone(),
        kernel: config.settings.kernel.clone(),
        dir: state.clone(),
        uid: uids.base(),
        keep: true,
    };
    recover::presume_slots(&sandboxes_dir, &mut records, uids.base());
    recover::end_strays(&sandboxes_dir, &records).await;
    let slots_in_use =
        records.iter().filter(|record| record.may_run()).filter_map(recover::Recorded::slot).collect();
    let with_disks = records.iter().filter(|record| record.keeps_disk());
    let mut disks: Vec<_> = with_disks.map(|record| record.id.clone()).collect();
    let named_dir = layout::named_snapshots(&state);
    let named: Vec<NamedSnapshot> =
        records::read(&named_dir).context("the records of named snapshots cannot be read")?;
    let images_dir = layout::images(&state);
    let images: Vec<Image> = records::read(&images_dir).context("the records of images cannot be read")?;
    disks.extend(named.iter().map(|snapshot| named::volume_of(snapshot.build)));
    disks.extend(templates::volumes(&layout::snapshots(&state))?);
    match volumes.reclaim(&disks).await {
        Ok(reclaimed) if reclaimed == Reclaimed::default() => {}
        Ok(reclaimed) => tracing::info!(?reclaimed, "removed disks without a sandbox"),
        // Running sandboxes do not need this.
        Err(error) => {
            tracing::error!(%error, "the leftovers of disks could not all be removed; the next start tries again");
        }
    }
    images::remove_incomplete(&images, &*volumes).await;
    // Both take seconds at the first start.
    let (templates, chosen) =
        futures::try_join!(assets::take_templates(&config.share_dir, &*volumes), wish.choose())?;
    let can = chosen.vmm.capabilities();
    if let Some(lack) = cgroup::lacking().filter(|_| can.security_boundary) {
        anyhow::bail!(lack);
    }
    if !can.security_boundary {
        if let Some(refusal) = config.refusal_of_no_boundary(chosen.vmm.name(), &chosen.reason) {
            anyhow::bail!(refusal);
        }
        tracing::warn!(vmm = chosen.vmm.name(), "the driver is no security boundary: run no hostile code");
    }
    let kernel = assets::kernel(config.settings.kernel.as_deref(), &config.share_dir, can.kernel);
    let (kernel, initrd) = assets::take_boot_files(&config.share_dir, &kernel, &state, can.kernel)?;
    let assets = assets::Assets { kernel, initrd, templates };
    tracing::info!(
        vmm = chosen.vmm.name(),
        reason = chosen.reason,
        security_boundary = can.security_boundary,
        volumes = volumes.backend(),
        "driver chosen"
    );

    let network = layout::network(&state);
    let slots = SlotPool::start(PoolConfig {
        state_dir: network.clone(),
        instance: instance.clone(),
        warm: usize::from(config.settings.warm_slots),
        max: slots_max(&config),
        egress: match config.settings.egress {
            Egress::Internet => wrenn_network::Egress::Nat,
            Egress::None => wrenn_network::Egress::None,
        },
        resolvers: wrenn_network::resolvers::of_host(),
        permitted: Vec::new(),
        in_use: slots_in_use,
    })
    .await
    .context("the network slots cannot be made")?;
    let (vmm, kernel, initrd) = (chosen.vmm.clone(), assets.kernel.clone(), assets.initrd.clone());
    let origin = move || origin::read(&*vmm, &kernel, &initrd);
    let origin = spawn_blocking(origin).await?.context("kernel and processor cannot be read")?;
    let fault = chosen.vmm.capabilities().snapshot_fault.as_deref();
    if let Some(fault) = fault {
        tracing::warn!(fault, "no snapshots are made: every sandbox boots");
    }
    let room_mb = if fault.is_some() { 0 } else { config.settings.template_snapshots_mb };
    let of_sandboxes = records.iter().filter_map(recover::Recorded::generation);
    let needed = of_sandboxes.chain(named.iter().map(|snapshot| snapshot.build)).collect();
    let memory_layout = config.settings.memory_layout;
    anyhow::ensure!(
        memory_layout != MemoryLayout::Packed || chosen.vmm.capabilities().page_server,
        "agent.memory_layout is \"packed\", and {} cannot load packed memory: set it to \"auto\"",
        chosen.vmm.name()
    );
    let capabilities = chosen.vmm.capabilities();
    let packs = |shares| snapshots::layout::packs(memory_layout, capabilities.page_server, shares);
    let snapshots = Snapshots::open(&layout::snapshots(&state), origin, capabilities.diffs, packs)
        .and_then(|snapshots| snapshots.collect(&needed).map(|()| snapshots))
        .context("the snapshots cannot be read")?;
    let captures = layout::captures(&state);
    let template_snapshots = TemplateSnapshots::open(snapshots.clone(), room_mb, volumes.clone(), captures)
        .context("the snapshots of templates cannot be read")?;
    let loading = template_snapshots.clone().load();
    // Reads them whole. Until it has, sandboxes boot.
    tokio::spawn(async move {
        if let Err(error) = loading.await {
            tracing::error!(%error, "the snapshots of templates cannot be read; sandboxes boot");
        }
    });
    let (fleets, machine) = (Fleets::open(&state)?, Machine::read()?);
    let held = disk_pressure::watch(volumes.clone()).await;
    let images = Images::new(&images_dir, images, volumes.clone(), template_snapshots.clone());
    let imports = Imports::open(
        layout::imports(&state),
        config.settings.images.clone(),
        volumes.clone(),
        images.clone(),
    );
    let imports = imports.await.context("the directory of imports cannot be made")?;
    let named = Arc::new(NamedSnapshots::new(&named_dir, named, snapshots.clone(), volumes.clone()));
    if let Err(error) = named.find_left().await {
        tracing::error!(%error, "the images of removed snapshots cannot be listed; the next start removes them");
    }
    tokio::spawn(remove_left(Arc::downgrade(&named)));
    let artifacts = Artifacts::open(
        layout::artifacts(&state),
        config.settings.limits.clone(),
        volumes.clone(),
        snapshots.clone(),
        named.clone(),
        images.clone(),
    );
    let artifacts = artifacts.await.context("the directory of artifacts cannot be made")?;
    let shared = Arc::new(Shared {
        vmm: chosen.vmm,
        volumes: volumes.clone(),
        slots,
        plan: Plan::new(&instance, &network.join("netns"))?,
        assets,
        named,
        images,
        imports,
        artifacts,
        snapshots,
        template_snapshots,
        dir: sandboxes_dir,
        uids,
        boot_limit: config.settings.limits.boot,
        rates: config.settings.rates,
        memory: Memory::new(
            config.settings.limits.output_memory.unwrap_or_else(|| config::output_memory(machine.memory_mb)),
        ),
        held,
    });
    let restarted = layout::note_boot(&state).context("the file \"boot_id\" cannot be written")?;
    let mut sandboxes = HashMap::new();
    for record in records {
        sandboxes.extend(recover::take_up(&shared, record, restarted).await?);
    }
    Ok(Agent::new(config, shared, fleets, machine, chosen.reason, sandboxes))
}

/// Removes the images of removed snapshots, now and then, when the last sandbox is gone whose disk depends on them.
async fn remove_left(named: Weak<NamedSnapshots>) {
    while let Some(named) = named.upgrade() {
        named.drop_left().await;
        drop(named);
        tokio::time::sleep(LEFT).await;
    }
}

/// Locks the state directory against a second agent, which may listen elsewhere. Blocks for a while: a child
/// of a killed agent has the lock until it executes its program.
fn lock(state_dir: &Path) -> anyhow::Result<fs::File> {
    const TRIES: u32 = 40;
    fs::create_dir_all(state_dir).with_context(|| format!("{} cannot be made", state_dir.display()))?;
    let file = fs::File::create(state_dir.join("lock")).context("the agent's lock cannot be made")?;
    for _ in 0..TRIES {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(50)),
            locked => {
                locked.context("the agent's lock cannot be taken")?;
                return Ok(file);
            }
        }
    }
    anyhow::bail!("another agent uses {}: end it first", state_dir.display())
}
