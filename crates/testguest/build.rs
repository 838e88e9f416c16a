// SPDX-License-Identifier: Apache-2.0
//! Assembles the test guest with binutils.
#![allow(clippy::unwrap_used)]

use std::{env, path::Path, process::Command};

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}; install binutils"));
    assert!(status.success(), "{command:?}: {status}");
}

fn main() {
    println!("cargo::rerun-if-changed=src/guest.S");
    println!("cargo::rerun-if-changed=src/guest.ld");
    let out = env::var_os("OUT_DIR").unwrap();
    let (object, elf) = (Path::new(&out).join("guest.o"), Path::new(&out).join("guest.elf"));
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch != "x86_64") {
        // The guest is x86 code; on other architectures the file is empty.
        return std::fs::write(elf, []).unwrap();
    }
    run(Command::new("as").args(["--64", "src/guest.S", "-o"]).arg(&object));
    let link = ["-m", "elf_x86_64", "-z", "noexecstack", "--build-id=none", "-T", "src/guest.ld"];
    run(Command::new("ld").args(link).arg(&object).arg("-o").arg(elf));
}
