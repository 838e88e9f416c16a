// SPDX-License-Identifier: Apache-2.0
//! Configuration of the agent.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use wrenn_api::HostId;
use wrenn_settings::{address, bytes, choice, group, number, path, seconds, settings, text};

use crate::uids::DEFAULT_BASE;

/// The configuration of an agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Id of this host.
    pub host_id: HostId,
    /// State directory (`<state>/agent`), which only one agent can use at a time.
    pub state_dir: PathBuf,
    /// Directory of kernel, initial RAM disk and templates (`share/wrenn`).
    pub share_dir: PathBuf,
    /// TLS files.
    pub tls: TlsFiles,
    /// What can be configured by keys.
    pub settings: Settings,
}

/// VMM driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

impl Driver {
    const NAMES: &[(&str, Self)] =
        &[("auto", Self::Auto), ("firecracker", Self::Firecracker), ("kvm", Self::Kvm), ("tcg", Self::Tcg)];
}

/// Networks that guests can reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Egress {
    /// The internet by NAT.
    #[default]
    Internet,
    /// None.
    None,
}

/// Layout in which the memory of paused sandboxes is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryLayout {
    /// Flat where the volume store can share extents or the driver cannot load packed memory, else packed.
    #[default]
    Auto,
    /// The whole memory in one file, which the VMM maps.
    Flat,
    /// Only what changed since the last pause; a page server copies it into the VMM.
    Packed,
}

