//! Whether KVM works, found out by a guest on it, and the driver that follows.

use std::path::Path;

use wrenn_vmm::{
    probe::{PROBE_LIMIT, Probe, probe_kvm},
    qemu::{Accel, PROGRAM},
};

use super::{Check, Driver};
use crate::config::Config;

pub(super) async fn probe(config: &Config) -> (Probe, Driver, Check) {
    let probe = match config.share_dir().map(|share| share.join("vmlinuz")) {
        Ok(kernel) if kernel.exists() => probe_kvm(Path::new(PROGRAM), &kernel, PROBE_LIMIT).await,
        _ => unknown(),
    };
    let driver = driver(config, &probe);
    let check = check(&probe, &driver);
    (probe, driver, check)
}

fn unknown() -> Probe {
    Probe {
        present: Path::new("/dev/kvm").exists(),
        usable: false,
        reason: "there is no guest kernel to try it with (make assets)".to_owned(),
        took_ms: 0,
    }
}

fn driver(config: &Config, probe: &Probe) -> Driver {
    let (accel, reason) = match config.get("agent.driver") {
        Some("kvm") => (Accel::Kvm, "agent.driver says so".to_owned()),
        Some("tcg") => (Accel::Tcg, "agent.driver says so".to_owned()),
        _ => probe.choose(),
    };
    let accelerator = if accel == Accel::Kvm { "kvm" } else { "tcg" };
    Driver { name: "qemu", accelerator, reason }
}

fn check(probe: &Probe, driver: &Driver) -> Check {
    let present = if probe.present { "present" } else { "absent" };
    let usable = if probe.usable { "usable" } else { "not usable" };
    let detail = format!("/dev/kvm is {present} and {usable}: {} ({} ms)", probe.reason, probe.took_ms);
    if probe.usable {
        return Check::ok("kvm", detail);
    }
    if driver.accelerator == "kvm" {
        let remedy = "set agent.driver to auto or tcg, or use a machine with working KVM";
        return Check::fail("kvm", detail, remedy);
    }
    let remedy =
        "guests are emulated: slow, and no security boundary; for hostile code use a machine with KVM";
    Check::warn("kvm", detail, remedy)
}
