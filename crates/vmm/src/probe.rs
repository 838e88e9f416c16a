//! Whether KVM really runs a guest here, found out by booting one.
//!
//! `/dev/kvm` may exist, open and create VMs and still never run a stock kernel, as some paravirtual
//! hosts do. So the guest kernel is started with KVM, and only its own first line counts.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

use crate::qemu::Accel;

/// How long a kernel may take to its first line; with working KVM it is some ten milliseconds.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// The kernel's own first line; the boot loader's lines before it prove nothing.
const FIRST_LINE: &[u8] = b"Linux version";
/// More output than this without the line is not a kernel.
const OUTPUT_MAX: usize = 1 << 20;

/// What the probe found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probe {
    /// Whether `/dev/kvm` is there.
    pub present: bool,
    /// Whether a guest kernel ran on it.
    pub usable: bool,
    /// What was seen, and what to do about it.
    pub reason: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Probe {
    /// How guests are to be run, and why.
    pub fn choose(&self) -> (Accel, String) {
        if self.usable {
            return (Accel::Kvm, "a guest kernel ran with hardware virtualisation".to_owned());
        }
        (Accel::Tcg, format!("emulation, because {}", self.reason))
    }
}

/// Boots `kernel` with KVM and waits for its first line, no longer than `limit`.
pub async fn probe_kvm(qemu: &Path, kernel: &Path, limit: Duration) -> Probe {
    let begin = Instant::now();
    let device = PathBuf::from("/dev/kvm");
    let present = device.exists();
    let result =
        if present { boot(qemu, kernel, limit).await } else { Err("there is no /dev/kvm".to_owned()) };
    let usable = result.is_ok();
    let reason = result.err().unwrap_or_else(|| "a guest kernel ran".to_owned());
    Probe { present, usable, reason, took_ms: begin.elapsed().as_millis() as u64 }
}

async fn boot(qemu: &Path, kernel: &Path, limit: Duration) -> Result<(), String> {
    let mut command = Command::new(qemu);
    command.args([
        "-M",
        "q35",
        "-accel",
        "kvm",
        "-m",
        "128M",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    command.args(["-display", "none", "-serial", "stdio", "-kernel"]).arg(kernel);
    command.args(["-append", "console=ttyS0 earlyprintk=ttyS0,115200 panic=-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("QEMU did not start: {error}"))?;
    let stdout = child.stdout.take().ok_or("QEMU has no output")?;
    let seen = timeout(limit, first_line(stdout)).await;
    let _ = child.start_kill();
    let mut errors = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = timeout(Duration::from_secs(1), stderr.take(4096).read_to_string(&mut errors)).await;
    }
    let _ = child.wait().await;
    match seen {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("QEMU ended before the guest kernel ran: {}", errors.trim())),
        Err(_) => Err(format!(
            "/dev/kvm opens, but a guest kernel did not start on it within {} s; on a cloud machine enable \
             nested virtualisation",
            limit.as_secs()
        )),
    }
}

async fn first_line(mut output: impl AsyncRead + Unpin) -> bool {
    let mut text = Vec::new();
    while text.len() < OUTPUT_MAX {
        match output.read_buf(&mut text).await {
            Ok(0) | Err(_) => return false,
            Ok(_) if text.windows(FIRST_LINE.len()).any(|window| window == FIRST_LINE) => return true,
            Ok(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_kernel_s_own_line_counts() {
        assert!(first_line(&b"SeaBIOS\nBooting\n[    0.0] Linux version 6.1"[..]).await);
        assert!(!first_line(&b"SeaBIOS\nBooting from ROM..."[..]).await);
    }

    #[tokio::test]
    async fn a_missing_program_is_no_kvm() {
        let probe = probe_kvm(Path::new("/no/such/qemu"), Path::new("/no/kernel"), PROBE_LIMIT).await;
        assert!(!probe.usable && !probe.reason.is_empty());
        assert_eq!(probe.choose().0, Accel::Tcg);
    }
}
