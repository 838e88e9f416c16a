// SPDX-License-Identifier: Apache-2.0
//! Operation that creates a sandbox: network, journal, disk, microVM, guest.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_disk::DiskError;
use wrenn_vmm::MicroVm;

use super::{
    place::Place,
    ready,
    steps::{Cancel, Steps, run_steps, unless_cancelled},
    undo::kill,
};
use crate::{
    error::AgentError,
    images,
    sandbox::{
        admit::Creation,
        boot,
        entry::{Entry, Thing},
        environment,
        guest::{ANSWER, Introduction, overdue},
        phase::{Live, Timings},
        record::Sandbox,
        release,
        spec::Spec,
    },
    snapshots::{
        Base, Loaded,
        templates::{TemplateSnapshot, Ticket},
    },
};

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
    /// What the memory of the guest began with.
    base: Base,
    /// Snapshot that the sandbox goes on from.
    snapshot: Option<Arc<TemplateSnapshot>>,
    /// Named snapshot that it is created from.
    named: Option<Arc<TemplateSnapshot>>,
    /// Name in the store of the image that it boots from, if that is not its template's.
    image: Option<String>,
    /// Its memory, while its content is checked.
    loaded: Option<Loaded>,
    /// Why it does not go on from the memory of its named snapshot.
    boot_reason: Option<String>,
    /// Permission to capture the guest for later sandboxes.
    ticket: Option<Ticket>,
    /// MicroVM; still there after an undo if it could not be killed.
    pub(in crate::sandbox) vm: Option<Box<dyn MicroVm>>,
}

impl Steps for Create {
    const NAME: &'static str = "create";
    const STEPS: &'static [Step] = &[
        // The pool has a journal of its own: a slot that no sandbox has recorded is free at the next start.
        Step::new(|create, sandbox| Box::pin(create.take_slot(sandbox))).points(&["slot"]).timed("network"),
        // The entries of all later steps in one write.
        Step::write(Self::intents).points(&["journal"]).timed("journal"),
        Step::new(|create, sandbox| Box::pin(create.keep_environment(sandbox))),
        Step::new(|create, sandbox| Box::pin(create.make_disk_and_groups(sandbox)))
            .creates(&[Thing::Volume])
            .points(&["volume", "control_groups"])
            .timed("disk"),
        Step::new(|create, sandbox| Box::pin(create.boot_up_to_twice(sandbox))).inner(BOOT).timed("boot"),
        Step::new(|create, sandbox| Box::pin(create.capture(sandbox))).points(&["captured"]),
        // A capture may have changed the base.
        Step::write(Self::changed_base),
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
    /// Create of a sandbox that begins with this.
    pub(in crate::sandbox) fn new(creation: Creation) -> Self {
        let (Creation { envs, snapshot: named, image }, begin) = (creation, Instant::now());
        Self {
            envs,
            token: CancellationToken::new(),
            begin,
            until: begin,
            place: None,
            base: Base::Zero,
            snapshot: named.clone(),
            named,
            image,
            loaded: None,
            boot_reason: None,
            ticket: None,
            vm: None,
        }
    }

    /// What the running sandbox owns, after all steps.
    pub(in crate::sandbox) fn finish(&mut self, timings: Timings) -> Result<Live, AgentError> {
        let Place { slot, guest, .. } = self.place.take().ok_or_else(left_out)?;
        let vm = self.vm.take().ok_or_else(left_out)?;
        let boot_reason = self.boot_reason.take();
        Ok(Live { vm, slot, guest, base: self.base, timings, boot_reason, held: false })
    }

    fn place(&self) -> Result<&Place, AgentError> {
        self.place.as_ref().ok_or_else(left_out)
    }

