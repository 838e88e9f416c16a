// SPDX-License-Identifier: Apache-2.0
//! Address plan and names of slots. Pure; makes no system calls.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{NetworkError, cidr::Cidr};

/// Highest slot number.
pub const MAX_SLOTS: u16 = 32767;
/// IP address of every guest.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// Gateway of every guest: the address of the tap device in its slot.
pub const TAP_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Prefix length of the network between guest and tap device.
pub(crate) const TAP_PREFIX: u8 = 30;
/// MAC address of every guest, so that snapshots can be restored in any slot.
pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x05];
/// MAC address of every tap device, so that the neighbour entry of a restored guest is valid in any slot.
pub(crate) const TAP_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x16];

/// Network of the addresses at which the host reaches guests.
pub(crate) const HOST_NETWORK: Cidr = Cidr::containing(Ipv4Addr::new(10, 11, 0, 0), 16);
/// Network of the veth pairs' addresses.
pub(crate) const VETH_NETWORK: Cidr = Cidr::containing(Ipv4Addr::new(10, 12, 0, 0), 16);

/// Names and addresses of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    /// Number from 1 to [`MAX_SLOTS`].
    pub index: u16,
    /// File at which the network namespace is mounted.
    pub netns: PathBuf,
    /// Address at which the host reaches the guest.
    pub host_address: Ipv4Addr,
    /// Name of the host's end of the veth pair.
    pub veth_host: String,
    /// Address of the host's end of the veth pair.
    pub veth_host_address: Ipv4Addr,
    /// Address of the slot's end of the veth pair.
    pub veth_slot_address: Ipv4Addr,
    /// Name of the tap device in the namespace.
    pub tap: String,
    /// MAC address of the guest.
    pub guest_mac: String,
}

/// Address plan of one agent.
#[derive(Debug, Clone)]
pub struct Plan {
    instance: String,
    netns_dir: PathBuf,
}

impl Plan {
    /// Creates a plan. The names of its links contain `instance`, which distinguishes several agents on one
    /// machine; its namespaces are mounted in `netns_dir`.
    pub fn new(instance: &str, netns_dir: &Path) -> Result<Self, NetworkError> {
        let valid = (1..=4).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !valid {
            return Err(NetworkError::Instance(instance.to_owned()));
        }
        Ok(Self { instance: instance.to_owned(), netns_dir: netns_dir.to_owned() })
    }

    /// Instance tag of the agent.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Prefix of the agent's link names.
    pub fn link_prefix(&self) -> String {
        format!("wr{}-", self.instance)
    }

    /// Returns the slot of the link `name`, or `None` for other links.
    pub(crate) fn slot_of_link(&self, name: &str) -> Option<u16> {
        let number = name.strip_prefix(&self.link_prefix())?;
        let index = number.parse().ok()?;
        // The integer parser accepts `+7` and `007`, which are not names of slots.
        (self.slot(index).ok()?.veth_host == name).then_some(index)
    }

    /// Returns the slot whose host address is `address`.
    pub fn slot_of_address(&self, address: Ipv4Addr) -> Option<u16> {
        let offset = address.to_bits().checked_sub(HOST_NETWORK.address().to_bits())?;
        let index = u16::try_from(offset).ok()?;
        self.slot(index).is_ok().then_some(index)
    }

    /// Names and addresses of slot `index`.
    pub fn slot(&self, index: u16) -> Result<SlotSpec, NetworkError> {
        if !(1..=MAX_SLOTS).contains(&index) {
            return Err(NetworkError::Index(index));
        }
        let offset = u32::from(index);
        Ok(SlotSpec {
            index,
            netns: self.netns_dir.join(index.to_string()),
            host_address: Ipv4Addr::from(HOST_NETWORK.address().to_bits() + offset),
            veth_host: format!("{}{index}", self.link_prefix()),
            veth_host_address: Ipv4Addr::from(VETH_NETWORK.address().to_bits() + 2 * offset),
            veth_slot_address: Ipv4Addr::from(VETH_NETWORK.address().to_bits() + 2 * offset + 1),
            tap: "tap0".to_owned(),
            guest_mac: mac_text(GUEST_MAC),
        })
    }
}

impl SlotSpec {
    /// MAC addresses of the veth pair: host's end, slot's end.
    pub(crate) fn veth_macs(&self) -> [[u8; 6]; 2] {
        let [high, low] = self.index.to_be_bytes();
        [1, 2].map(|end| [0x02, 0xfc, end, 0x00, high, low])
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn plan() -> Plan {
        Plan::new("ab12", Path::new("/n")).unwrap()
    }

    #[test]
    fn no_two_slots_share_a_name_or_an_address() {
        let mut seen = HashSet::new();
        for index in 1..=MAX_SLOTS {
            let slot = plan().slot(index).unwrap();
            assert!(slot.veth_host.len() < 16, "{}", slot.veth_host);
            assert_eq!(slot.host_address.octets()[..2], [10, 11]);
            assert_eq!(slot.veth_host_address.octets()[..2], [10, 12]);
            for thing in [
                slot.veth_host,
                slot.netns.display().to_string(),
                slot.host_address.to_string(),
                slot.veth_host_address.to_string(),
                slot.veth_slot_address.to_string(),
            ] {
                assert!(seen.insert(thing.clone()), "{thing} twice");
            }
        }
    }

    #[test]
    fn names_of_others_are_no_slots() {
        for name in ["wrab12-", "wrab12-0", "wrab12-32768", "wrab12-007", "wrab12-+7", "wrab12-7x", "eth0"] {
            assert_eq!(plan().slot_of_link(name), None, "{name}");
        }
        assert_eq!(plan().slot_of_link("wrab12-7"), Some(7));
        assert_eq!(plan().slot(7).unwrap().guest_mac, "02:fc:00:00:00:05");
    }

    #[test]
    fn tags_that_are_no_part_of_a_link_name_are_refused() {
        for tag in ["", "abcde", "A", "a-b", "é"] {
            assert!(Plan::new(tag, Path::new("/n")).is_err(), "{tag:?}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_a_slot_or_refused(index: u16) {
            prop_assert_eq!(plan().slot(index).is_ok(), (1..=MAX_SLOTS).contains(&index));
        }

        #[test]
        fn slots_are_found_again_by_name_and_address(index in 1..=MAX_SLOTS, other: u32) {
            let slot = plan().slot(index).unwrap();
            prop_assert_eq!(plan().slot_of_link(&slot.veth_host), Some(index));
            prop_assert_eq!(plan().slot_of_address(slot.host_address), Some(index));
            let far = Plan::new("ab1", Path::new("/n")).unwrap();
            prop_assert_eq!(far.slot_of_link(&slot.veth_host), None);
            let found = plan().slot_of_address(Ipv4Addr::from_bits(other));
            prop_assert!(found.is_none_or(|i| plan().slot(i).unwrap().host_address.to_bits() == other));
        }

        #[test]
        fn no_two_slots_share_an_address(one in 1..=MAX_SLOTS, two in 1..=MAX_SLOTS) {
            let addresses = |index| {
                let slot = plan().slot(index).unwrap();
                [slot.host_address, slot.veth_host_address, slot.veth_slot_address]
            };
            let (one, two) = (addresses(one), addresses(two));
            prop_assert_eq!(one == two, one.iter().any(|address| two.contains(address)));
            // Each pair is a network of two addresses.
            prop_assert_eq!(one[1].to_bits() ^ one[2].to_bits(), 1);
        }
    }
}
