//! Check of KVM, by booting a guest on it, and the resulting driver.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use wrenn_host::driver::{Chosen, Wish, firecracker};
use wrenn_vmm::{Vmm, VmmError, probe::Probe};

use super::{Check, Driver, scratch::Scratch};
use crate::{config::Config, serve};

/// What the agent would choose, found out as the agent does, in a directory that goes with its owner.
pub(super) async fn examine(config: &Config, scratch: &Scratch) -> Result<(Probe, Driver, Vec<Check>)> {
    let root = rustix::process::geteuid().is_root();
    let wish = Wish {
        driver: serve::driver(config),
        firecracker: config.get("agent.firecracker").map(PathBuf::from),
        unjailed: config.or("agent.unjailed", false),
        share_dir: config.share_dir()?,
        dir: scratch.path().to_owned(),
        uid: if root {
            config.or("agent.vmm_uid_base", wrenn_host::VMM_UID_BASE)
        } else {
            rustix::process::geteuid().as_raw()
        },
        keep: false,
    };
    let mut checks = vec![firecracker_check(&wish)];
    Ok(match wish.choose().await {
        Ok(Chosen { vmm, reason, probe }) => {
            let can = vmm.capabilities();
            let accelerator = if can.accelerated { "kvm" } else { "tcg" };
            let probe =
                probe.unwrap_or_else(|| Probe::untried("the driver is configured, so nothing was tried"));
            checks.push(kvm_check(&probe, can.accelerated));
            checks.push(isolation_check(&*vmm));
            (probe, Driver { name: vmm.name(), accelerator, reason }, checks)
        }
        Err(error) => {
            let remedy = "install what is missing, or set agent.driver to auto";
            checks.push(Check::fail("driver", format!("{error:#}"), remedy));
            let driver = Driver { name: "none", accelerator: "none", reason: format!("{error:#}") };
            (Probe::untried("no driver can be used"), driver, checks)
        }
    })
}

fn firecracker_check(wish: &Wish) -> Check {
    match firecracker(wish.firecracker.as_deref(), wish.unjailed, Path::new("/nonexistent")) {
        Ok(vmm) => {
            let jailed =
                if vmm.capabilities().security_boundary { "with its jailer" } else { "without its jailer" };
            Check::ok("firecracker", format!("{} {jailed}", vmm.version()))
        }
        Err(error @ VmmError::Missing { .. }) => Check::warn("firecracker", "not found", error.to_string()),
        Err(error) => Check::warn("firecracker", "cannot be used", error.to_string()),
    }
}

fn kvm_check(probe: &Probe, needed: bool) -> Check {
    let took = probe.took_ms;
    let detail = match (probe.present, probe.usable) {
        (false, _) => "there is no /dev/kvm".to_owned(),
        (true, true) => format!("/dev/kvm is present and usable: {} ({took} ms)", probe.reason),
        (true, false) => format!("/dev/kvm is present but not usable: {} ({took} ms)", probe.reason),
    };
    if probe.usable {
        return Check::ok("kvm", detail);
    }
    let closed = fs::metadata("/dev/kvm").is_ok_and(|meta| closed_to_vmms(meta.mode(), meta.gid()));
    match (closed, needed) {
        (true, _) => Check::warn(
            "kvm",
            detail,
            "chgrp kvm /dev/kvm; chmod 0660 /dev/kvm (VMMs join the device's group)",
        ),
        (false, true) if !probe.present => {
            Check::fail("kvm", detail, "set agent.driver to auto or tcg, or use a machine with working KVM")
        }
        _ => Check::warn(
            "kvm",
            detail,
            "guests will be emulated, which is slow and not secure: mend what the reason names, or use a machine with \
             KVM",
        ),
    }
}

/// Whether VMMs, which are no root and join the device's group unless it is root's, may not open a device of this
/// mode and group.
fn closed_to_vmms(mode: u32, group: u32) -> bool {
    let by_group = group != 0 && mode & 0o060 == 0o060;
    !by_group && mode & 0o006 != 0o006
}

fn isolation_check(vmm: &dyn Vmm) -> Check {
    if vmm.capabilities().security_boundary {
        return Check::ok("isolation", format!("{} keeps guests from this host", vmm.name()));
    }
    Check::warn(
        "isolation",
        format!("{} as it runs here is no security boundary", vmm.name()),
        "for hostile code use Firecracker with its jailer on a machine with KVM",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_open_to_vmms_by_its_group_or_to_everybody() {
        assert!(closed_to_vmms(0o600, 0) && closed_to_vmms(0o600, 7) && closed_to_vmms(0o660, 0));
        assert!(!closed_to_vmms(0o660, 7) && !closed_to_vmms(0o666, 0));
    }
}
