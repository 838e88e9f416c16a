// SPDX-License-Identifier: Apache-2.0
//! Probe that checks whether a driver can run a guest on this machine, by booting one.
//!
//! `/dev/kvm` may exist, open and create VMs and still never run a stock kernel, as on some paravirtual
//! hosts. So the probe boots the guest kernel, and only the kernel's own first line counts as success.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::{BootSpec, MicroVm, Vmm, VmmError};

/// Time limit for the kernel's first line; with working KVM it takes some ten milliseconds.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// First line of the kernel itself; a boot loader's lines before it prove nothing.
const FIRST_LINE: &[u8] = b"Linux version";
/// Maximum console output before the line, in bytes.
const OUTPUT_MAX: usize = 1 << 20;
const POLL: Duration = Duration::from_millis(5);
/// Makes the kernel print the line, and at once.
const CMDLINE: &str = "loglevel=7 earlyprintk=ttyS0,115200";
const MEMORY_MB: u32 = 128;
/// Name of a probe's microVM in process lists.
pub(crate) const PROBE_ID: &str = "probe";

/// Result of a probe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probe {
    /// Whether `/dev/kvm` exists.
    pub present: bool,
    /// Whether a guest kernel ran on it.
    pub usable: bool,
    /// Observation and remedy.
    pub reason: String,
    /// Duration, in milliseconds.
    pub took_ms: u64,
}

impl Probe {
    /// Result without a probe.
    pub fn untried(reason: impl Into<String>) -> Self {
        Self { present: Path::new("/dev/kvm").exists(), usable: false, reason: reason.into(), took_ms: 0 }
    }
}

/// Boots `kernel` with `vmm`, which needs KVM, and waits for its first line, at most for `limit`. `run_dir`
/// exists, is empty, and may be removed afterwards; the VMM runs as `uid`.
pub async fn probe(vmm: &dyn Vmm, kernel: &Path, run_dir: &Path, uid: u32, limit: Duration) -> Probe {
    let untried = Probe::untried("there is no /dev/kvm");
    if !untried.present {
        return untried;
    }
    let spec = BootSpec {
        id: PROBE_ID.to_owned(),
        run_dir: run_dir.to_owned(),
        kernel: kernel.to_owned(),
        cmdline: CMDLINE.to_owned(),
        vcpus: 1,
        memory_mb: MEMORY_MB,
        uid,
        gid: uid,
        tied: true,
        ..BootSpec::default()
    };
    // A VMM of an earlier probe is recognised by its directory, which belongs to its user.
    if rustix::process::geteuid().is_root()
        && let Err(error) = std::os::unix::fs::chown(run_dir, Some(uid), Some(uid))
    {
        return Probe::untried(format!("the probe's directory cannot be given to its user: {error}"));
    }
    end_unfinished(vmm, &spec).await;
    let begin = Instant::now();
    let result = try_boot(vmm, &spec, limit).await;
    let usable = result.is_ok();
    let reason = result.err().unwrap_or_else(|| "a guest kernel ran".to_owned());
    Probe { present: true, usable, reason, took_ms: begin.elapsed().as_millis() as u64 }
}

async fn try_boot(vmm: &dyn Vmm, spec: &BootSpec, limit: Duration) -> Result<(), String> {
    let late = format!(
        "/dev/kvm opens, but a guest kernel did not start on it within {} s; on a cloud machine enable nested \
         virtualisation",
        limit.as_secs()
    );
    let begin = Instant::now();
    let vm = match timeout(limit, vmm.boot(spec)).await {
        Ok(Ok(booted)) => booted,
        Ok(Err(error)) => {
            end_unfinished(vmm, spec).await;
            return Err(format!("{} did not start: {}", vmm.name(), short(&error)));
        }
        Err(_) => {
            end_unfinished(vmm, spec).await;
            return Err(late);
        }
    };
    let seen = timeout(limit.saturating_sub(begin.elapsed()), first_line(&*vm)).await;
    let killed = vm.kill().await;
    match seen {
        Ok(true) => killed.map_err(|error| error.to_string()),
        Ok(false) => {
            Err(format!("{} ended before the guest kernel ran: {}", vmm.name(), vm.exited().await.log.trim()))
        }
        Err(_) => Err(late),
    }
}

/// Formats an error on one line.
fn short(error: &VmmError) -> String {
    error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Kills a VMM whose start took too long. One that does not end is found by the next probe of the directory.
async fn end_unfinished(vmm: &dyn Vmm, spec: &BootSpec) {
    if let Ok(Some(vm)) = vmm.adopt(spec, None).await
        && let Err(error) = vm.kill().await
    {
        tracing::warn!(%error, "cannot kill the VMM of a probe");
    }
}

/// Waits for the kernel's first line; false if the VMM ends or prints too much without it.
async fn first_line(vm: &dyn MicroVm) -> bool {
    let ended = vm.exited();
    tokio::pin!(ended);
    loop {
        let text = vm.console(OUTPUT_MAX).await;
        if text.windows(FIRST_LINE.len()).any(|window| window == FIRST_LINE) {
            return true;
        }
        tokio::select! {
            _ = &mut ended => return false,
            () = sleep(POLL) => {}
        }
        if text.len() >= OUTPUT_MAX {
            return false;
        }
    }
}
