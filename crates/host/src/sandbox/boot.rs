// SPDX-License-Identifier: Apache-2.0
//! What a sandbox's VMM runs with: its specification, directory and control groups.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use wrenn_api::ErrorCode;
use wrenn_network::{GUEST_ADDRESS, GUEST_RESOLVERS, SlotSpec, TAP_ADDRESS};
use wrenn_vmm::{BootSpec, Rate, Tap, VmmError};

use super::{last_words::last_lines, record::make_directory, shared::Shared, spec::Spec};
use crate::{
    cgroup, directory,
    error::{AgentError, of_files},
};

/// Specification of a sandbox's VMM, without a disk; also used to find it again.
pub(crate) fn boot_spec(shared: &Shared, id: &str, spec: &Spec, slot: &SlotSpec) -> BootSpec {
    let uid = shared.uids.base() + u32::from(slot.index);
    let [first, second] = GUEST_RESOLVERS;
    BootSpec {
        id: id.to_owned(),
        run_dir: directory::of_vmm(&shared.dir, id),
        kernel: shared.assets.kernel.clone(),
        initrd: Some(shared.assets.initrd.clone()),
        cmdline: format!("wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS} wrenn.dns={first},{second}"),
        disk_rate: Rate { bytes: shared.rates.disk, operations: None },
        network_rate: Rate { bytes: shared.rates.network, operations: None },
        vcpus: spec.vcpus,
        memory_mb: spec.memory_mb as u32,
        tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
        uid,
        gid: uid,
        // A pause writes what changed.
        track_changes: true,
        ..BootSpec::default()
    }
}

/// Creates the VMM's directory and its control groups, and returns the groups; none if the machine has no
/// controllers and the VMM is no security boundary.
pub(super) async fn make_place(shared: &Shared, boot: &BootSpec) -> Result<Vec<PathBuf>, AgentError> {
    let can = shared.vmm.capabilities();
    let secure = can.security_boundary;
    let (id, memory_mb, vcpus) = (boot.id.clone(), can.vmm_memory_mb(boot.memory_mb), boot.vcpus);
    let (run_dir, uid, gid) = (boot.run_dir.clone(), boot.uid, boot.gid);
    let made = spawn_blocking(move || {
        make_directory(&run_dir, 0o700)?;
        chown(&run_dir, Some(uid), Some(gid))
            .map_err(|error| of_files("making the sandbox's directory", &error))?;
        // They existed at the agent's start, but may have been unmounted since.
        if let Some(lack) = cgroup::lacking().filter(|_| secure) {
            return Err(AgentError::new(ErrorCode::AgentError, lack));
        }
        match cgroup::prepare(&id, memory_mb, vcpus) {
            // Hostile code must not run without its limits.
            Err(error) if secure => Err(AgentError::fault("making the sandbox's control group", &error)),
            Err(error) => {
                tracing::warn!(id, %error, "the VMM runs without a control group of its own");
                Ok(Vec::new())
            }
            Ok(groups) => Ok(groups),
        }
    });
    made.await.unwrap_or_else(|error| Err(AgentError::fault("making the VMM's directory", &error)))
}

/// Converts the error of a VMM that did not start; adds its last lines.
pub(super) fn failed(error: VmmError, id: &str, sandboxes: &Path) -> AgentError {
    match error {
        VmmError::Ended { log } => {
            tracing::error!(id, log, "a VMM ended while it started");
            let words = last_lines(&log, sandboxes);
            let message = format!("the microVM did not start; its VMM's last lines: {words:?}");
            AgentError::new(ErrorCode::AgentError, message)
        }
        other => other.into(),
    }
}
