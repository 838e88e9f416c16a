// SPDX-License-Identifier: Apache-2.0
//! Checks of the network: the parts of slots, in a temporary namespace, and the ports.

use std::{fs, net::TcpListener, process::Stdio, time::Duration};

use anyhow::Result;
use tokio::{process::Command, time::timeout};

use super::Check;
use crate::{config::Config, layout::Layout, status};

const LIMIT: Duration = Duration::from_secs(3);
/// One rule of each kind that a slot needs.
const RULES: &str = "add table ip t; add chain ip t c { type nat hook postrouting priority 100 ; }; \
                     add rule ip t c ip saddr 10.0.0.0/8 masquerade";

pub(super) async fn kernel() -> Vec<Check> {
    let trials: [(&str, &[&str], &str); 4] = [
        ("namespaces", &["true"], "allow network namespaces (CONFIG_NET_NS; no restricting container)"),
        ("veth", &["ip", "link", "add", "wd0", "type", "veth", "peer", "name", "wd1"], "modprobe veth"),
        (
            "tun",
            &["ip", "tuntap", "add", "dev", "t0", "mode", "tap"],
            "modprobe tun; /dev/net/tun must exist",
        ),
        ("nftables", &["nft", RULES], "modprobe nf_tables nft_chain_nat nft_masq"),
    ];
    let trials = trials.map(|(name, words, remedy)| trial(name, words, remedy));
    let mut checks = futures::future::join_all(trials).await;
    checks.push(forwarding());
    checks
}

async fn trial(name: &str, words: &[&str], remedy: &str) -> Check {
    if !rustix::process::geteuid().is_root() {
        return Check::warn(name, "only root can try", "run: sudo wrenn doctor");
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).args(words).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Check::ok(name, "works in a new network namespace"),
        Ok(Ok(output)) => Check::fail(name, String::from_utf8_lossy(&output.stderr).trim(), remedy),
        Ok(Err(error)) => Check::fail(name, format!("cannot run unshare: {error}"), "install util-linux"),
        Err(_) => Check::fail(name, format!("does not end within {} s", LIMIT.as_secs()), remedy),
    }
}

fn forwarding() -> Check {
    let path = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("1") => Check::ok("ip_forward", "on"),
        Ok(_) if fs::OpenOptions::new().write(true).open(path).is_ok() => {
            Check::ok("ip_forward", "off; the agent turns it on")
        }
        _ => Check::warn(
            "ip_forward",
            "off, and cannot be turned on: guests reach no internet",
            "sysctl -w net.ipv4.ip_forward=1 as root",
        ),
    }
}

pub(super) fn ports(config: &Config) -> Result<Vec<Check>> {
    let running = status::running(&Layout::new(&config.machine().state_dir))?.is_some();
    let mut checks = Vec::new();
    for (key, variable, address) in [
        ("server.listen", "WRENN_SERVER_LISTEN", config.server().listen),
        ("server.proxy_listen", "WRENN_SERVER_PROXY_LISTEN", config.server().proxy.listen),
        ("agent.listen", "WRENN_AGENT_LISTEN", config.agent().listen),
    ] {
        checks.push(match TcpListener::bind(address) {
            Ok(_) => Check::ok(key, format!("{address} is free")),
            Err(_) if running => Check::ok(key, format!("{address} is used by the Wrenn that runs")),
            Err(error) => {
                let remedy = format!("end what uses it, or set {variable}");
                Check::fail(key, format!("{address}: {error}"), remedy)
            }
        });
    }
    Ok(checks)
}
