//! Addresses and names of slots. Nothing here touches the kernel.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{NetworkError, cidr::Cidr};

/// The highest slot number.
pub const MAX_SLOTS: u16 = 32767;
/// Every guest's address.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The gateway that a guest sees: the tap device in its slot.
pub const TAP_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// The prefix length of the network between the two.
pub(crate) const TAP_PREFIX: u8 = 30;
/// Every guest's hardware address: snapshots restore in any slot.
pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x05];
/// Every tap's hardware address: what a restored guest remembers of its gateway holds in any slot.
pub(crate) const TAP_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x16];

/// Where the host reaches guests.
pub(crate) const HOST_NETWORK: Cidr = Cidr::containing(Ipv4Addr::new(10, 11, 0, 0), 16);
/// The veth pairs' addresses.
pub(crate) const VETH_NETWORK: Cidr = Cidr::containing(Ipv4Addr::new(10, 12, 0, 0), 16);

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    /// 1 to [`MAX_SLOTS`].
    pub index: u16,
    /// The file that the namespace is pinned at.
    pub netns: PathBuf,
    /// Where the host reaches the guest.
    pub host_address: Ipv4Addr,
    /// The host's end of the veth pair.
    pub veth_host: String,
    /// The address of that end.
    pub veth_host_address: Ipv4Addr,
    /// The address of the end in the namespace.
    pub veth_slot_address: Ipv4Addr,
    /// The tap device in the namespace.
    pub tap: String,
    /// The guest's hardware address.
    pub guest_mac: String,
}

/// The address plan of one agent.
#[derive(Debug, Clone)]
pub struct Plan {
    instance: String,
    netns_dir: PathBuf,
}

impl Plan {
    /// A plan whose links carry `instance`, so that two agents on one machine tell theirs apart, and whose
    /// namespaces are pinned in `netns_dir`.
    pub fn new(instance: &str, netns_dir: &Path) -> Result<Self, NetworkError> {
        let valid = (1..=4).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !valid {
            return Err(NetworkError::Instance(instance.to_owned()));
        }
        Ok(Self { instance: instance.to_owned(), netns_dir: netns_dir.to_owned() })
    }

    /// The agent's tag.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What the names of the agent's links begin with.
    pub fn link_prefix(&self) -> String {
        format!("wr{}-", self.instance)
    }

    /// The slot whose link is called `name`; `None` for links of others.
    pub(crate) fn slot_of_link(&self, name: &str) -> Option<u16> {
        let number = name.strip_prefix(&self.link_prefix())?;
        let index = number.parse().ok()?;
        // `+7` and `007` are numbers to the parser, and not what we write.
        (self.slot(index).ok()?.veth_host == name).then_some(index)
    }

    /// The slot whose host address is `address`.
    pub fn slot_of_address(&self, address: Ipv4Addr) -> Option<u16> {
        let offset = address.to_bits().checked_sub(HOST_NETWORK.address().to_bits())?;
        let index = u16::try_from(offset).ok()?;
        self.slot(index).is_ok().then_some(index)
    }

    /// Slot `index`.
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
    /// The hardware addresses of the veth pair: the host's end, the slot's end.
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
            // A pair is a network of its own: both ends and nothing else.
            prop_assert_eq!(one[1].to_bits() ^ one[2].to_bits(), 1);
        }
    }
}
