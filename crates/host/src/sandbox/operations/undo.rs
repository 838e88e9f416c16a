// SPDX-License-Identifier: Apache-2.0
//! Undo of operations. It belongs to resources and not to steps: it releases what the journal says exists,
//! because the next agent has nothing else.

use wrenn_os::fault;
use wrenn_vmm::MicroVm;

use super::steps::PROCESS;
use crate::{
    error::AgentError,
    sandbox::{entry::Thing, record::Sandbox, release},
};

/// First part of the names of the fault points of an undo. A destroy is one, after it was recorded.
pub(super) const NAME: &str = "destroy";

/// Releases what the record says exists, the latest first, except `keep`; kills `vm` before.
pub(crate) async fn undo(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
    keep: Option<Thing>,
) -> Result<(), AgentError> {
    kill(vm).await?;
    for step in sandbox.record.summary().undo() {
        if Some(step.thing()) == keep {
            continue;
        }
        release::resource(&sandbox.shared, &sandbox.id, &step).await?;
        sandbox.record.forget(&step);
        // A create that is undone passes the same points.
        fault::point(PROCESS, NAME, step.thing().name());
    }
    Ok(())
}

/// Kills a microVM; keeps it if that fails.
pub(super) async fn kill(vm: &mut Option<Box<dyn MicroVm>>) -> Result<(), AgentError> {
    if let Some(running) = vm {
        running.kill().await?;
        *vm = None;
    }
    Ok(())
}
