// SPDX-License-Identifier: Apache-2.0
//! Operation that marks a sandbox as failed and releases its resources. Its record stays.

use wrenn_vmm::MicroVm;

use super::{
    steps::{Cancel, Steps},
    undo::undo,
};
use crate::{
    error::AgentError,
    sandbox::{
        entry::{Entry, Thing},
        record::Sandbox,
        summary::Undo,
    },
};

/// Step of the operation.
type Step = super::steps::Step<Fail>;

/// State of a failure.
pub(crate) struct Fail {
    error: AgentError,
    /// MicroVM of the sandbox; still there at the end if it could not be killed.
    pub(in crate::sandbox) vm: Option<Box<dyn MicroVm>>,
    /// Slot, if it must stay reserved.
    keep: Option<Thing>,
}

impl Steps for Fail {
    const NAME: &'static str = "fail";
    const STEPS: &'static [Step] = &[
        Step::new(|fail, sandbox| Box::pin(fail.tell(sandbox))),
        Step::new(|fail, sandbox| Box::pin(fail.release(sandbox))),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Finish
    }
}

impl Fail {
    /// Failure with this error of a sandbox with this microVM.
    pub(crate) fn new(error: AgentError, vm: Option<Box<dyn MicroVm>>) -> Self {
        Self { error, vm, keep: None }
    }

    /// Writes the failure. If that fails, the slot is kept: the next start would take it from its next owner.
    async fn tell(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if let Err(cause) = sandbox.record.write(vec![entry(&self.error)]).await {
            tracing::error!(id = sandbox.id, %cause, "cannot record a failure");
            self.keep = Some(Thing::Slot);
        }
        Ok(())
    }

    /// Releases the resources, and writes which ones are released.
    async fn release(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let held = sandbox.record.summary().undo();
        if let Err(cause) = undo(sandbox, &mut self.vm, self.keep).await {
            tracing::error!(id = sandbox.id, %cause, "cannot release all resources of a failed sandbox");
        }
        let left = sandbox.record.summary().undo();
        let released =
            held.iter().map(Undo::thing).filter(|thing| !left.iter().any(|step| step.thing() == *thing));
        let entries = released.map(|thing| Entry::Released { thing }).collect();
        if let Err(cause) = sandbox.record.write(entries).await {
            tracing::error!(id = sandbox.id, %cause, "cannot record the released resources of a failed sandbox");
        }
        Ok(())
    }
}

/// Entry of a failure.
fn entry(error: &AgentError) -> Entry {
    Entry::Failed { code: error.code.as_str().to_owned(), message: error.message.clone() }
}
