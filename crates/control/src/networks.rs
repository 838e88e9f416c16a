// SPDX-License-Identifier: Apache-2.0
//! Networks of trusted reverse proxies. Pure.

use std::net::IpAddr;

/// Networks, by address and length of the prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks(Vec<(IpAddr, u8)>);

impl Networks {
    /// Parses addresses and networks in CIDR notation, separated by commas. Returns what is none of them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| network(part).ok_or_else(|| part.to_owned())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is in one of them.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|(network, length)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let rest = 32 - u32::from(*length);
                u64::from(network.to_bits()) >> rest == u64::from(address.to_bits()) >> rest
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(*length)
            }
            _ => false,
        })
    }
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) =
        text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(most), |length| length.parse().ok())?;
    (length <= most).then_some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_networks() {
        let networks = Networks::parse("10.0.0.0/8, 192.0.2.7,2001:db8::/32").expect("networks");
        let contain = |text: &str| networks.contain(text.parse().expect("an address"));
        assert!(contain("10.255.0.1") && contain("192.0.2.7") && contain("::ffff:10.0.0.1"));
        assert!(contain("2001:db8:ffff::1") && !contain("2001:db9::1"));
        assert!(!contain("11.0.0.1") && !contain("192.0.2.8"));
        let all = Networks::parse("0.0.0.0/0,::/0").expect("networks");
        assert!(all.contain("203.0.113.1".parse().expect("an address")));
        assert!(!Networks::parse("").expect("none").contain("127.0.0.1".parse().expect("an address")));
        for text in ["10.0.0.0/33", "x", "10.0.0.0/x", "::/129"] {
            assert_eq!(Networks::parse(text), Err(text.to_owned()));
        }
    }
}