    fn introduction(&self) -> Introduction<'_> {
        match &self.snapshot {
            Some(snapshot) if snapshot.token.is_some() => {
                Introduction::of_clone(&self.envs, snapshot.token.as_deref())
            }
            _ => Introduction::first(&self.envs),
        }
    }

    async fn take_slot(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        self.place = Some(Place::take(sandbox).await?);
        Ok(())
    }

    /// Entries of everything that the create makes, except the process.
    fn intents(&self, sandbox: &Sandbox) -> Vec<Entry> {
        let slot = self.place.iter().map(|place| Entry::Slot { index: place.slot });
        let first = Entry::Spec((*sandbox.spec).clone());
        [first].into_iter().chain(slot).chain([Entry::Volume, Entry::VmmIntent]).collect()
    }

    /// Keeps the environment for a boot after which envd does not know it any more, and limits the slot's network.
    async fn keep_environment(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        environment::keep(sandbox, &self.envs).await?;
        self.place()?.limit_network(sandbox).await
    }

    async fn make_disk_and_groups(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let shape = self.choose_memory(sandbox).await?;
        let boot = &mut self.place.as_mut().ok_or_else(left_out)?.boot;
        let (image, named) = (self.image.as_deref(), self.named.as_deref());
        let disk = make_disk(sandbox, &mut self.snapshot, named, image, boot.uid);
        // Both run to their end, so that neither still creates something while it is being undone.
        let (disk, groups) = tokio::join!(disk, boot::make_place(&sandbox.shared, boot));
        boot.disk = Some(disk?);
        boot.cgroups = groups?;
        if self.snapshot.is_none() {
            self.ticket = shape.and_then(|shape| sandbox.shared.template_snapshots.ticket(&shape));
        }
        Ok(())
    }

    /// Chooses the snapshot whose memory the sandbox goes on from. Returns the shape of which there may be one.
    async fn choose_memory(&mut self, sandbox: &Sandbox) -> Result<Option<String>, AgentError> {
        let snapshots = &sandbox.shared.template_snapshots;
        let shape = if let Some(named) = self.named.as_ref().filter(|named| !named.has_memory) {
            snapshots.shape_of_named(named.build)
        } else if let Some(named) = &self.named {
            // Its files may have been damaged since it was made; templates' are read when the agent starts.
            match sandbox.shared.snapshots.load(named.build).await {
                Ok(loaded) => {
                    self.loaded = Some(loaded);
                    return Ok(None);
                }
                Err(error) if error.code == ErrorCode::SnapshotIncompatible => {
                    tracing::warn!(id = sandbox.id, %error, "a sandbox boots from the disk of its snapshot");
                    self.boot_reason = Some(error.message);
                    snapshots.shape_of_named(named.build)
                }
                Err(error) => return Err(error.of_template()),
            }
        } else {
            let Spec { template, vcpus, memory_mb, disk_size_mb, .. } = &*sandbox.spec;
            let size = (*vcpus, *memory_mb, *disk_size_mb);
            match &self.image {
                Some(image) => snapshots.shape_of_image(image, size).await,
                None => snapshots.shape(template, size).await,
            }
        };
        self.snapshot = shape.as_ref().and_then(|shape| snapshots.get(shape));
        Ok(shape)
    }

    async fn boot_up_to_twice(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let limit = sandbox.shared.boot_limit;
        self.until = self.begin + limit / 3 * if self.snapshot.is_some() { 1 } else { 2 };
        let Err(error) = run_steps(BOOT, self, sandbox).await else { return Ok(()) };
        unless_cancelled(&self.cancel())?;
        // No other guest would take it, or it is not what was written.
        if matches!(error.code, ErrorCode::InvalidRequest | ErrorCode::SnapshotDamaged) {
            return Err(error);
        }
        // A guest that never ran has nothing to lose by a second attempt.
        tracing::warn!(id = sandbox.id, %error, "a guest did not come up; it is booted once more");
        kill(&mut self.vm).await?;
        release::end_vmm(&sandbox.run_dir(), None).await?;
        let boot = &mut self.place.as_mut().ok_or_else(left_out)?.boot;
        let of_boot = self.snapshot.take_if(|snapshot| !snapshot.is_named());
        if let Some(snapshot) = &of_boot {
            // It may be the cause.
            let snapshots = &sandbox.shared.template_snapshots;
            snapshots.discard(snapshot).await;
            self.ticket = snapshot.shape.as_ref().and_then(|shape| snapshots.ticket(shape));
        }
        if of_boot.is_some() || self.named.is_some() {
            // It is of no use without the memory, or the guest may have written to it.
            let (image, named) = (self.image.as_deref(), self.named.as_deref());
            boot.disk = Some(make_disk(sandbox, &mut self.snapshot, named, image, boot.uid).await?);
        }
        boot.cgroups = boot::make_place(&sandbox.shared, boot).await?;
        self.until = self.begin + limit;
        run_steps(BOOT, self, sandbox).await.map(drop)
    }

    async fn start_vmm(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (vmm, boot) = (&sandbox.shared.vmm, &self.place()?.boot);
        let (started, base) = match &self.snapshot {
            Some(snapshot) => (vmm.restore(&snapshot.source(), boot).await, Base::Generation(snapshot.build)),
            None => (vmm.boot(boot).await, Base::Zero),
        };
        let verified = match self.loaded.take() {
            Some(loaded) => loaded.verified().await.map_err(AgentError::of_template),
            None => Ok(()),
        };
        self.base = base;
        let started = started.map(|vm| self.vm = Some(vm));
        // A VMM that does not load what is damaged does not know why.
        verified?;
        started.map_err(|error| boot::failed(error, &sandbox.id, &sandbox.shared.dir))?;
        match &self.vm {
            Some(vm) if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_named()) => {
                Ok(vm.resume().await?)
            }
            _ => Ok(()),
        }
    }

    /// Entry of the VMM's process.
    fn process(&self) -> Vec<Entry> {
        self.vm.iter().map(|vm| Entry::Vmm { process: vm.process(), base: self.base }).collect()
    }

    /// Entry of the VMM's process with the base that a capture has changed.
    fn changed_base(&self, sandbox: &Sandbox) -> Vec<Entry> {
        if sandbox.record.summary().base() == self.base { Vec::new() } else { self.process() }
    }

    /// Waits until the guest's envd answers.
    async fn wait_ready(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (vm, guest) = (self.vm.as_deref().ok_or_else(left_out)?, &self.place()?.guest);
        let answered = async {
            // The envd of a guest that goes on runs already, so it is told at once.
            if self.snapshot.is_some() {
                return guest.init(&sandbox.id, &sandbox.spec, &self.introduction()).await;
            }
            guest.ready().await;
            Ok(())
        };
        ready::unless_it_ends(sandbox, vm, &self.token, self.until, answered).await
    }

    /// Captures the guest for later sandboxes of its shape, if it is the first one.
    async fn capture(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        // What the first command takes longer than later ones, most others need not take again.
        if let Err(error) = self.place()?.guest.warm(&sandbox.spec.default_user).await {
            tracing::info!(id = sandbox.id, %error, "the guest of a template runs no first command");
        }
        let vm = self.vm.as_deref().ok_or_else(left_out)?;
        self.base = ticket.capture(vm, &sandbox.id).await?;
        Ok(())
    }

    /// Tells the guest who it is, unless that was the first thing it was asked.
    async fn init(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        let introduction = self.introduction();
        let told = self.place()?.guest.init(&sandbox.id, &sandbox.spec, &introduction);
        let told = tokio::time::timeout(ANSWER, told).await.unwrap_or_else(|_| Err(overdue()));
        // Programs of the image have run in it before.
        if self.image.is_some() { told.map_err(AgentError::of_template) } else { told }
    }
}

