// SPDX-License-Identifier: Apache-2.0
//! Firecracker API requests that configure a microVM.
//!
//! File names are relative to the root of the jail, which is the working directory.

use serde_json::{Value, json};

use super::arch::CMDLINE;
use crate::{BootSpec, Rate};

/// File names in the jail. Snapshots contain them, so they must not change.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd";
pub(super) const DISK: &str = "disk";
pub(super) const RUN: &str = "run";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
/// Id of the root disk in API requests.
pub(super) const DRIVE_ID: &str = "root";
/// Id of the network interface in API requests.
pub(super) const INTERFACE_ID: &str = "eth0";

/// Rate as token buckets that refill within a second; size 0 removes a limit.
pub(super) fn rate_limiter(rate: Rate) -> Value {
    let bucket = |limit: Option<u64>| match limit {
        Some(limit) => json!({ "size": limit, "refill_time": 1000 }),
        None => json!({ "size": 0, "refill_time": 0 }),
    };
    json!({ "bandwidth": bucket(rate.bytes), "ops": bucket(rate.operations) })
}

/// API request: path, body and description for errors.
pub(super) type Call = (String, Value, &'static str);

/// Requests that create and start a microVM.
///
/// The kernel command line has what a guest needs before its first program; the agent sends the rest through
/// envd. There is no metadata service that programs in the guest could reach.
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
            // The kernel command line defines the root; the disk is an ordinary one.
            "is_root_device": false,
            "is_read_only": false,
            // Data synced by the guest survives a crash of the host.
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
