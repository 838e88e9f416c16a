// SPDX-License-Identifier: Apache-2.0
//! Resources of the agent that all its sandboxes share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use wrenn_api::ErrorCode;
use wrenn_disk::Volumes;
use wrenn_network::{Plan, Policy, SlotPool};
use wrenn_vmm::Vmm;

use crate::{
    artifacts::Artifacts,
    assets::Assets,
    config::Rates,
    error::AgentError,
    images::Images,
    memory::Memory,
    oci::Imports,
    snapshots::{self, Snapshots, named::NamedSnapshots, templates::TemplateSnapshots},
    uids::Uids,
};

/// Resources that all sandboxes of an agent share.
pub(crate) struct Shared {
    /// VMM driver.
    pub(crate) vmm: Arc<dyn Vmm>,
    /// Disks of sandboxes.
    pub(crate) volumes: Arc<dyn Volumes>,
    /// Network slots.
    pub(crate) slots: Arc<SlotPool>,
    /// Names and addresses of slots.
    pub(crate) plan: Plan,
    /// Kernel, initial RAM disk and templates.
    pub(crate) assets: Assets,
    /// Snapshots of guests.
    pub(crate) snapshots: Arc<Snapshots>,
    /// Those that users named.
    pub(crate) named: Arc<NamedSnapshots>,
    /// Those that new sandboxes of templates go on from.
    pub(crate) template_snapshots: Arc<TemplateSnapshots>,
    /// Images that were made of snapshots, or imported.
    pub(crate) images: Arc<Images>,
    /// Imports of images of registries.
    pub(crate) imports: Arc<Imports>,
    /// Exports and imports of snapshots and images, from and for other hosts.
    pub(crate) artifacts: Arc<Artifacts>,
    /// Parent of the sandboxes' directories.
    pub(crate) dir: PathBuf,
    /// First user id of VMMs.
    pub(crate) uids: Uids,
    /// Time limit from the start of a create to envd's first response.
    pub(crate) boot_limit: Duration,
    /// Rate limits of each sandbox's devices.
    pub(crate) rates: Rates,
    /// Memory for the output of guests.
    pub(crate) memory: Arc<Memory>,
    /// Whether sandboxes are paused because there is too little room for disks.
    pub(crate) held: watch::Receiver<bool>,
}

impl Shared {
    /// Fails if no snapshot can be made of a sandbox, which is held or not: the VMM cannot, or there is too little room.
    pub(super) async fn check_snapshots(&self, held: bool) -> Result<(), AgentError> {
        if let Some(fault) = &self.vmm.capabilities().snapshot_fault {
            let message = format!("the host cannot pause sandboxes: {fault}");
            return Err(AgentError::new(ErrorCode::AgentError, message));
        }
        if held || snapshots::lacks_room(&*self.volumes).await? {
            let message = "the host's disk has too little room for the sandbox's memory: the sandbox runs on; delete \
                           others, or give the host more disk";
            return Err(AgentError::new(ErrorCode::InsufficientStorage, message));
        }
        Ok(())
    }

    /// Rate limits by the packet filter, if the VMM does not enforce them.
    pub(super) fn network_policy(&self) -> Policy {
        let by_vmm = self.vmm.capabilities().network_rate;
        let rate = wrenn_network::Rate { bytes: self.rates.network.filter(|_| !by_vmm), packets: None };
        Policy { upload: rate, download: rate, ..Policy::default() }
    }
}
