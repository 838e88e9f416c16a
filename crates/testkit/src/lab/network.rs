// SPDX-License-Identifier: Apache-2.0
//! Network of labs: one bridge in the caller's network namespace, one tap device per lab, no uplink.
//!
//! The kernel removes a lab's tap device when its QEMU exits. The last lab removes the bridge. A bridge that
//! a killed run left is reused.

use std::{
    env,
    fmt::{self, Display},
    fs::File,
    net::Ipv4Addr,
    process::Command,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use super::files;

/// Maximum number of labs in one network.
const PLACES: u8 = 16;
/// Time limit for QEMU to create its tap device.
const TAP_LIMIT: Duration = Duration::from_secs(30);

/// Network of labs, a /24: this machine has the first address, labs have the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet([u8; 3]);

impl Default for Subnet {
    /// Returns `LAB_SUBNET`, or 10.200.77.0/24.
    fn default() -> Self {
        let asked = env::var("LAB_SUBNET").ok().and_then(|subnet| subnet.parse().ok());
        asked.unwrap_or(Self([10, 200, 77]))
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || format!("{text:?} is not a subnet for labs: use a private /24 such as 10.200.77.0/24");
        let address: Ipv4Addr =
            text.strip_suffix("/24").with_context(wrong)?.parse().ok().with_context(wrong)?;
        let [a, b, c, d] = address.octets();
        ensure!(d == 0 && address.is_private(), wrong());
        Ok(Self([a, b, c]))
    }
}

impl Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.address(0))
    }
}

impl Subnet {
    fn address(self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }

    fn bridge(self) -> String {
        let [a, b, c] = self.0;
        // Interface names have at most 15 bytes.
        format!("lab{a:02x}{b:02x}{c:02x}")
    }
}

/// Lock that serializes attaching and detaching of all labs of this repository.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take() -> Result<Self> {
        let file = files::create(&files::base().join("network.lock"))?;
        flock(&file, FlockOperation::LockExclusive).context("cannot lock the labs' network")?;
        Ok(Self { _file: file })
    }
}

/// Address of one lab in its subnet.
#[derive(Debug, Clone)]
pub(super) struct Place {
    subnet: Subnet,
    last: u8,
}

impl Place {
    pub(super) fn tap(&self) -> String {
        format!("{}-{}", self.subnet.bridge(), self.last)
    }

    pub(super) fn mac(&self) -> String {
        let [a, b, c] = self.subnet.0;
        format!("52:54:{a:02x}:{b:02x}:{c:02x}:{:02x}", self.last)
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.subnet.address(self.last)
    }
}

/// Finds the first address that no lab uses in this network namespace.
pub(super) fn free_place(subnet: Subnet, _lock: &Lock) -> Result<Place> {
    (2..2 + PLACES).map(|last| Place { subnet, last }).find(|place| !exists(&place.tap())).with_context(
        || format!("{PLACES} labs run in {subnet} already: stop some, or use another subnet (LAB_SUBNET)"),
    )
}

/// Connection of a lab to its network.
#[derive(Debug)]
pub(super) struct Attachment {
    place: Place,
    left: bool,
}

impl Attachment {
    /// Attaches the tap device that QEMU creates, and creates the bridge for the first lab.
    pub(super) fn new(place: Place, alive: impl Fn() -> Result<()>, lock: &Lock) -> Result<Self> {
        let attached = attach(&place, alive);
        if attached.is_err() {
            remove_unused_bridge(place.subnet, lock);
        }
        attached.map(|()| Self { place, left: false })
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.place.address()
    }

    pub(super) fn host_address(&self) -> Ipv4Addr {
        self.place.subnet.address(1)
    }

    /// Removes the bridge after the last lab. The tap device is removed with QEMU.
    pub(super) fn leave(&mut self) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let Ok(lock) = Lock::take() else { return };
        // The kernel removes a tap device a moment after its process has exited.
        let start = Instant::now();
        while exists(&self.place.tap()) && start.elapsed() < TAP_LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        remove_unused_bridge(self.place.subnet, &lock);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.leave();
    }
}

fn attach(place: &Place, alive: impl Fn() -> Result<()>) -> Result<()> {
    let (subnet, bridge, tap) = (place.subnet, place.subnet.bridge(), place.tap());
    if !exists(&bridge) {
        ip(&["link", "add", "name", &bridge, "type", "bridge", "stp_state", "0"])?;
    }
    ip(&["address", "replace", &format!("{}/24", subnet.address(1)), "dev", &bridge])?;
    ip(&["link", "set", "dev", &bridge, "up"])?;
    let start = Instant::now();
    while !exists(&tap) {
        alive()?;
        ensure!(start.elapsed() < TAP_LIMIT, "QEMU made no interface {tap} within {TAP_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    ip(&["link", "set", "dev", &tap, "master", &bridge, "up"])
}

fn remove_unused_bridge(subnet: Subnet, _lock: &Lock) {
    let bridge = subnet.bridge();
    if ip_output(&["-o", "link", "show", "master", &bridge]).is_ok_and(|members| members.is_empty()) {
        drop(ip(&["link", "delete", "dev", &bridge]));
    }
}

fn exists(interface: &str) -> bool {
    ip(&["link", "show", "dev", interface]).is_ok()
}

fn ip(args: &[&str]) -> Result<()> {
    ip_output(args).map(drop)
}

fn ip_output(args: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(args).output().context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_private_networks_of_24_bits() {
        let subnet: Subnet = "10.200.78.0/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.200.78.0/24");
        for wrong in ["", "10.200.78.0", "10.200.78.0/16", "10.200.78.1/24", "8.8.8.0/24", "10.200/24"] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn names_of_interfaces_fit() {
        let place = Place { subnet: Subnet([192, 168, 255]), last: 17 };
        assert!(place.tap().len() <= 15, "{}", place.tap());
    }
}
