//! What one sandbox may reach, and how fast. Nothing here touches the kernel.

use serde::{Deserialize, Serialize};

use crate::{NetworkError, cidr::Cidr};

/// How many networks a list may have. Lists become sets in the kernel: their length costs memory, not time.
pub const MAX_LIST: usize = 256;
/// The least bytes per second: below it a full frame would take more than a moment to earn.
pub const MIN_BYTES: u64 = 1_000;
/// The most bytes per second that the kernel's limiter counts without overflow.
pub const MAX_BYTES: u64 = 10_000_000_000;
/// The most packets per second.
pub const MAX_PACKETS: u64 = 100_000_000;

/// What a sandbox may reach outside.
///
/// For each packet of a flow that the guest began, in both directions, the first of these decides:
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
    /// Whether names can be looked up. An open resolver lets data out in names.
    pub dns: bool,
    /// Networks that are open whatever the other fields say.
    pub allow: Vec<Cidr>,
    /// Networks that are closed.
    pub deny: Vec<Cidr>,
    /// From the guest.
    pub upload: Rate,
    /// To the guest.
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
    /// Nothing is open.
    pub fn closed() -> Self {
        Self { internet: false, dns: false, ..Self::default() }
    }

    /// Refuses what the kernel could not hold or would hold wrongly.
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

/// The most that passes in one direction; what is over it is dropped. Traffic between the agent and the
/// guest does not count: a guest that uses up its rate can still be talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Per second.
    pub bytes: Option<u64>,
    /// Per second.
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
