// SPDX-License-Identifier: Apache-2.0
//! Stacks whose sandboxes are test guests on the real Firecracker and KVM, for tests that need no Linux in
//! the sandbox. Test guests run on every KVM and start in milliseconds. They have no envd: a create waits for
//! it until the sandbox is deleted.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use wrenn_testguest::{ELF, STARTED};

use crate::{Setup, Stack};

/// Finds Firecracker in the directory of `lab/get-firecracker`, then in `PATH`.
fn firecracker() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firecracker");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs = [fetched].into_iter().chain(env::split_paths(&path));
    dirs.find(|dir| dir.join("jailer").exists()).map(|dir| dir.join("firecracker"))
}

/// Returns whether this machine can run test guests.
pub fn available() -> bool {
    Path::new("/dev/kvm").exists() && firecracker().is_some()
}

/// Creates a share directory in `dir` whose kernel is the test guest.
fn share(dir: &Path) -> Result<PathBuf> {
    let parts = env::var_os("WRENN_SHARE_DIR").map(PathBuf::from).context("WRENN_SHARE_DIR is not set")?;
    let share = dir.join("share");
    fs::create_dir(&share)?;
    fs::write(share.join("vmlinux"), ELF)?;
    fs::copy(parts.join("initrd.img"), share.join("initrd.img"))?;
    symlink(parts.join("images"), share.join("images"))?;
    Ok(share)
}

/// Configuration of a stack with test guests. `dir` is an empty directory that must outlive the stack.
pub fn setup(dir: &Path) -> Result<Setup> {
    let program =
        firecracker().context("there is no Firecracker with its jailer: run lab/get-firecracker")?;
    let variables = [
        ("WRENN_AGENT_FIRECRACKER", program.display().to_string()),
        ("WRENN_AGENT_DRIVER", "firecracker".to_owned()),
        ("WRENN_SHARE_DIR", share(dir)?.display().to_string()),
    ];
    let env = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Ok(Setup { env, ..Setup::default() })
}

/// Path of the console log of sandbox `id`.
pub fn console(stack: &Stack, id: &str) -> PathBuf {
    stack.state_dir.join("agent/sandboxes").join(id).join("run/console.log")
}

/// Returns whether the test guest with this console log has started.
pub fn started(console: &Path) -> bool {
    fs::read(console).is_ok_and(|text| text.contains(&STARTED))
}