/// Copies the disk of the snapshot whose memory the sandbox goes on from. If there is none, or its disk is gone, that of the
/// named snapshot, or else clones the image, which is the template's if none is given.
async fn make_disk(
    sandbox: &Sandbox,
    snapshot: &mut Option<Arc<TemplateSnapshot>>,
    named: Option<&TemplateSnapshot>,
    image: Option<&str>,
    owner: u32,
) -> Result<PathBuf, AgentError> {
    let (volumes, id) = (&sandbox.shared.volumes, &sandbox.id);
    let copy = async |volume: &str| {
        volumes.copy(volume, id).await?;
        volumes.attach(id, owner).await
    };
    if let Some(of_boot) = snapshot.as_ref().filter(|snapshot| !snapshot.is_named()) {
        match copy(of_boot.volume()).await {
            Ok(disk) => return Ok(disk.path),
            Err(DiskError::Full) => return Err(DiskError::Full.into()),
            Err(error) => {
                tracing::warn!(id, %error, "cannot copy the disk of a template's snapshot");
                sandbox.shared.template_snapshots.discard(of_boot).await;
                *snapshot = None;
            }
        }
    }
    if let Some(named) = named {
        return match copy(named.volume()).await {
            Ok(disk) => Ok(disk.path),
            Err(DiskError::Full) => Err(DiskError::Full.into()),
            Err(error) => Err(AgentError::from(error).of_template()),
        };
    }
    let Spec { template, disk_size_mb, .. } = &*sandbox.spec;
    match volumes.clone_image(image.unwrap_or(template), id, *disk_size_mb, owner).await {
        Err(DiskError::UnknownImage(_)) if image.is_some() => Err(images::missing()),
        cloned => Ok(cloned?.path),
    }
}
