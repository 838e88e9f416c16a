// SPDX-License-Identifier: Apache-2.0
//! Configuration of the agent.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wrenn_api::HostId;

/// VMM driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Chosen by a probe: Firecracker if it is installed and can run a guest here, else QEMU with KVM, else
    /// QEMU with emulation.
    #[default]
    Auto,
    /// Firecracker, without a probe.
    Firecracker,
    /// QEMU with KVM, without a probe.
    Kvm,
    /// QEMU with emulation.
    Tcg,
}

/// Networks that guests can reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// The internet by NAT.
    #[default]
    Internet,
    /// None.
    None,
}

/// Rate limits of a sandbox's devices, in bytes per second; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Network interface, in each direction.
    pub network: Option<u64>,
    /// Disk, reads and writes together.
    pub disk: Option<u64>,
}

/// PEM files of one side of the mutual TLS between control plane and agent.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The private CA, which is the only one that both sides trust.
    pub ca: PathBuf,
    /// Certificate of this side.
    pub cert: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// Maximum size of a message of the service, in bytes: a piece of a file, or the output of an exec.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;
/// Maximum size of each output of a command, in bytes: both must fit into one message, with its other fields.
pub const EXEC_OUTPUT_MAX: usize = 31 << 20;
const _: () = assert!(2 * EXEC_OUTPUT_MAX < MESSAGE_MAX);

/// Limits that the agent enforces for all requests of the control plane.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum number of sandboxes.
    pub sandboxes: u32,
    /// Maximum number of virtual CPUs of one sandbox.
    pub vcpus: u32,
    /// Maximum memory of one sandbox, in MiB.
    pub memory_mb: u64,
    /// Maximum disk size of one sandbox, in MiB.
    pub disk_size_mb: u64,
    /// Maximum stdout and stderr (each) of one non-streaming exec, in bytes; at most [`EXEC_OUTPUT_MAX`].
    pub exec_output: usize,
    /// Memory for output of commands and content of files of all sandboxes, in bytes; `None`: a share of the machine's
    /// memory.
    pub output_memory: Option<usize>,
    /// Time limit from the start of a create to envd's first response.
    pub boot: Duration,
}

impl Config {
    /// Returns the error for a driver that is no security boundary, or `None` if it may be used.
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
    /// Id of this host.
    pub host_id: HostId,
    /// State directory (`<state>/agent`), which only one agent can use at a time.
    pub state_dir: PathBuf,
    /// Directory of kernel, initial RAM disk and templates (`share/wrenn`).
    pub share_dir: PathBuf,
    /// Address to listen on for the control plane.
    pub listen: SocketAddr,
    /// TLS files.
    pub tls: TlsFiles,
    /// VMM driver.
    pub driver: Driver,
    /// Path of Firecracker, with its jailer in the same directory; `None`: both are in `PATH`.
    pub firecracker: Option<PathBuf>,
    /// Whether Firecracker may run without its jailer if the jailer cannot be used.
    pub unjailed: bool,
    /// Whether the agent refuses to start if the driver is no security boundary; `None`: if the driver is
    /// chosen by a probe and the agent is reachable from other machines.
    pub require_security_boundary: Option<bool>,
    /// Networks that guests can reach.
    pub egress: Egress,
    /// Rate limits of each sandbox's devices.
    pub rates: Rates,
    /// Number of network slots built in advance.
    pub warm_slots: u16,
    /// Size of the loop-mounted volume store in MiB (sparse), for file systems without reflinks.
    pub store_size_mb: u64,
    /// First of the unprivileged user ids that VMMs run as; slot i uses `vmm_uid_base + i`. `None`: the first
    /// range that no other agent of the machine uses.
    pub vmm_uid_base: Option<u32>,
    /// Limits.
    pub limits: Limits,
}

/// Default of `output_memory`: a share of the machine's memory, within bounds.
pub(crate) fn output_memory(memory_mb: u64) -> usize {
    const PART: u64 = 256;
    ((memory_mb << 20) / PART).clamp(64 << 20, 512 << 20) as usize
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
