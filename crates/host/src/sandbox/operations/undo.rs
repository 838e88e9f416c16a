// SPDX-License-Identifier: Apache-2.0
//! Undo of operations. It belongs to resources and not to steps: it releases what the journal says exists,
//! because the next agent has nothing else.

use wrenn_os::fault;
use wrenn_vmm::MicroVm;

use super::steps::PROCESS;
use crate::{
    error::AgentError,
    sandbox::{
        entry::{Entry, Thing},
        record::Sandbox,
        release,
        summary::Undo,
    },
};

/// First part of the names of the fault points of an undo. A destroy is one, after it was recorded.
pub(super) const NAME: &str = "destroy";

/// Releases what the record says exists, except `keep`; kills `vm` before.
pub(crate) async fn undo(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
    keep: &[Thing],
) -> Result<(), AgentError> {
    let killed = vm.is_some();
    kill(vm).await?;
    let held = sandbox.record.summary().undo().into_iter();
    let mut unwanted: Vec<_> = held.filter(|step| !keep.contains(&step.thing())).collect();
    if !killed {
        // A VMM that may run uses all else. What one leaves, disk and network have nothing to do with each other.
        let vmm = unwanted.extract_if(.., |step| step.thing() == Thing::Vmm).collect();
        release_together(sandbox, vmm).await?;
    }
    release_together(sandbox, unwanted).await
}

/// Releases these resources at the same time. Fails with the first error, after all were tried.
async fn release_together(sandbox: &mut Sandbox, steps: Vec<Undo>) -> Result<(), AgentError> {
    let (shared, id) = (&sandbox.shared, &sandbox.id);
    let released = steps.into_iter().map(async |step| {
        release::resource(shared, id, &step).await?;
        // A create that is undone passes the same points.
        fault::point(PROCESS, NAME, step.thing().name());
        Ok(step)
    });
    let released = futures::future::join_all(released).await;
    let mut done = Ok(());
    for step in released {
        // Each one that is gone is forgotten, because another sandbox may have the number of its slot now.
        done = done.and(step.map(|step| sandbox.record.forget(&step)));
    }
    done
}

/// Releases what the record says exists, except `keep`, and writes what is released.
pub(super) async fn release(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
    keep: &[Thing],
) -> Result<(), AgentError> {
    let held = sandbox.record.summary().undo();
    let undone = undo(sandbox, vm, keep).await;
    let left = sandbox.record.summary().undo();
    let gone = |thing: &Thing| !left.iter().any(|step| step.thing() == *thing);
    let released = held.iter().map(Undo::thing).filter(gone);
    let entries = released.map(|thing| Entry::Released { thing }).collect();
    undone.and(sandbox.record.write(entries).await)
}

/// Releases what a sandbox needs only while it runs. Its disk is complete then, and can be used by another VMM.
pub(in crate::sandbox) async fn release_running(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
    keep: Option<Thing>,
) -> Result<(), AgentError> {
    let kept: Vec<_> = [Some(Thing::Volume), keep].into_iter().flatten().collect();
    release(sandbox, vm, &kept).await?;
    if sandbox.record.summary().has(Thing::Volume) {
        sandbox.shared.volumes.detach(&sandbox.id).await?;
    }
    // The next VMM may have another user.
    release::files(sandbox.run_dir()).await
}

/// Kills a microVM; keeps it if that fails.
pub(super) async fn kill(vm: &mut Option<Box<dyn MicroVm>>) -> Result<(), AgentError> {
    if let Some(running) = vm {
        running.kill().await?;
        *vm = None;
    }
    Ok(())
}
