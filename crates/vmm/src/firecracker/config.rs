//! A microVM in Firecracker's own terms.
//!
//! Files have the names that they have in the jail, relative to its root, which is the working directory.

use serde_json::{Value, json};

use super::arch::CMDLINE;
use crate::{BootSpec, Rate};

/// Names in the jail. They are written into snapshots, so they stay as they are.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd";
pub(super) const DISK: &str = "disk";
pub(super) const RUN: &str = "run";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
pub(super) const PAGES: &str = "pages.sock";
/// The root disk, in API calls.
pub(super) const DRIVE_ID: &str = "root";
/// The network interface, in API calls.
pub(super) const INTERFACE_ID: &str = "eth0";

/// A rate in token buckets that refill within a second; size zero takes a limit away.
pub(super) fn rate_limiter(rate: Rate) -> Value {
    let bucket = |limit: Option<u64>| match limit {
        Some(limit) => json!({ "size": limit, "refill_time": 1000 }),
        None => json!({ "size": 0, "refill_time": 0 }),
    };
    json!({ "bandwidth": bucket(rate.bytes), "ops": bucket(rate.operations) })
}

/// One call of Firecracker's API: path, body, and what for.
pub(super) type Call = (String, Value, &'static str);

/// The calls that make and start a microVM.
///
/// What a guest has to know before its first program runs stands on the kernel's command line; it gets the rest
/// from the agent through envd. There is no metadata service, so none can be reached by what runs in the guest.
pub(super) fn calls(spec: &BootSpec) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut add = |path: &str, body: Value, action| calls.push((path.to_owned(), body, action));
    let machine = json!({
        "vcpu_count": spec.vcpus,
        "mem_size_mib": spec.memory_mb,
        "track_dirty_pages": spec.track_changes,
    });
    add("/machine-config", machine, "give the microVM processors and memory");
    let mut source = json!({
        "kernel_image_path": KERNEL,
        "boot_args": format!("{CMDLINE} {}", spec.cmdline),
    });
    if spec.initrd.is_some() {
        source["initrd_path"] = INITRD.into();
    }
    add("/boot-source", source, "take the guest kernel");
    add("/entropy", json!({}), "add the entropy device");
    if spec.disk.is_some() {
        let drive = json!({
            "drive_id": DRIVE_ID,
            "path_on_host": DISK,
            // The kernel's command line says what the root is: the disk is an ordinary one.
            "is_root_device": false,
            "is_read_only": false,
            // What the guest has synced survives the host.
            "cache_type": "Writeback",
            "rate_limiter": rate_limiter(spec.disk_rate),
        });
        add(&format!("/drives/{DRIVE_ID}"), drive, "attach the root disk");
    }
    if let Some(tap) = &spec.tap {
        let interface = json!({
            "iface_id": INTERFACE_ID,
            "guest_mac": tap.mac,
            "host_dev_name": tap.name,
            "rx_rate_limiter": rate_limiter(spec.network_rate),
            "tx_rate_limiter": rate_limiter(spec.network_rate),
        });
        add(&format!("/network-interfaces/{INTERFACE_ID}"), interface, "attach the network interface");
    }
    add("/actions", json!({ "action_type": "InstanceStart" }), "start the guest");
    calls
}
