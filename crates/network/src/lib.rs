//! Sandbox networks: slots of namespace, veth pair, tap device, addresses and packet filter.
//!
//! Every guest has the same address inside its slot, so that one snapshot restores in any of them; the host
//! reaches slot `i` at `10.11.0.0 + i`. Slots are built before they are needed, written to a journal before
//! anything exists, and torn down idempotently.

mod build;
mod cidr;
mod conntrack;
mod model;
mod netfilter;
mod nft;
mod plan;
mod policy;
mod pool;
mod reclaim;
pub mod resolvers;
mod rules;

pub use cidr::{Cidr, CidrError};
pub use plan::{GUEST_ADDRESS, MAX_SLOTS, Plan, SlotSpec, TAP_ADDRESS};
pub use policy::{MAX_BYTES, MAX_LIST, MAX_PACKETS, MIN_BYTES, Policy, Rate};
pub use pool::{PoolConfig, PoolStats, SlotPool, cleanup};
pub use reclaim::leftovers;
pub use resolvers::GUEST_RESOLVERS;
pub use rules::{Egress, MAX_FLOWS, MAX_NEW_FLOWS};

/// Why a slot could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The instance tag is not one to four lower-case letters or digits.
    #[error("{0:?} is not an instance tag: use one to four lower-case letters or digits")]
    Instance(String),
    /// There is no slot of this number.
    #[error("slot {0} does not exist: slots are numbered 1 to 32767")]
    Index(u16),
    /// Nobody has the slot.
    #[error("slot {0} is not in use: only a sandbox's own slot can be changed")]
    NotInUse(u16),
    /// Every slot is in use.
    #[error("all {0} network slots are in use: remove sandboxes or raise the limit")]
    Exhausted(u16),
    /// Another agent has this namespace.
    #[error(
        "another agent has this machine's sandbox networks: end it, or run this one in a network namespace of its own"
    )]
    Taken,
    /// The pool was shut down.
    #[error("the network slots are shut down: the agent is ending")]
    Closed,
    /// A policy names too many networks.
    #[error("the {list} list has {length} networks, the limit is {MAX_LIST}: join neighbouring networks")]
    ListTooLong {
        /// `allow` or `deny`.
        list: &'static str,
        /// How many there are.
        length: usize,
    },
    /// A rate is outside what the kernel's limiter can do.
    #[error("the {direction} rate in {unit} per second must be {min} to {max}, or absent for no limit")]
    Rate {
        /// `upload` or `download`.
        direction: &'static str,
        /// `bytes` or `packets`.
        unit: &'static str,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The kernel's packet filter refused, and changed nothing.
    #[error(
        "the kernel refused {what}: {source}; it needs nf_tables with netdev, nat, ct, \
             limit and connlimit"
    )]
    Rules {
        /// Which part of the packet filter.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The kernel refused.
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
