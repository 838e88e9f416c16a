//! Which VMM runs the guests, and why. The probe's result is kept: it stands for this boot of this machine
//! with this QEMU and this kernel.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wrenn_vmm::{
    Vmm,
    probe::{PROBE_LIMIT, Probe, probe_kvm},
    qemu::{Accel, PROGRAM, Qemu},
};

use crate::{config::Driver, machine};

/// A driver and the reason for it.
pub(crate) struct Chosen {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) reason: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    valid_for: String,
    probe: Probe,
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn identity(kernel: &Path, qemu_version: &str) -> String {
    let length = fs::metadata(kernel).map_or(0, |meta| meta.len());
    format!("{} {qemu_version} {length}", boot_id())
}

async fn probe(state_dir: &Path, qemu: &Path, kernel: &Path, valid_for: String) -> Probe {
    let file = state_dir.join("probe.json");
    let kept = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    if let Some(kept) = kept.filter(|kept| kept.valid_for == valid_for) {
        return kept.probe;
    }
    let probe = probe_kvm(qemu, kernel, PROBE_LIMIT).await;
    let kept = Kept { valid_for, probe: probe.clone() };
    let text = serde_json::to_vec(&kept).unwrap_or_default();
    // Without the file the next start probes again, that is all.
    if let Err(error) = fs::write(state_dir.join("probe.json.new"), text)
        .and_then(|()| fs::rename(state_dir.join("probe.json.new"), &file))
    {
        tracing::warn!(%error, "the result of the KVM probe could not be kept");
    }
    probe
}

/// Chooses as configured.
pub(crate) async fn choose(driver: Driver, state_dir: &Path, kernel: &Path) -> anyhow::Result<Chosen> {
    let program = machine::program(PROGRAM);
    let (accel, reason) = match driver {
        Driver::Kvm => (Accel::Kvm, "the configuration says so".to_owned()),
        Driver::Tcg => (Accel::Tcg, "the configuration says so".to_owned()),
        Driver::Auto => {
            let version = Qemu::new(&program, Accel::Tcg).context("QEMU cannot be used")?;
            let valid_for = identity(kernel, version.version());
            probe(state_dir, &program, kernel, valid_for).await.choose()
        }
    };
    let vmm = Qemu::new(&program, accel).context("QEMU cannot be used")?;
    Ok(Chosen { vmm: Arc::new(vmm), reason })
}
