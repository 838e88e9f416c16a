// SPDX-License-Identifier: Apache-2.0
//! Network policy and rates of one sandbox. Pure; makes no system calls.

use serde::{Deserialize, Serialize};

use crate::{NetworkError, cidr::Cidr};

/// Maximum length of a list of networks. Lists become kernel sets, so their length costs memory but no time.
pub const MAX_LIST: usize = 256;
/// Minimum rate in bytes per second; with less, a full frame would wait too long.
pub const MIN_BYTES: u64 = 1_000;
/// Maximum rate in bytes per second that the kernel's limiter can count without overflow.
pub const MAX_BYTES: u64 = 10_000_000_000;
/// Maximum rate in packets per second.
pub const MAX_PACKETS: u64 = 100_000_000;

/// Outside addresses that a sandbox may reach.
///
/// For each packet of a flow that the guest opened, in both directions, the first matching rule decides:
/// 1. the resolvers, port 53 only: open if `dns`;
/// 2. private, shared, link-local (metadata), loopback, multicast and reserved networks: closed, also where
///    `allow` names them, except what `allow` names within [`PoolConfig::permitted`](crate::PoolConfig);
/// 3. `allow`: open (it wins over `deny`, as in the service whose clients this one serves);
/// 4. `deny`: closed;
/// 5. the rest: open if `internet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether the internet is open.
    pub internet: bool,
    /// Whether DNS works. Data can leak out in DNS queries.
    pub dns: bool,
    /// Networks that are open, even if `deny` or `internet` would close them.
    pub allow: Vec<Cidr>,
    /// Networks that are closed.
    pub deny: Vec<Cidr>,
    /// Rate limit of packets from the guest.
    pub upload: Rate,
    /// Rate limit of packets to the guest.
    pub download: Rate,
}

impl Default for Policy {
    fn default() -> Self {
        let unlimited = Rate::default();
        let (allow, deny) = (Vec::new(), Vec::new());
        Self { internet: true, dns: true, allow, deny, upload: unlimited, download: unlimited }
    }
}

impl Policy {
    /// Policy that closes everything.
    pub fn closed() -> Self {
        Self { internet: false, dns: false, ..Self::default() }
    }

    /// Rejects values that the kernel cannot represent.
    pub fn validate(&self) -> Result<(), NetworkError> {
        for (list, entries) in [("allow", &self.allow), ("deny", &self.deny)] {
            if entries.len() > MAX_LIST {
                return Err(NetworkError::ListTooLong { list, length: entries.len() });
            }
        }
        self.upload.validate("upload")?;
        self.download.validate("download")
    }
}

/// Rate limit in one direction; packets over it are dropped. Traffic between agent and guest does not count,
/// so that a guest at its limit stays reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Bytes per second.
    pub bytes: Option<u64>,
    /// Packets per second.
    pub packets: Option<u64>,
}

impl Rate {
    fn validate(self, direction: &'static str) -> Result<(), NetworkError> {
        let outside = |value: Option<u64>, min, max| value.is_some_and(|value| !(min..=max).contains(&value));
        if outside(self.bytes, MIN_BYTES, MAX_BYTES) {
            return Err(NetworkError::Rate { direction, unit: "bytes", min: MIN_BYTES, max: MAX_BYTES });
        }
        if outside(self.packets, 1, MAX_PACKETS) {
            return Err(NetworkError::Rate { direction, unit: "packets", min: 1, max: MAX_PACKETS });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_rates_have_bounds() {
        let network: Cidr = "203.0.113.0/24".parse().unwrap();
        let full =
            Policy { allow: vec![network; MAX_LIST], deny: vec![network; MAX_LIST], ..Policy::default() };
        full.validate().unwrap();
        let over = Policy { deny: vec![network; MAX_LIST + 1], ..Policy::default() };
        let error = over.validate().unwrap_err().to_string();
        assert!(error.contains("deny") && error.contains("256"), "{error}");
        for (rate, good) in [
            (Rate { bytes: Some(MIN_BYTES), packets: Some(1) }, true),
            (Rate { bytes: Some(MAX_BYTES), packets: Some(MAX_PACKETS) }, true),
            (Rate { bytes: Some(0), packets: None }, false),
            (Rate { bytes: Some(u64::MAX), packets: None }, false),
            (Rate { bytes: None, packets: Some(0) }, false),
            (Rate { bytes: None, packets: Some(u64::MAX) }, false),
        ] {
            let up = Policy { upload: rate, ..Policy::default() };
            let down = Policy { download: rate, ..Policy::default() };
            assert_eq!((up.validate().is_ok(), down.validate().is_ok()), (good, good), "{rate:?}");
        }
    }
}
