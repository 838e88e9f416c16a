// SPDX-License-Identifier: Apache-2.0
//! Check of KVM, by booting a guest on it, and the resulting driver.

use std::path::Path;

use anyhow::Result;
use wrenn_host::driver::{Chosen, Wish, firecracker};
use wrenn_vmm::{Vmm, VmmError, probe::Probe};

use super::{Check, Driver, scratch::Scratch};
use crate::{config::Config, layout::Layout, running_agent};

/// Chooses a driver as the agent does, in a temporary directory.
pub(super) async fn examine(config: &Config, scratch: &Scratch) -> Result<(Probe, Driver, Vec<Check>)> {
    let root = rustix::process::geteuid().is_root();
    let agent = config.agent();
    let wish = Wish {
        driver: agent.driver,
        firecracker: agent.firecracker,
        unjailed: agent.unjailed,
        share_dir: config.share_dir()?,
        kernel: agent.kernel,
        dir: scratch.path().to_owned(),
        uid: if root {
            agent.vmm_uid_base.unwrap_or(wrenn_host::VMM_UID_BASE)
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

/// The driver that the running agent uses, which chose it when it started.
pub(super) async fn in_use(config: &Config) -> Check {
    let layout = Layout::new(&config.machine().state_dir);
    match running_agent::driver(config, &layout).await {
        Ok(driver) if driver.security_boundary => {
            Check::ok("driver in use", format!("{}: {}", driver.name, driver.reason))
        }
        Ok(driver) => Check::warn(
            "driver in use",
            format!("{}, no security boundary: {}", driver.name, driver.reason),
            "if a better one can be used by now, restart Wrenn",
        ),
        Err(why) => Check::ok("driver in use", why),
    }
}

fn firecracker_check(wish: &Wish) -> Check {
    match firecracker(wish.firecracker.as_deref(), wish.unjailed, Path::new("/nonexistent")) {
        Ok(vmm) => {
            let jailed =
                if vmm.capabilities().security_boundary { "with its jailer" } else { "without its jailer" };
            let found = format!("{} {jailed}", vmm.version());
            match &vmm.capabilities().snapshot_fault {
                Some(fault) => Check::warn("firecracker", format!("{found}; it makes no snapshots"), fault),
                None => Check::ok("firecracker", found),
            }
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
    if needed && !probe.present {
        return Check::fail(
            "kvm",
            detail,
            "set agent.driver to auto or tcg, or use a machine with working KVM",
        );
    }
    let remedy = "guests will be emulated, which is slow and not secure: fix what the reason names, or use a machine with KVM";
    Check::warn("kvm", detail, remedy)
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
