// SPDX-License-Identifier: Apache-2.0
//! IPv4 networks in CIDR notation, and set operations on address ranges.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// IPv4 network such as `203.0.113.0/24`. A single address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

/// Error of parsing a [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an IPv4 address, or the prefix length is not a number up to 32.
    #[error("{0:?} is not an IPv4 network: write it as 203.0.113.0/24, or one address as 203.0.113.9")]
    Malformed(String),
    /// IPv6 network.
    #[error("{0:?} is an IPv6 network: sandboxes have no IPv6, name IPv4 networks")]
    Version6(String),
    /// Bits after the prefix are set.
    #[error("{text:?} has bits set after its prefix: did you mean {network}?")]
    HostBits {
        /// Input text.
        text: String,
        /// Network that contains the address.
        network: Cidr,
    },
}

impl Cidr {
    /// Creates the network of `prefix` bits that contains `address`; prefixes over 32 count as 32.
    pub const fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        let address = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
        Self { address, prefix }
    }

    /// First address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Prefix length.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Returns whether the network contains `address`.
    pub const fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    /// Prefix as a bit mask.
    pub(crate) const fn mask(self) -> u32 {
        mask(self.prefix)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

impl From<Ipv4Addr> for Cidr {
    fn from(address: Ipv4Addr) -> Self {
        Self::containing(address, 32)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        if text.contains(':') {
            return Err(CidrError::Version6(text.to_owned()));
        }
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        // The integer parser accepts `+8` and `008`, which are mistakes here.
        let plain = prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|prefix| plain && *prefix <= 32).ok_or_else(malformed)?;
        let network = Self::containing(address, prefix);
        if network.address != address {
            return Err(CidrError::HostBits { text: text.to_owned(), network });
        }
        Ok(network)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// Range of addresses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl From<Cidr> for Range {
    fn from(cidr: Cidr) -> Self {
        let first = cidr.address.to_bits();
        Self { first, last: first | !cidr.mask() }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", Ipv4Addr::from_bits(self.first), Ipv4Addr::from_bits(self.last))
    }
}

/// Merges networks into sorted ranges that neither overlap nor adjoin.
pub(crate) fn union(cidrs: impl IntoIterator<Item = Cidr>) -> Vec<Range> {
    let mut ranges: Vec<Range> = cidrs.into_iter().map(Range::from).collect();
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(before) if before.last == u32::MAX || range.first <= before.last + 1 => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Returns the addresses of `from` that are not in `without`; both must be results of [`union`].
pub(crate) fn difference(from: &[Range], without: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    for range in from {
        // First address not yet decided; `None` after the last IPv4 address.
        let mut next = Some(range.first);
        for hole in without {
            let Some(first) = next.filter(|first| hole.last >= *first && hole.first <= range.last) else {
                continue;
            };
            if hole.first > first {
                left.push(Range { first, last: hole.first - 1 });
            }
            next = hole.last.checked_add(1);
        }
        if let Some(first) = next.filter(|first| *first <= range.last) {
            left.push(Range { first, last: range.last });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr() -> impl Strategy<Value = Cidr> {
        // Use few bits, so that networks overlap.
        (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, prefix)| Cidr::containing(Ipv4Addr::from_bits(bits & 0xF000_0003), prefix))
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_remedy() {
        for text in
            ["", "1.2.3", "1.2.3.4/33", "1.2.3.4/", "/8", "1.2.3.4/+8", "1.2.3.4/008", "x/8", " 1.2.3.4"]
        {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Malformed(text.into())), "{text:?}");
        }
        assert!(matches!("fd00::/8".parse::<Cidr>(), Err(CidrError::Version6(_))));
        let error = "10.1.2.3/8".parse::<Cidr>().unwrap_err().to_string();
        assert!(error.ends_with("did you mean 10.0.0.0/8?"), "{error}");
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().prefix(), 0);
        assert_eq!("9.8.7.6".parse::<Cidr>().unwrap().to_string(), "9.8.7.6/32");
    }

    proptest! {
        #[test]
        fn texts_round_trip(network in cidr()) {
            prop_assert_eq!(network.to_string().parse::<Cidr>().unwrap(), network);
        }

        #[test]
        fn unions_and_differences_hold_what_they_should(
            some in prop::collection::vec(cidr(), 0..6),
            other in prop::collection::vec(cidr(), 0..6),
            bits: u32,
        ) {
            let (left, right) = (union(some.clone()), union(other.clone()));
            let rest = difference(&left, &right);
            for pair in left.windows(2).chain(rest.windows(2)) {
                prop_assert!(pair[0].last < pair[1].first);
            }
            let edges = left.iter().chain(&right).flat_map(|range| {
                [range.first, range.last, range.first.wrapping_sub(1), range.last.wrapping_add(1)]
            });
            for bits in edges.chain([bits]) {
                let address = Ipv4Addr::from_bits(bits);
                let within = |ranges: &[Range]| ranges.iter().any(|r| (r.first..=r.last).contains(&bits));
                let (a, b) = (some.iter().any(|c| c.contains(address)), other.iter().any(|c| c.contains(address)));
                prop_assert_eq!(within(&left), a);
                prop_assert_eq!(within(&rest), a && !b);
            }
        }
    }
}
