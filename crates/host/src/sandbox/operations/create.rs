// SPDX-License-Identifier: Apache-2.0
//! Operation that creates a sandbox: network, journal, disk, microVM, guest.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_disk::DiskError;
use wrenn_network::Policy;
use wrenn_vmm::{BootSpec, MicroVm};

use super::{
    steps::{Cancel, Steps, run_steps, unless_cancelled},
    undo::kill,
};
use crate::{
    error::AgentError,
    sandbox::{
        boot,
        entry::{Entry, Thing},
        guest::Guest,
        last_words,
        phase::{Live, Timings},
        record::Sandbox,
        release,
        spec::Spec,
    },
    template_snapshots::{TemplateSnapshot, Ticket},
};

/// Part of what envd writes to the console if the template's file system does not mount. A guest that ends before
/// envd runs is the fault of the host's kernel or initial RAM disk.
const TEMPLATE_FAULT: &str = "check the template's image";

/// Step of the operation.
type Step = super::steps::Step<Create>;

/// State of a create.
pub(in crate::sandbox) struct Create {
    envs: HashMap<String, String>,
    token: CancellationToken,
    begin: Instant,
    /// Time until which the guest of this attempt may take to get ready.
    until: Instant,
    place: Option<Place>,
    /// Snapshot of the template that the sandbox goes on from.
    snapshot: Option<Arc<TemplateSnapshot>>,
    /// Permission to capture the guest for later sandboxes.
    ticket: Option<Ticket>,
    /// MicroVM; still there after an undo if it could not be killed.
    pub(in crate::sandbox) vm: Option<Box<dyn MicroVm>>,
}

/// Slot of the sandbox, and what depends on it.
struct Place {
    slot: u16,
    boot: BootSpec,
    guest: Guest,
}

impl Steps for Create {
    const NAME: &'static str = "create";
    const STEPS: &'static [Step] = &[
        // The pool has a journal of its own: a slot that no sandbox has recorded is free at the next start.
        Step::new(|create, sandbox| Box::pin(create.take_slot(sandbox))).points(&["slot"]).timed("network"),
        // The entries of all later steps in one write.
        Step::write(Self::intents).points(&["journal"]).timed("journal"),
        Step::new(|create, sandbox| Box::pin(create.limit_network(sandbox))),
        Step::new(|create, sandbox| Box::pin(create.make_disk_and_groups(sandbox)))
            .creates(&[Thing::Volume])
            .points(&["volume", "control_groups"])
            .timed("disk"),
        Step::new(|create, sandbox| Box::pin(create.boot_up_to_twice(sandbox))).inner(BOOT).timed("boot"),
        Step::new(|create, sandbox| Box::pin(create.capture(sandbox))).points(&["captured"]),
        Step::new(|create, sandbox| Box::pin(create.init(sandbox))).points(&["init"]),
        Step::write(|_, _| vec![Entry::Running]).points(&["running"]).timed("init"),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Undo(self.token.clone())
    }
}

/// One attempt to boot the guest.
const BOOT: &[Step] = &[
    Step::new(|create, sandbox| Box::pin(create.start_vmm(sandbox)))
        .creates(&[Thing::Vmm])
        .points(&["vmm_started"]),
    Step::write(|create, _| create.process()).points(&["vmm"]),
    Step::new(|create, sandbox| Box::pin(create.wait_ready(sandbox))),
];

fn left_out() -> AgentError {
    AgentError::fault("creating the sandbox", &"an earlier step was left out")
}

impl Create {
    /// Create of a sandbox with this environment of its processes.
    pub(in crate::sandbox) fn new(envs: HashMap<String, String>) -> Self {
        let begin = Instant::now();
        Self {
            envs,
            token: CancellationToken::new(),
            begin,
            until: begin,
            place: None,
            snapshot: None,
            ticket: None,
            vm: None,
        }
    }

