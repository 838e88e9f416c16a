// SPDX-License-Identifier: Apache-2.0
//! Operation that marks a sandbox as failed and releases its resources. Its record stays, and so does the disk of one
//! that has run: only its user's word destroys that.

use wrenn_vmm::MicroVm;

use super::{
    steps::{Cancel, Steps},
    undo::{release, release_running},
};
use crate::{
    error::AgentError,
    sandbox::{
        entry::{Entry, Thing},
        record::Sandbox,
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
    /// Whether the disk of a sandbox that has run is kept.
    keeps_disk: bool,
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
    pub(crate) fn new(error: AgentError, vm: Option<Box<dyn MicroVm>>, keeps_disk: bool) -> Self {
        Self { error, vm, keep: None, keeps_disk }
    }

    /// Writes the failure. If that fails, the slot is kept: the next start would take it from its next owner.
    async fn tell(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if let Err(cause) = sandbox.record.write(vec![entry(&self.error)]).await {
            tracing::error!(id = sandbox.id, %cause, "cannot record a failure");
            self.keep = Some(Thing::Slot);
        }
        Ok(())
    }

    /// Releases the resources.
    async fn release(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        let (keep, generations) = (self.keep, sandbox.record.summary().generations());
        let released = if self.keeps_disk && sandbox.record.summary().has_run() {
            release_running(sandbox, &mut self.vm, keep).await
        } else {
            release(sandbox, &mut self.vm, keep.as_slice()).await
        };
        if let Err(cause) = released {
            tracing::error!(id = sandbox.id, %cause, "cannot release all resources of a failed sandbox");
        }
        // Its disk was written since.
        sandbox.shared.snapshots.remove_of(&sandbox.id, generations).await;
        Ok(())
    }
}

/// Entry of a failure.
fn entry(error: &AgentError) -> Entry {
    Entry::Failed { code: error.code.as_str().to_owned(), message: error.message.clone() }
}
