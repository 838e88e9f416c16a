// SPDX-License-Identifier: Apache-2.0
//! Operation that lets a paused sandbox go on: from its memory, or by a boot from its disk.

use std::{collections::HashMap, time::Instant};

use tokio_util::sync::CancellationToken;
use wrenn_memory::BuildId;
use wrenn_network::SlotSpec;
use wrenn_vmm::MicroVm;

use super::{
    place::Place,
    ready,
    steps::{Cancel, Steps, run_steps},
    undo::release_running,
};
use crate::{
    error::AgentError,
    sandbox::{
        boot,
        entry::{Entry, Thing},
        environment,
        guest::Introduction,
        phase::{Live, Timings},
        record::Sandbox,
        release,
    },
    snapshots::{Base, Loaded},
};

/// Step of the operation.
type Step = super::steps::Step<Resume>;

/// State of a resume.
pub(in crate::sandbox) struct Resume {
    /// Memory to go on from; none for a boot from the disk.
    memory: Option<BuildId>,
    /// Memory of the paused sandbox.
    former: Option<BuildId>,
    token: CancellationToken,
    begin: Instant,
    envs: HashMap<String, String>,
    place: Option<Place>,
    /// The memory, while its content is checked.
    loaded: Option<Loaded>,
    base: Base,
    /// MicroVM; still there after a failure if it could not be killed.
    pub(in crate::sandbox) vm: Option<Box<dyn MicroVm>>,
}

impl Steps for Resume {
    const NAME: &'static str = "resume";
    const STEPS: &'static [Step] = &[
        Step::new(|resume, sandbox| Box::pin(resume.take_slot(sandbox))).points(&["slot"]).timed("network"),
        Step::write(Self::intents).points(&["journal"]).timed("journal"),
        Step::new(|resume, sandbox| Box::pin(resume.make_ready(sandbox))).points(&["attached"]).timed("disk"),
        // A guest that boots changes its disk as soon as its VMM runs.
        Step::write(Self::used_before).points(&["memory_given_up"]),
        Step::new(|resume, sandbox| Box::pin(resume.forget_memory(sandbox))),
        Step::new(|resume, sandbox| Box::pin(resume.start_vmm(sandbox)))
            .creates(&[Thing::Vmm])
            .points(&["vmm_started"]),
        Step::write(|resume, _| resume.started()).points(&["vmm"]).timed("load"),
        Step::new(|resume, sandbox| Box::pin(resume.wake(sandbox))).inner(WAKE).timed("init"),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Undo(self.token.clone())
    }
}

/// From here on the sandbox's memory is that of the guest.
const WAKE: &[Step] = &[
    Step::new(|resume, sandbox| Box::pin(resume.go_on(sandbox))).points(&["init"]),
    Step::write(|_, _| vec![Entry::Running]).points(&["running"]),
];

fn left_out() -> AgentError {
    AgentError::fault("resuming the sandbox", &"an earlier step was left out")
}

impl Resume {
    /// Resume of a sandbox with this memory, or from its disk.
    pub(in crate::sandbox) fn new(former: Option<BuildId>, from_memory: bool) -> Self {
        let memory = former.filter(|_| from_memory);
        Self {
            memory,
            former,
            token: CancellationToken::new(),
            begin: Instant::now(),
            envs: HashMap::new(),
            place: None,
            loaded: None,
            base: memory.map_or(Base::Zero, Base::Generation),
            vm: None,
        }
    }

    /// Rest of a resume of a former agent, of which this runs.
    pub(in crate::sandbox) fn adopted(
        sandbox: &Sandbox,
        vm: Box<dyn MicroVm>,
        slot: &SlotSpec,
    ) -> Result<Self, AgentError> {
        let base = sandbox.record.summary().base();
        let memory = match base {
            Base::Generation(build) => Some(build),
            Base::Zero | Base::Unknown => None,
        };
        let place = Some(Place::at(sandbox, slot)?);
        Ok(Self { base, place, vm: Some(vm), ..Self::new(memory, true) })
    }

    /// Runs the rest of a resume of a former agent.
    pub(in crate::sandbox) async fn complete(
        &mut self,
        sandbox: &mut Sandbox,
    ) -> Result<Timings, AgentError> {
        self.envs = environment::read(sandbox).await?;
        run_steps(WAKE, self, sandbox).await
    }