    /// What the running sandbox owns, after all steps.
    pub(in crate::sandbox) fn finish(&mut self, timings: Timings) -> Result<Live, AgentError> {
        let place = self.place.take().ok_or_else(left_out)?;
        let vm = self.vm.take().ok_or_else(left_out)?;
        Ok(Live { vm, guest: place.guest, timings, held: false })
    }

    fn place(&self) -> Result<&Place, AgentError> {
        self.place.as_ref().ok_or_else(left_out)
    }

    async fn take_slot(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let Sandbox { id, spec, shared, record } = sandbox;
        let slot = shared.slots.acquire().await?;
        // Whatever happens until it is in the journal, an undo releases it.
        record.note(&Entry::Slot { index: slot.index });
        let guest = Guest::new(slot.host_address, &spec.access_token, &shared.memory)?;
        let boot = boot::boot_spec(shared, id, spec, &slot);
        self.place = Some(Place { slot: slot.index, boot, guest });
        Ok(())
    }

    /// Entries of everything that the create makes, except the process.
    fn intents(&self, sandbox: &Sandbox) -> Vec<Entry> {
        let slot = self.place.iter().map(|place| Entry::Slot { index: place.slot });
        let first = Entry::Spec((*sandbox.spec).clone());
        [first].into_iter().chain(slot).chain([Entry::Volume, Entry::VmmIntent]).collect()
    }

    /// Sets the slot's rate limits; a new slot allows everything that the host allows.
    async fn limit_network(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let policy = sandbox.shared.network_policy();
        if policy == Policy::default() {
            return Ok(());
        }
        Ok(sandbox.shared.slots.set_policy(self.place()?.slot, &policy).await?)
    }

    async fn make_disk_and_groups(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let snapshots = &sandbox.shared.template_snapshots;
        let Spec { template, vcpus, memory_mb, disk_size_mb, .. } = &*sandbox.spec;
        let shape = snapshots.shape(template, (*vcpus, *memory_mb, *disk_size_mb)).await;
        self.snapshot = shape.as_ref().and_then(|shape| snapshots.get(shape));
        let boot = &mut self.place.as_mut().ok_or_else(left_out)?.boot;
        let disk = make_disk(sandbox, &mut self.snapshot, boot.uid);
        // Both run to their end, so that neither still creates something while it is being undone.
        let (disk, groups) = tokio::join!(disk, boot::make_place(&sandbox.shared, boot));
        boot.disk = Some(disk?);
        boot.cgroups = groups?;
        if self.snapshot.is_none() {
            self.ticket = shape.and_then(|shape| snapshots.ticket(&shape));
            // So that the capture holds what the guest has changed, and not all of its memory.
            boot.track_changes = self.ticket.is_some();
        }
        Ok(())
    }

    async fn boot_up_to_twice(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let limit = sandbox.shared.boot_limit;
        self.until = self.begin + limit / 3 * if self.snapshot.is_some() { 1 } else { 2 };
        let Err(error) = run_steps(BOOT, self, sandbox).await else { return Ok(()) };
        unless_cancelled(&self.cancel())?;
        if error.code == ErrorCode::InvalidRequest {
            // No other guest would take it.
            return Err(error);
        }
        // A guest that never ran has nothing to lose by a second attempt.
        tracing::warn!(id = sandbox.id, %error, "a guest did not come up; it is booted once more");
        kill(&mut self.vm).await?;
        release::end_vmm(&sandbox.run_dir(), None).await?;
        let boot = &mut self.place.as_mut().ok_or_else(left_out)?.boot;
        if let Some(snapshot) = self.snapshot.take() {
            // It may be the cause. Its disk is of no use without it.
            let snapshots = &sandbox.shared.template_snapshots;
            snapshots.discard(&snapshot).await;
            boot.disk = Some(make_disk(sandbox, &mut None, boot.uid).await?);
            self.ticket = snapshots.ticket(&snapshot.shape);
            boot.track_changes = self.ticket.is_some();
        }
        boot.cgroups = boot::make_place(&sandbox.shared, boot).await?;
        self.until = self.begin + limit;
        run_steps(BOOT, self, sandbox).await.map(drop)
    }

