// SPDX-License-Identifier: Apache-2.0
//! Choice of the VMM driver. A successful probe of KVM is stored and valid for this boot, this VMM and this
//! kernel. A failed probe is repeated at each start, because its cause may have been fixed.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wrenn_os::atomic_file;
use wrenn_vmm::{
    Vmm, VmmError,
    firecracker::{self, Firecracker, Isolation},
    probe::{PROBE_LIMIT, Probe, probe},
    qemu::{self, Accel, Qemu},
};

use crate::{assets, config::Driver, layout, machine, sandbox::release::end_vmm};

/// Request for a driver, with the parameters of the probe.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Requested driver.
    pub driver: Driver,
    /// Path of Firecracker, if it is not in `PATH`.
    pub firecracker: Option<PathBuf>,
    /// Whether Firecracker may run without its jailer.
    pub unjailed: bool,
    /// Directory of the guest kernels.
    pub share_dir: PathBuf,
    /// Guest kernel, if it is not one of those.
    pub kernel: Option<PathBuf>,
    /// Directory for the probe's files and for jails.
    pub dir: PathBuf,
    /// User id of the probe's VMM.
    pub uid: u32,
    /// Whether to use a stored result in `dir` and to store a new one.
    pub keep: bool,
}

/// Chosen driver.
pub struct Chosen {
    /// Driver.
    pub vmm: Arc<dyn Vmm>,
    /// Reason for the choice.
    pub reason: String,
    /// Result of the KVM probe, if there was one.
    pub probe: Option<Probe>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    valid_for: String,
    probe: Probe,
}

const KVM: &str = "/dev/kvm";
/// Module of a KVM without the processor's virtualisation, as clouds have it, and what it needs.
const PVM: &str = "/sys/module/kvm_pvm";
const PVM_NEEDS: &str = "; this KVM is PVM (kvm_pvm), which runs only kernels built with CONFIG_PVM_GUEST: give it one with \
                         agent.kernel";

/// Creates the Firecracker driver, or returns why it cannot be used. If `program` is given, the jailer is
/// expected in the same directory.
pub fn firecracker(program: Option<&Path>, unjailed: bool, jail_dir: &Path) -> Result<Firecracker, VmmError> {
    let (program, jailer) = match program {
        Some(program) => (program.to_owned(), program.with_file_name(firecracker::JAILER)),
        None => (machine::program(firecracker::PROGRAM), machine::program(firecracker::JAILER)),
    };
    let root = rustix::process::geteuid().is_root();
    // A jailer that cannot be looked at is not taken for none: guests would run unprotected.
    let fail = |source| VmmError::Io { action: "look for Firecracker's jailer".to_owned(), source };
    let isolation = match (root && jailer.try_exists().map_err(fail)?, unjailed) {
        (true, _) => Isolation::Jailer { program: jailer, dir: jail_dir.to_owned() },
        (false, true) => Isolation::Unjailed,
        (false, false) => {
            // If Firecracker itself is missing, report that first.
            Firecracker::new(&program, Isolation::Unjailed)?;
            let reason = if root { "the jailer is not installed" } else { "the agent is not root" };
            let reason =
                format!("{reason}; change that, or set agent.unjailed to run guests without this protection");
            return Err(VmmError::Unfit { what: "Firecracker's jailer", reason });
        }
    };
    Firecracker::new(&program, isolation)
}

impl Wish {
    /// Chooses the driver.
    pub async fn choose(&self) -> anyhow::Result<Chosen> {
        let configured = |vmm| Chosen { vmm, reason: "the configuration says so".to_owned(), probe: None };
        match self.driver {
            Driver::Firecracker => {
                let vmm = self.firecracker().context("Firecracker cannot be used")?;
                Ok(configured(Arc::new(vmm)))
            }
            Driver::Kvm => Ok(configured(Arc::new(qemu(Accel::Kvm)?))),
            Driver::Tcg => Ok(configured(Arc::new(qemu(Accel::Tcg)?))),
            Driver::Auto => self.best().await,
        }
    }

    fn firecracker(&self) -> anyhow::Result<Firecracker> {
        let jails = self.dir.join("jail");
        fs::create_dir_all(&jails).context("the directory for jails cannot be made")?;
        Ok(firecracker(self.firecracker.as_deref(), self.unjailed, &jails)?)
    }

