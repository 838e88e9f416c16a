//! What an agent needs to know to run.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wrenn_api::HostId;

/// Which VMM driver to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Boot a probe and choose: Firecracker where it is installed and a guest really runs on it, else QEMU with
    /// KVM, else QEMU with emulation.
    #[default]
    Auto,
    /// Firecracker, without a probe.
    Firecracker,
    /// QEMU with KVM, without a probe.
    Kvm,
    /// QEMU with emulation.
    Tcg,
}

/// What a guest may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// The internet by NAT, and nothing else.
    #[default]
    Internet,
    /// Nothing.
    None,
}

/// What a sandbox's devices may move, in bytes a second; `None` is without limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Its network interface, in each direction.
    pub network: Option<u64>,
    /// Its disk, reads and writes together.
    pub disk: Option<u64>,
}

/// PEM files of one side of the mutual TLS between control plane and agent.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The private CA that both sides trust, and nothing else.
    pub ca: PathBuf,
    /// This side's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The largest message of the service: a piece of a file, or the output of an exec.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;
/// The most that may be kept of each output of a command: both must fit into one message, beside what else it says.
pub const EXEC_OUTPUT_MAX: usize = 31 << 20;
const _: () = assert!(2 * EXEC_OUTPUT_MAX < MESSAGE_MAX);

/// Limits that the agent keeps whatever the control plane asks for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sandboxes at a time.
    pub sandboxes: u32,
    /// Virtual CPUs of one sandbox.
    pub vcpus: u32,
    /// Memory of one sandbox, in MiB.
    pub memory_mb: u64,
    /// Disk of one sandbox, in MiB.
    pub disk_size_mb: u64,
    /// Output of one non-streaming exec, stdout and stderr each, in bytes; at most [`EXEC_OUTPUT_MAX`].
    pub exec_output: usize,
    /// Output of commands and content of files that the agent holds for all sandboxes at a time, in bytes; `None`: a share
    /// of the machine's memory.
    pub output_memory: Option<usize>,
    /// From the start of a create until envd answers.
    pub boot: Duration,
}

/// A share of the machine's memory, within what is of use.
pub(crate) fn output_memory(memory_mb: u64) -> usize {
    const PART: u64 = 256;
    ((memory_mb << 20) / PART).clamp(64 << 20, 512 << 20) as usize
}

impl Config {
    /// Why a driver must not be used that does not keep hostile code from the host; `None` where it may.
    pub(crate) fn refusal_of_no_boundary(&self, driver: &str, reason: &str) -> Option<String> {
        let by_itself = self.driver == Driver::Auto && !self.listen.ip().is_loopback();
        let why = match self.require_security_boundary {
            Some(false) => return None,
            Some(true) => "agent.require_security_boundary is true",
            None if by_itself => "agent.listen is open to other machines",
            None => return None,
        };
        Some(format!(
            "{driver} would run the guests, which is no security boundary ({reason}), and {why}: make KVM work here \
             (`wrenn doctor` says what is missing), or set agent.require_security_boundary to false to run trusted code \
             without"
        ))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sandboxes: 64,
            vcpus: 16,
            memory_mb: 65_536,
            disk_size_mb: 131_072,
            exec_output: 16 << 20,
            output_memory: None,
            boot: Duration::from_secs(120),
        }
    }
}

/// The configuration of an agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which host this is.
    pub host_id: HostId,
    /// Where the agent keeps everything (`<state>/agent`). One agent at a time.
    pub state_dir: PathBuf,
    /// Kernel, initial RAM disk and templates (`share/wrenn`).
    pub share_dir: PathBuf,
    /// Where the control plane reaches it.
    pub listen: SocketAddr,
    /// Mutual TLS.
    pub tls: TlsFiles,
    /// Which VMM driver.
    pub driver: Driver,
    /// Firecracker's program, which has its jailer beside it; `None`: both are in `PATH`.
    pub firecracker: Option<PathBuf>,
    /// Whether Firecracker may run without its jailer, where it cannot be used.
    pub unjailed: bool,
    /// Whether the agent refuses to start where the driver is no security boundary; `None`: where the driver is chosen by
    /// a probe and others than this machine reach the agent.
    pub require_security_boundary: Option<bool>,
    /// What guests may reach.
    pub egress: Egress,
    /// What each sandbox's devices may move in a second.
    pub rates: Rates,
    /// Network slots built ahead.
    pub warm_slots: u16,
    /// Size of the loop-mounted volume store in MiB (sparse), where the file system has no reflinks.
    pub store_size_mb: u64,
    /// First of the unprivileged user ids that VMMs run as; slot i uses `vmm_uid_base + i`. `None`: the first range
    /// that no other agent of the machine has.
    pub vmm_uid_base: Option<u32>,
    /// Limits.
    pub limits: Limits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_is_refused_where_it_was_not_asked_for() {
        let refused = |driver: Driver, listen: &str, required: Option<bool>| {
            let tls = TlsFiles { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() };
            let config = Config {
                host_id: HostId::new(),
                state_dir: PathBuf::new(),
                share_dir: PathBuf::new(),
                listen: listen.parse().expect("an address"),
                tls,
                driver,
                firecracker: None,
                unjailed: false,
                require_security_boundary: required,
                egress: Egress::None,
                rates: Rates::default(),
                warm_slots: 0,
                store_size_mb: 1024,
                vmm_uid_base: None,
                limits: Limits::default(),
            };
            config.refusal_of_no_boundary("qemu", "no /dev/kvm").is_some()
        };
        let (here, everywhere) = ("127.0.0.1:9726", "0.0.0.0:9726");
        assert!(!refused(Driver::Auto, here, None));
        assert!(refused(Driver::Auto, everywhere, None));
        assert!(!refused(Driver::Tcg, everywhere, None), "it was asked for");
        assert!(refused(Driver::Tcg, here, Some(true)));
        assert!(!refused(Driver::Auto, everywhere, Some(false)));
    }

    #[test]
    fn the_memory_for_output_is_a_share_of_the_machines() {
        assert_eq!([4 << 10, 24 << 10, 1 << 20].map(output_memory), [64 << 20, 96 << 20, 512 << 20]);
    }
}
