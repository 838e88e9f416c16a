// SPDX-License-Identifier: Apache-2.0
//! Operation that removes a sandbox and all its resources.

use wrenn_vmm::MicroVm;

use super::{
    steps::{Cancel, Steps},
    undo::{self, undo},
};
use crate::{
    error::AgentError,
    sandbox::{
        entry::{Entry, Thing},
        record::Sandbox,
        release,
    },
};

/// Step of the operation.
type Step = super::steps::Step<Destroy>;

/// State of a destroy.
pub(in crate::sandbox) struct Destroy {
    /// MicroVM of the sandbox; still there after a failure if it could not be killed.
    pub(in crate::sandbox) vm: Option<Box<dyn MicroVm>>,
}

impl Steps for Destroy {
    const NAME: &'static str = undo::NAME;
    const STEPS: &'static [Step] = &[
        Step::new(|destroy, sandbox| Box::pin(destroy.intend(sandbox))).points(&["recorded"]),
        Step::new(|destroy, sandbox| Box::pin(take_back(sandbox, &mut destroy.vm))),
    ];

    fn cancel(&self) -> Cancel {
        Cancel::Finish
    }
}

impl Destroy {
    /// Writes that the sandbox is being destroyed.
    async fn intend(&mut self, sandbox: &mut Sandbox) -> Result<(), AgentError> {
        if sandbox.record.is_open() && sandbox.record.write(vec![Entry::Destroy]).await.is_err() {
            // The disk may be full; releasing the resources may make room. Without the entry the next start
            // would take the slot for the sandbox's, so it is kept until then.
            undo(sandbox, &mut self.vm, &[Thing::Slot]).await?;
            sandbox.record.write(vec![Entry::Destroy]).await?;
        }
        Ok(())
    }
}

/// Releases all resources and removes the record.
pub(crate) async fn take_back(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
) -> Result<(), AgentError> {
    let generations = sandbox.record.summary().generations();
    undo(sandbox, vm, &[]).await?;
    sandbox.record.close();
    release::directory(&sandbox.shared.dir, &sandbox.id).await?;
    // After the journal that names them: the next start removes what nobody names.
    sandbox.shared.snapshots.remove_of(&sandbox.id, generations).await;
    Ok(())
}