    /// Returns the first driver that can run a guest.
    async fn best(&self) -> anyhow::Result<Chosen> {
        let without = match self.firecracker() {
            Ok(vmm) => {
                let probe = with_pvm(self.probe(&vmm).await, Path::new(PVM));
                if probe.usable {
                    let reason = "a guest kernel ran with hardware virtualisation".to_owned();
                    return Ok(Chosen { vmm: Arc::new(vmm), reason, probe: Some(probe) });
                }
                probe.reason
            }
            Err(error) => format!("{error:#}"),
        };
        tracing::info!(reason = without, "Firecracker is not used");
        let with_kvm = qemu(Accel::Kvm)?;
        let probe = match kvm_closed_to_others(Path::new(KVM)) {
            Some(reason) if self.uid != 0 => Probe::untried(reason),
            _ => self.probe(&with_kvm).await,
        };
        let probe = with_pvm(probe, Path::new(PVM));
        if probe.usable {
            let reason =
                format!("a guest kernel ran with hardware virtualisation; not Firecracker: {without}");
            return Ok(Chosen { vmm: Arc::new(with_kvm), reason, probe: Some(probe) });
        }
        let reason = format!("emulation, because {}", probe.reason);
        Ok(Chosen { vmm: Arc::new(qemu(Accel::Tcg)?), reason, probe: Some(probe) })
    }

    async fn probe(&self, vmm: &dyn Vmm) -> Probe {
        let kernel = assets::kernel(self.kernel.as_deref(), &self.share_dir, vmm.capabilities().kernel);
        let Ok(valid_for) = validity(vmm, &kernel) else {
            return Probe::untried("there is no guest kernel to try it with (make assets, or agent.kernel)");
        };
        let file = self.dir.join(format!("probe-{}.json", vmm.name()));
        let kept = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        if let Some(kept) = kept.filter(|kept| self.keep && kept.probe.usable && kept.valid_for == valid_for)
        {
            return kept.probe;
        }
        let run_dir = layout::probe(&self.dir);
        // The VMM of a killed agent may run forever. Find it by the directory, before that is recreated.
        if let Err(error) = end_vmm(&run_dir, None).await {
            tracing::error!(%error, "cannot kill the microVM of a previous probe");
        }
        if let Err(error) = fresh(&run_dir) {
            return Probe::untried(format!("the probe's directory cannot be made: {error}"));
        }
        let probe = probe(vmm, &kernel, &run_dir, self.uid, PROBE_LIMIT).await;
        let _ = fs::remove_dir_all(&run_dir);
        if self.keep && probe.usable {
            keep(&file, &Kept { valid_for, probe: probe.clone() });
        }
        probe
    }
}

/// Adds to the reason of a failure that this machine's KVM is PVM, if `module` is there.
fn with_pvm(mut probe: Probe, module: &Path) -> Probe {
    if !probe.usable && module.exists() {
        probe.reason.push_str(PVM_NEEDS);
    }
    probe
}

/// Returns why a VMM with its own user cannot open `/dev/kvm`, with the remedy, if the cause is the file
/// mode.
fn kvm_closed_to_others(kvm: &Path) -> Option<String> {
    let meta = fs::metadata(kvm).ok()?;
    let (mode, group) = (meta.permissions().mode() & 0o777, meta.gid());
    let open = mode & 0o006 == 0o006 || (group != 0 && mode & 0o060 == 0o060);
    let reason = format!(
        "QEMU, which runs as a user of its own, may not open /dev/kvm (mode {mode:04o}, group {group}): \
         groupadd -f --system kvm && chgrp kvm /dev/kvm && chmod 0660 /dev/kvm, or a udev rule that does so at each boot"
    );
    (!open).then_some(reason)
}

