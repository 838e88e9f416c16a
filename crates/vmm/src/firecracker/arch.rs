// SPDX-License-Identifier: Apache-2.0
//! Differences between CPU architectures.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use crate::VmmError;

/// Kernel command line: serial console, and reboot through the keyboard controller, which Firecracker treats
/// as a shutdown.
#[cfg(target_arch = "x86_64")]
pub(super) const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1";
/// Kernel command line: serial console; the guest shuts down through PSCI.
#[cfg(target_arch = "aarch64")]
pub(super) const CMDLINE: &str = "console=ttyS0 quiet panic=1 keep_bootcon";

/// Offset and magic number of a kernel image: an ELF file.
#[cfg(target_arch = "x86_64")]
const MAGIC: (u64, [u8; 4]) = (0, *b"\x7fELF");
/// Offset and magic number of a kernel image: an uncompressed `Image`.
#[cfg(target_arch = "aarch64")]
const MAGIC: (u64, [u8; 4]) = (56, *b"ARM\x64");

#[cfg(target_arch = "x86_64")]
const WANTED: &str = "Firecracker takes the uncompressed ELF file (vmlinux)";
#[cfg(target_arch = "aarch64")]
const WANTED: &str = "Firecracker takes the uncompressed Image";

/// Checks that Firecracker can load this kernel, because its own error for a compressed one does not help.
pub(super) fn check_kernel(path: &Path) -> Result<(), VmmError> {
    let unfit = |found: &str| VmmError::Unfit {
        what: "the guest kernel",
        reason: format!("it is {found}; {WANTED}: build the guest's files (make assets)"),
    };
    let file = File::open(path).map_err(|error| unfit(&format!("not readable ({error})")))?;
    let read = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).map(|()| bytes).unwrap_or_default()
    };
    if read(MAGIC.0) == MAGIC.1 {
        return Ok(());
    }
    // The setup header of a compressed image for x86: Documentation/arch/x86/boot.rst.
    Err(unfit(if read(0x202) == *b"HdrS" { "a compressed boot image" } else { "no kernel image" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_kernel_is_told_from_no_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        let refusal = || check_kernel(&path).unwrap_err().to_string();
        assert!(refusal().contains("not readable"));
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(&path, &image).unwrap();
        assert!(refusal().contains("a compressed boot image"), "{}", refusal());
        std::fs::write(&path, b"#!/bin/sh").unwrap();
        assert!(refusal().contains("no kernel image"));
        let mut kernel = vec![0; 64];
        kernel[MAGIC.0 as usize..][..4].copy_from_slice(&MAGIC.1);
        std::fs::write(&path, &kernel).unwrap();
        check_kernel(&path).unwrap();
    }
}