    /// What the running sandbox owns, after all steps.
    pub(in crate::sandbox) fn finish(&mut self, timings: Timings) -> Result<Live, AgentError> {
        let Place { slot, guest, .. } = self.place.take().ok_or_else(left_out)?;
        let vm = self.vm.take().ok_or_else(left_out)?;
        Ok(Live { vm, slot, guest, base: self.base, timings, boot_reason: None, held: false })
    }

    /// Releases what a failed resume has taken; the sandbox is as it was before if its memory was not used.
    pub(in crate::sandbox) async fn take_back(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        release_running(sandbox, &mut self.vm, None).await
    }

    fn place(&self) -> Result<&Place, AgentError> {
        self.place.as_ref().ok_or_else(left_out)
    }

    async fn take_slot(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        self.place = Some(Place::take(sandbox).await?);
        Ok(())
    }

    fn intents(&self, _: &Sandbox) -> Vec<Entry> {
        let slot = self.place.iter().map(|place| Entry::Slot { index: place.slot });
        slot.chain([Entry::VmmIntent]).collect()
    }

    /// Attaches the disk, makes the VMM's directory and control groups, and opens the memory.
    async fn make_ready(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        self.envs = environment::read(sandbox).await?;
        release::files(sandbox.run_dir()).await?;
        let shared = &sandbox.shared;
        let place = self.place.as_mut().ok_or_else(left_out)?;
        place.limit_network(sandbox).await?;
        let memory = async {
            match self.memory {
                Some(build) => shared.snapshots.load(build).await.map(Some),
                None => Ok(None),
            }
        };
        // All run to their end, so that none still creates something while it is being undone.
        let (disk, groups, memory) = tokio::join!(
            shared.volumes.attach(&sandbox.id, place.boot.uid),
            boot::make_place(shared, &place.boot),
            memory
        );
        place.boot.disk = Some(disk?.path);
        place.boot.cgroups = groups?;
        self.loaded = memory?;
        Ok(())
    }

    fn used_before(&self, _: &Sandbox) -> Vec<Entry> {
        if self.memory.is_none() { vec![Entry::Resuming] } else { Vec::new() }
    }

    /// Removes the memory that does not fit the disk any more.
    async fn forget_memory(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let given_up = self.former.take().filter(|_| self.memory.is_none());
        sandbox.shared.snapshots.remove_of(&sandbox.id, given_up).await;
        Ok(())
    }

    /// Starts the VMM while the memory is checked. The guest does not go on yet.
    async fn start_vmm(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let loaded = self.loaded.take();
        let (shared, boot) = (&sandbox.shared, &self.place()?.boot);
        let (started, verified) = match self.memory {
            Some(build) => {
                let (snapshots, mut loaded) = (&shared.snapshots, loaded.ok_or_else(left_out)?);
                let source = snapshots.source(&mut loaded, sandbox.working_set()).await?;
                snapshots.give(build, Some(boot.uid)).await?;
                let restored = shared.vmm.restore(&source, boot).await;
                // It is mapped now; another sandbox may have this user later.
                snapshots.give(build, None).await?;
                (restored, loaded.verified().await)
            }
            None => (shared.vmm.boot(boot).await, Ok(())),
        };
        let started = started.map(|vm| self.vm = Some(vm));
        // A VMM that does not load what is damaged does not know why.
        verified?;
        started.map_err(|error| boot::failed(error, &sandbox.id, &sandbox.shared.dir))
    }

    /// Entries of the VMM's process, and that the guest goes on.
    fn started(&self) -> Vec<Entry> {
        let vmm = self.vm.iter().map(|vm| Entry::Vmm { process: vm.process(), base: self.base });
        vmm.chain([Entry::Resuming]).collect()
    }

    async fn wake(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        run_steps(WAKE, self, sandbox).await.map(drop)
    }

    /// Lets the guest go on, and tells it what changed. It is not handed out before it confirms that.
    async fn go_on(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (vm, guest) = (self.vm.as_deref().ok_or_else(left_out)?, &self.place()?.guest);
        let envs = &self.envs;
        let answered = async {
            if self.memory.is_some() {
                vm.resume().await?;
                // Its envd runs already, so it is told at once.
                return guest.init(&sandbox.id, &sandbox.spec, &Introduction::after_resume()).await;
            }
            guest.ready().await;
            guest.init(&sandbox.id, &sandbox.spec, &Introduction::after_boot(envs)).await
        };
        let until = self.begin + sandbox.shared.boot_limit;
        ready::unless_it_ends(sandbox, vm, &self.token, until, answered).await
    }
}
