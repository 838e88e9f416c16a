//! Sandbox networks: slots of namespace, veth pair, tap device, addresses and packet filter.
//!
//! Every guest has the same address inside its slot, so that one snapshot restores in any of them; the host
//! reaches slot `i` at `10.11.0.0 + i`. Slots are built before they are needed, written to a journal before
//! anything exists, and torn down idempotently.

mod build;
mod plan;
mod pool;
mod rules;

pub use plan::{GUEST_ADDRESS, MAX_SLOTS, Plan, SlotSpec, TAP_ADDRESS};
pub use pool::{PoolConfig, PoolStats, SlotPool, cleanup};
pub use rules::Egress;

/// Why a slot could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The instance tag is not one to four lower-case letters or digits.
    #[error("{0:?} is not an instance tag: use one to four lower-case letters or digits")]
    Instance(String),
    /// There is no slot of this number.
    #[error("slot {0} does not exist: slots are numbered 1 to 32767")]
    Index(u16),
    /// Every slot is in use.
    #[error("all {0} network slots are in use: remove sandboxes or raise the limit")]
    Exhausted(u16),
    /// The kernel or nft refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The kernel's network configuration refused.
    #[error("cannot {action}: {source}")]
    Netlink {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: rtnetlink::Error,
    },
}
