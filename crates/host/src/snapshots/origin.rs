// SPDX-License-Identifier: Apache-2.0
//! What snapshots are made with on this host: VMM, kernel, guest agent and processor.

use std::{fs, io, path::Path};

use sha2::{Digest as _, Sha256};
use wrenn_memory::Origin;
use wrenn_vmm::Vmm;

/// Number of digits of a short digest.
const SHORT: usize = 32;

/// First digits of the SHA-256 of this text, which tell shapes and processors apart.
pub(super) fn short_digest(text: &str) -> String {
    digest(text.as_bytes())[..SHORT].to_owned()
}

/// SHA-256 of this content, in hexadecimal digits.
fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what snapshots are made with here. Blocks: it reads kernel and initial RAM disk.
pub(crate) fn read(vmm: &dyn Vmm, kernel: &Path, initrd: &Path) -> io::Result<Origin> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let features: Vec<_> = cpuinfo
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| {
            ["vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU "]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .collect();
    let accelerated = if vmm.capabilities().accelerated { "" } else { ", emulated" };
    Ok(Origin {
        vmm: format!("{} {}{accelerated}", vmm.name(), vmm.version()),
        kernel: digest(&fs::read(kernel)?),
        envd: digest(&fs::read(initrd)?),
        cpu: short_digest(&features.join("\n")),
    })
}
