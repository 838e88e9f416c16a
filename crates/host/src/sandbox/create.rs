// SPDX-License-Identifier: Apache-2.0
//! Creation of a sandbox: journal, network, disk, microVM, guest.

use std::{
    collections::HashMap,
    fs::DirBuilder,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::task::spawn_blocking;
use wrenn_api::ErrorCode;
use wrenn_network::{GUEST_ADDRESS, GUEST_RESOLVERS, Policy, SlotSpec, TAP_ADDRESS};
use wrenn_vmm::{BootSpec, Rate, Tap, VmmError};

use super::{
    actor::{Actor, Shared, directory, last_lines},
    guest::Guest,
    journal::{Entry, Journal},
    remove::end_vmm,
    spec::Spec,
};
use crate::{
    cgroup,
    error::{AgentError, of_files},
    fault,
};

/// Part of what envd writes to the console if the template's file system does not mount. A guest that ends before
/// envd runs is the fault of the host's kernel or initial RAM disk.
const TEMPLATE_FAULT: &str = "check the template's image";

/// Specification of a sandbox's VMM; also used to find it again.
pub(crate) fn boot_spec(
    shared: &Shared,
    id: &str,
    spec: &Spec,
    slot: &SlotSpec,
    disk: Option<PathBuf>,
) -> BootSpec {
    let uid = shared.uids.base() + u32::from(slot.index);
    let [first, second] = GUEST_RESOLVERS;
    BootSpec {
        id: id.to_owned(),
        run_dir: directory(&shared.dir, id).join("run"),
        kernel: shared.assets.kernel.clone(),
        initrd: Some(shared.assets.initrd.clone()),
        cmdline: format!("wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS} wrenn.dns={first},{second}"),
        disk,
        disk_rate: Rate { bytes: shared.rates.disk, operations: None },
        network_rate: Rate { bytes: shared.rates.network, operations: None },
        vcpus: spec.vcpus,
        memory_mb: spec.memory_mb as u32,
        tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
        uid,
        gid: uid,
        ..BootSpec::default()
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), AgentError> {
    let made = DirBuilder::new().mode(mode).recursive(true).create(path);
    made.map_err(|error| of_files("making the sandbox's directory", &error))
}

impl Actor {
    /// Creates the sandbox and publishes it as running.
    pub(super) async fn create(&mut self, envs: &HashMap<String, String>) -> Result<(), AgentError> {
        let begin = Instant::now();
        let mut timings = Vec::new();
        let mut last = begin;
        let mut step = |name: &'static str| {
            timings.push((name, last.elapsed()));
            last = Instant::now();
        };

        // The pool has a journal of its own: a slot that no sandbox has recorded is free at the next start.
        let slot = self.shared.slots.acquire().await?;
        fault::point("create.slot");
        step("network");
        // All resources in one write: each flush of the disk is a large part of a create's time.
        let spec = Entry::Spec((*self.spec).clone());
        self.begin_record(vec![spec, Entry::Slot { index: slot.index }, Entry::Volume, Entry::VmmIntent])
            .await?;
        fault::point("create.journal");
        step("journal");
        self.limit_network(slot.index).await?;

        self.still_wanted()?;
        let mut boot = boot_spec(&self.shared, &self.id, &self.spec, &slot, None);
        let Spec { template, disk_size_mb, .. } = &*self.spec;
        let clone = self.shared.volumes.clone_image(template, &self.id, *disk_size_mb, boot.uid);
        // Both run to their end, so that neither still creates something while it is being undone.
        let (disk, cgroups) = tokio::join!(clone, self.make_place(&boot));
        boot.disk = Some(disk?.path);
        fault::point("create.volume");
        boot.cgroups = cgroups?;
        fault::point("create.control_groups");
        step("disk");

        self.still_wanted()?;
        let guest = Guest::new(slot.host_address, &self.spec.access_token, &self.shared.memory)?;
        let limit = self.shared.boot_limit;
        if let Err(error) = self.boot(&boot, &guest, begin + limit / 3 * 2).await {
            self.still_wanted()?;
            // A guest that never ran has nothing to lose by a second attempt.
            tracing::warn!(id = self.id, %error, "a guest did not come up; it is booted once more");
            self.kill_vm().await?;
            end_vmm(&boot.run_dir, None).await?;
            boot.cgroups = self.make_place(&boot).await?;
            self.boot(&boot, &guest, begin + limit).await?;
        }
        step("boot");
        guest.init(&self.id, &self.spec, envs).await?;
        fault::point("create.init");
        self.record(vec![Entry::Running]).await?;
        fault::point("create.running");
        step("init");
        self.running(guest, timings);
        Ok(())
    }

    /// Sets the slot's rate limits; a new slot allows everything that the host allows.
    async fn limit_network(&self, slot: u16) -> Result<(), AgentError> {
        let policy = self.shared.network_policy();
        if policy == Policy::default() {
            return Ok(());
        }
        Ok(self.shared.slots.set_policy(slot, &policy).await?)
    }

    /// Creates the directory of the sandbox and its journal.
    async fn begin_record(&mut self, entries: Vec<Entry>) -> Result<(), AgentError> {
        // Recorded in memory even if the write fails: the resources exist, and must be released.
        entries.iter().for_each(|entry| self.summary.add(entry));
        let dir = directory(&self.shared.dir, &self.id);
        let begun = spawn_blocking(move || {
            make_dir(&dir, 0o711)?;
            Ok::<_, AgentError>(Journal::begin(&dir, &entries)?)
        });
        let begun =
            begun.await.map_err(|error| AgentError::fault("writing the sandbox's journal", &error))?;
        self.journal = Some(begun?);
        Ok(())
    }

    /// Creates the VMM's directory and its control groups, and returns the groups; none if the machine has no
    /// controllers and the VMM is no security boundary.
    async fn make_place(&self, boot: &BootSpec) -> Result<Vec<PathBuf>, AgentError> {
        let can = self.shared.vmm.capabilities();
        let secure = can.security_boundary;
        let (id, memory_mb, vcpus) = (boot.id.clone(), self.spec.memory_mb + can.overhead_mb, boot.vcpus);
        let (run_dir, uid, gid) = (boot.run_dir.clone(), boot.uid, boot.gid);
        let made = spawn_blocking(move || {
            make_dir(&run_dir, 0o700)?;
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

    fn boot_failed(&self, error: VmmError) -> AgentError {
        match error {
            VmmError::Ended { log } => {
                tracing::error!(id = self.id, log, "a VMM ended while it started");
                let words = last_lines(&log, &self.shared.dir);
                let message = format!("the microVM did not start; its VMM's last lines: {words:?}");
                AgentError::new(ErrorCode::AgentError, message)
            }
            other => other.into(),
        }
    }

    /// Starts the microVM and waits until its envd answers.
    async fn boot(&mut self, spec: &BootSpec, guest: &Guest, until: Instant) -> Result<(), AgentError> {
        let vm = self.shared.vmm.boot(spec).await.map_err(|error| self.boot_failed(error))?;
        let process = vm.process();
        self.vm = Some(vm);
        fault::point("create.vmm_started");
        self.record(vec![Entry::Vmm { process }]).await?;
        fault::point("create.vmm");
        self.wait_ready(guest, until).await
    }

    async fn wait_ready(&self, guest: &Guest, until: Instant) -> Result<(), AgentError> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        tokio::select! {
            () = guest.ready() => Ok(()),
            () = self.give_up.cancelled() => self.still_wanted(),
            exit = vm.exited() => {
                tracing::error!(id = self.id, status = ?exit.status, log = exit.log, "a microVM ended while booting");
                let message = format!("the microVM ended while it booted; {}", self.last_words(&**vm, &exit).await);
                let of_template = message.contains(TEMPLATE_FAULT);
                let error = AgentError::new(ErrorCode::AgentError, message);
                Err(if of_template { error.of_template() } else { error })
            }
            () = tokio::time::sleep(left) => {
                let console = String::from_utf8_lossy(&vm.console(4096).await).into_owned();
                tracing::error!(id = self.id, console, "a guest did not get ready");
                let message = format!(
                    "the guest did not get ready within {} s; the host may be overloaded: try again",
                    self.shared.boot_limit.as_secs()
                );
                Err(AgentError::new(ErrorCode::AgentError, message))
            }
        }
    }
}
