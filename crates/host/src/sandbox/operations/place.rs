// SPDX-License-Identifier: Apache-2.0
//! Place where a sandbox's microVM runs: its network slot, and what depends on it.

use wrenn_network::{Policy, SlotSpec};
use wrenn_vmm::BootSpec;

use crate::{
    error::AgentError,
    sandbox::{boot, entry::Entry, guest::Guest, record::Sandbox},
};

/// Slot of a sandbox, and what depends on it.
pub(super) struct Place {
    /// Slot number.
    pub(super) slot: u16,
    /// What the VMM runs with.
    pub(super) boot: BootSpec,
    /// Client of the guest.
    pub(super) guest: Guest,
}

impl Place {
    /// Takes a slot for the sandbox. The pool has a journal of its own: a slot that no sandbox has recorded is free at
    /// the next start.
    pub(super) async fn take(sandbox: &mut Sandbox) -> Result<Self, AgentError> {
        let slot = sandbox.shared.slots.acquire().await?;
        // Whatever happens until it is in the journal, an undo releases it.
        sandbox.record.note(&Entry::Slot { index: slot.index });
        Self::at(sandbox, &slot)
    }

    /// Place in this slot, which the sandbox has.
    pub(super) fn at(sandbox: &Sandbox, slot: &SlotSpec) -> Result<Self, AgentError> {
        let Sandbox { id, spec, shared, .. } = sandbox;
        let guest = Guest::new(slot.host_address, &spec.access_token, &shared.memory)?;
        let boot = boot::boot_spec(shared, id, spec, slot);
        Ok(Self { slot: slot.index, boot, guest })
    }

    /// Sets the slot's rate limits; a new slot allows everything that the host allows.
    pub(super) async fn limit_network(&self, sandbox: &Sandbox) -> Result<(), AgentError> {
        let policy = sandbox.shared.network_policy();
        if policy == Policy::default() {
            return Ok(());
        }
        Ok(sandbox.shared.slots.set_policy(self.slot, &policy).await?)
    }
}