impl MemoryLayout {
    const NAMES: &[(&str, Self)] = &[("auto", Self::Auto), ("flat", Self::Flat), ("packed", Self::Packed)];
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
/// Maximum length of a path, in characters.
pub(crate) const PATH_MAX: usize = 4096;
/// Maximum size of each output of a command, in bytes: both must fit into one message, with its other fields.
const EXEC_OUTPUT_MAX: usize = 31 << 20;
const _: () = assert!(2 * EXEC_OUTPUT_MAX < MESSAGE_MAX);
/// Default of `output_memory`: one of so many parts of the machine's memory, at least and at most so many MiB.
const OUTPUT_PARTS: u64 = 256;
const OUTPUT_MB: (u64, u64) = (64, 512);

settings! {
    /// What can be configured of an agent: the keys `agent.*`.
    #[derive(Debug, Clone)]
    pub struct Settings {
        /// Address on which the agent listens for the control plane.
        pub listen: SocketAddr = address("agent.listen").or(SocketAddr::from(([127, 0, 0, 1], 9726))),
        /// `firecracker`, `kvm` (QEMU with KVM) or `tcg` (QEMU with emulation) select a driver without booting a test
        /// guest. `auto`: Firecracker if it is installed and can run a guest, else QEMU with KVM, else with emulation.
        pub driver: Driver = choice("agent.driver", Driver::NAMES).or(Driver::Auto),
        /// Path of the guest kernel, in the format of the driver: an ELF file for Firecracker, a bzImage or an ELF file for
        /// QEMU. It has the drivers of docs/guests.md built in, or its modules fit those in `share_dir`.
        pub kernel: Option<PathBuf> = path("agent.kernel").or_none("`vmlinux` or `vmlinuz` in `share_dir`"),
        /// Path of Firecracker; the jailer must be in the same directory.
        pub firecracker: Option<PathBuf> = path("agent.firecracker").or_none("from `PATH`"),
        /// `true`: Firecracker may run without its jailer if the jailer cannot be used; it is then no security boundary.
        pub unjailed: bool = choice("agent.unjailed", &[("true", true), ("false", false)]).or(false),
        /// `true`: the agent does not start where its driver does not keep hostile code from the host (emulation,
        /// Firecracker without its jailer); `false`: it starts; `auto`: it refuses where the driver was chosen by the
        /// probe and `agent.listen` is no loopback address.
        pub require_security_boundary: Option<bool> = choice(
            "agent.require_security_boundary",
            &[("auto", None), ("true", Some(true)), ("false", Some(false))],
        )
        .or(None),
        /// Networks that guests can reach: the internet, or none.
        pub egress: Egress =
            choice("agent.egress", &[("internet", Egress::Internet), ("none", Egress::None)]).or(Egress::Internet),
        /// Rate limits of each sandbox's devices.
        pub rates: Rates = group(),
        /// Number of network slots that are built in advance.
        pub warm_slots: u16 = number("agent.warm_slots", 0..=1024).or(4),
        /// Size in MiB of the sparse XFS image that holds sandbox disks. Used only if neither device-mapper nor a
        /// reflink file system is available. Free space on the underlying disk counts towards the store's free space.
        pub store_size_mb: u64 = number("agent.store_size_mb", 1024..=1 << 30).or(65_536),
        /// Room in MiB for memory snapshots of templates, from which sandboxes go on instead of booting. Those that were
        /// not used for longest are removed beyond it. 0: every sandbox boots.
        pub template_snapshots_mb: u64 = number("agent.template_snapshots_mb", 0..=1 << 30).or(8192),
        /// How the memory of paused sandboxes is kept: `flat`, the whole memory in one file that the VMM maps; `packed`, only
        /// what changed since the last pause, which a page server copies into the VMM (Firecracker only); `auto`: packed
        /// where the store would have to copy the whole memory for a flat one.
        pub memory_layout: MemoryLayout = choice("agent.memory_layout", MemoryLayout::NAMES).or(MemoryLayout::Auto),
        /// First user id of VMMs; the VMM in slot N has this id plus N. No two agents of one machine use the same ids:
        /// a range that another agent has is refused if it is set here, and skipped otherwise.
        pub vmm_uid_base: Option<u32> = number("agent.vmm_uid_base", 1000..=4_000_000_000)
            .or_none(format!("the first free range from {DEFAULT_BASE}")),
        /// Limits of requests of the control plane.
        pub limits: Limits = group(),
        /// How images of registries are imported.
        pub images: ImageSettings = group(),
    }
}

settings! {
    /// How images of registries are imported: the keys `agent.image_*` and `agent.registr*`.
    #[derive(Debug, Clone)]
    pub struct ImageSettings {
        /// Registries from which images may be imported, as in references and separated by commas:
        /// `docker.io,registry.lan:5000`. Registries in private networks are only reached, and proxies of the agent's environment
        /// only used, for those that are named here or in `agent.registries_plain_http`.
        pub registries: Option<String> = text("agent.registries").or_none("all in public networks"),
        /// Registries that are reached by plain HTTP, as in references and separated by commas: `registry.lan:5000`.
        pub registries_plain_http: Option<String> = text("agent.registries_plain_http").or_none("none"),
        /// How long a registry may send nothing before a request to it is tried again.
        pub registry_timeout: Duration = seconds("agent.registry_timeout_sec", 1..=600).or(Duration::from_secs(30)),
        /// Maximum size in MiB of an imported image: of its layers, compressed, and of what they are unpacked to.
        pub image_max_mb: u64 = number("agent.image_max_mb", 16..=131_072).or(10_240),
        /// Time limit for pulling the layers of an image.
        pub pull_limit: Duration =
            seconds("agent.image_pull_timeout_sec", 10..=86_400).or(Duration::from_secs(1800)),
        /// Time limit for unpacking an image and writing its file system.
        pub unpack_limit: Duration =
            seconds("agent.image_unpack_timeout_sec", 10..=86_400).or(Duration::from_secs(900)),
    }
}

settings! {
    /// Rate limits of a sandbox's devices, in bytes per second; `None` is unlimited.
    #[derive(Debug, Clone, Copy)]
    pub struct Rates {
        /// Bytes per second of one sandbox's network, in each direction.
        pub network: Option<u64> = bytes("agent.network_rate", 1 << 16..=10_000_000_000).or_none("no limit"),
        /// Bytes per second of one sandbox's disk, reads and writes together.
        pub disk: Option<u64> = bytes("agent.disk_rate", 1 << 16..=100_000_000_000).or_none("no limit"),
    }
}

settings! {
    /// Limits that the agent enforces for all requests of the control plane.
    #[derive(Debug, Clone)]
    pub struct Limits {
        /// Maximum number of sandboxes.
        pub sandboxes: u32 = number("agent.max_sandboxes", 1..=32_767).or(64),
        /// Maximum number of virtual CPUs of one sandbox.
        pub vcpus: u32 = number("agent.max_vcpus", 1..=64).or(16),
        /// Maximum memory of one sandbox, in MiB.
        pub memory_mb: u64 = number("agent.max_memory_mb", 128..=1_048_576).or(65_536),
        /// Maximum disk size of one sandbox, in MiB.
        pub disk_size_mb: u64 = number("agent.max_disk_size_mb", 512..=1 << 30).or(131_072),
        /// Maximum stdout and stderr (each) of one command that is not streamed.
        pub exec_output: usize = bytes("agent.exec_output", 1024..=EXEC_OUTPUT_MAX).or(16 << 20),
        /// Memory for output of commands and content of files of all sandboxes.
        pub output_memory: Option<usize> = bytes("agent.output_memory", 64 << 20..=1 << 40).or_none(format!(
            "1/{OUTPUT_PARTS} of the machine's memory, {} to {} MiB",
            OUTPUT_MB.0, OUTPUT_MB.1
        )),
        /// Time limit of a boot, from the start of a create to the first response of the guest's agent.
        pub boot: Duration = seconds("agent.boot_timeout_sec", 1..=3600).or(Duration::from_secs(120)),
    }
}

impl Config {
    /// Returns the error for a driver that is no security boundary, or `None` if it may be used.
    pub(crate) fn refusal_of_no_boundary(&self, driver: &str, reason: &str) -> Option<String> {
        let settings = &self.settings;
        let by_itself = settings.driver == Driver::Auto && !settings.listen.ip().is_loopback();
        let why = match settings.require_security_boundary {
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

/// Default of `output_memory`: a share of the machine's memory, within bounds.
pub(crate) fn output_memory(memory_mb: u64) -> usize {
    ((memory_mb << 20) / OUTPUT_PARTS).clamp(OUTPUT_MB.0 << 20, OUTPUT_MB.1 << 20) as usize
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
                tls,
                settings: Settings {
                    listen: listen.parse().expect("an address"),
                    driver,
                    require_security_boundary: required,
                    ..Settings::default()
                },
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