    async fn start_vmm(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (vmm, boot) = (&sandbox.shared.vmm, &self.place()?.boot);
        let started = match &self.snapshot {
            Some(snapshot) => vmm.restore(&snapshot.source(), boot).await,
            None => vmm.boot(boot).await,
        };
        self.vm = Some(started.map_err(|error| boot::failed(error, &sandbox.id, &sandbox.shared.dir))?);
        Ok(())
    }

    /// Entry of the VMM's process.
    fn process(&self) -> Vec<Entry> {
        self.vm.iter().map(|vm| Entry::Vmm { process: vm.process() }).collect()
    }

    /// Waits until the guest's envd answers.
    async fn wait_ready(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (vm, guest) = (self.vm.as_deref().ok_or_else(left_out)?, &self.place()?.guest);
        let answered = async {
            // The envd of a guest that goes on runs already, so it is told at once.
            if self.snapshot.is_some() {
                return guest.init(&sandbox.id, &sandbox.spec, &self.envs).await;
            }
            guest.ready().await;
            Ok(())
        };
        tokio::select! {
            answered = answered => answered,
            () = self.token.cancelled() => unless_cancelled(&self.cancel()),
            exit = vm.exited() => {
                tracing::error!(id = sandbox.id, status = ?exit.status, log = exit.log, "a microVM ended while booting");
                let words = last_words::of(vm, &exit, &sandbox.shared.dir).await;
                let message = format!("the microVM ended while it booted; {words}");
                let of_template = message.contains(TEMPLATE_FAULT);
                let error = AgentError::new(ErrorCode::AgentError, message);
                Err(if of_template { error.of_template() } else { error })
            }
            () = tokio::time::sleep(self.until.saturating_duration_since(Instant::now())) => {
                Err(not_ready(vm, &sandbox.id, sandbox.shared.boot_limit).await)
            }
        }
    }

    /// Captures the guest for later sandboxes of its shape, if it is the first one.
    async fn capture(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        ticket.capture(self.vm.as_deref().ok_or_else(left_out)?, &sandbox.id).await
    }

    /// Tells the guest who it is, unless that was the first thing it was asked.
    async fn init(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        self.place()?.guest.init(&sandbox.id, &sandbox.spec, &self.envs).await
    }
}

/// Copies the disk of a snapshot, or clones that of the template if there is none or its disk is gone.
async fn make_disk(
    sandbox: &Sandbox,
    snapshot: &mut Option<Arc<TemplateSnapshot>>,
    owner: u32,
) -> Result<PathBuf, AgentError> {
    let (volumes, id) = (&sandbox.shared.volumes, &sandbox.id);
    if let Some(found) = snapshot {
        let copied = async {
            volumes.copy(&found.volume(), id).await?;
            volumes.attach(id, owner).await
        };
        match copied.await {
            Ok(disk) => return Ok(disk.path),
            Err(DiskError::Full) => return Err(DiskError::Full.into()),
            Err(error) => {
                tracing::warn!(id, %error, "cannot copy the disk of a template's snapshot");
                sandbox.shared.template_snapshots.discard(found).await;
                *snapshot = None;
            }
        }
    }
    let Spec { template, disk_size_mb, .. } = &*sandbox.spec;
    Ok(volumes.clone_image(template, id, *disk_size_mb, owner).await?.path)
}

/// Error of a guest that did not get ready in time.
async fn not_ready(vm: &dyn MicroVm, id: &str, limit: Duration) -> AgentError {
    let console = String::from_utf8_lossy(&vm.console(4096).await).into_owned();
    tracing::error!(id, console, "a guest did not get ready");
    let message = format!(
        "the guest did not get ready within {} s; the host may be overloaded: try again",
        limit.as_secs()
    );
    AgentError::new(ErrorCode::AgentError, message)
}