/// Names what a result of the probe depends on: this boot, the VMM and the kernel.
fn validity(vmm: &dyn Vmm, kernel: &Path) -> io::Result<String> {
    let meta = fs::metadata(kernel)?;
    let (name, version, path) = (vmm.name(), vmm.version(), kernel.display());
    Ok(format!("{} {name} {version} {path} {} {}", boot_id(), meta.len(), meta.mtime()))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Creates an empty directory.
fn fresh(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(dir)
}

/// Stores the result. If that fails, the next start just probes again.
fn keep(file: &Path, kept: &Kept) {
    let text = serde_json::to_vec(kept).unwrap_or_default();
    if let Err(error) = atomic_file::write(file, &text, 0o600, None) {
        tracing::warn!(%error, "cannot store the result of the KVM probe");
    }
}

fn qemu(accel: Accel) -> anyhow::Result<Qemu> {
    Qemu::new(&machine::program(qemu::PROGRAM), accel).context("QEMU cannot be used")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Writes a script that prints a version. Another process writes it: a child of this process that is
    /// being started would have a copy of the descriptor, and a file open for writing cannot be executed.
    fn program(path: &Path, says: &str) {
        let script = format!("printf '#!/bin/sh\necho {says}\n' > {0} && chmod +x {0}", path.display());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    #[test]
    fn a_device_that_only_root_may_open_is_told_with_its_remedy() -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let mode = |mode: u32| -> anyhow::Result<Option<String>> {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
            Ok(kvm_closed_to_others(file.path()))
        };
        let reason = mode(0o600)?.expect("closed");
        assert!(reason.contains("chgrp kvm /dev/kvm && chmod 0660"), "{reason}");
        assert_eq!(mode(0o666)?, None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(file.path(), None, Some(0))?;
            assert!(mode(0o660)?.is_some(), "group root is nobody's");
            std::os::unix::fs::chown(file.path(), None, Some(106))?;
            assert_eq!(mode(0o660)?, None);
        }
        assert_eq!(kvm_closed_to_others(Path::new("/nonexistent")), None, "absence has its own words");
        Ok(())
    }

    #[test]
    fn a_kvm_that_needs_another_kernel_is_told() {
        let reason = |usable: bool, module: &str| {
            with_pvm(Probe { usable, ..Probe::untried("it spins") }, Path::new(module)).reason
        };
        assert!(
            reason(false, "/sys").contains("it spins; this KVM is PVM")
                && reason(false, "/sys").contains("agent.kernel")
        );
        assert_eq!(reason(false, "/absent"), "it spins");
        assert_eq!(reason(true, "/sys"), "it spins", "it works");
    }

    #[tokio::test]
    async fn only_probes_that_succeeded_are_kept() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let share = dir.path().join("share");
        fs::create_dir(&share)?;
        // A VMM that runs no guest: it prints its version and exits.
        let program_path = dir.path().join("firecracker");
        program(&program_path, "Firecracker v1.12.1");
        let vmm = firecracker(Some(&program_path), true, dir.path())?;
        let kernel = assets::kernel(None, &share, vmm.capabilities().kernel);
        fs::write(&kernel, "kernel")?;
        let wish = Wish {
            driver: Driver::Auto,
            firecracker: Some(program_path),
            unjailed: true,
            kernel: None,
            share_dir: share,
            dir: dir.path().to_owned(),
            uid: rustix::process::geteuid().as_raw(),
            keep: true,
        };
        let file = dir.path().join(format!("probe-{}.json", vmm.name()));
        let valid_for = validity(&vmm, &kernel)?;
        let kept = |usable: bool| Kept {
            valid_for: valid_for.clone(),
            probe: Probe { usable, ..Probe::untried("what was found") },
        };
        keep(&file, &kept(true));
        assert_eq!(wish.probe(&vmm).await.reason, "what was found");
        keep(&file, &kept(false));
        assert_ne!(wish.probe(&vmm).await.reason, "what was found", "a failure is no answer for ever");
        fs::remove_file(&file)?;
        assert!(!wish.probe(&vmm).await.usable);
        assert!(!file.exists(), "no failure is kept");
        Ok(())
    }

    #[test]
    fn firecracker_goes_without_its_jailer_only_where_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (vmm, jails) = (dir.path().join("firecracker"), dir.path().join("jails"));
        program(&vmm, "Firecracker v1.12.1");
        let error = firecracker(Some(&vmm), false, &jails).unwrap_err();
        assert!(matches!(error, VmmError::Unfit { what: "Firecracker's jailer", .. }), "{error}");
        assert!(error.to_string().contains("agent.unjailed"), "{error}");
        let bare = firecracker(Some(&vmm), true, &jails).unwrap();
        assert!(!bare.capabilities().security_boundary);
        if !rustix::process::geteuid().is_root() {
            return;
        }
        program(&dir.path().join("jailer"), "Jailer v1.12.1");
        // An installed jailer is used even if running without one is allowed.
        for unjailed in [false, true] {
            assert!(firecracker(Some(&vmm), unjailed, &jails).unwrap().capabilities().security_boundary);
        }
    }
}
