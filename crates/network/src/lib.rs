// SPDX-License-Identifier: Apache-2.0
//! Sandbox networks: slots of network namespace, veth pair, tap device, addresses and nftables rules.
//!
//! Every guest has the same address inside its slot, so that a snapshot can be restored in any slot; the host
//! reaches slot `i` at `10.11.0.0 + i`. Slots are built in advance, recorded in a journal before anything is
//! created, and removed idempotently.

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
mod traffic;

pub use cidr::{Cidr, CidrError};
pub use plan::{GUEST_ADDRESS, MAX_SLOTS, Plan, SlotSpec, TAP_ADDRESS};
pub use policy::{MAX_BYTES, MAX_LIST, MAX_PACKETS, MIN_BYTES, Policy, Rate};
pub use pool::{PoolConfig, PoolStats, SlotPool, cleanup};
pub use reclaim::leftovers;
pub use resolvers::GUEST_RESOLVERS;
pub use rules::{Egress, MAX_FLOWS, MAX_NEW_FLOWS};
pub use traffic::Traffic;

/// Errors of creating, changing and removing slots.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The instance tag is not one to four lower-case letters or digits.
    #[error("{0:?} is not an instance tag: use one to four lower-case letters or digits")]
    Instance(String),
    /// The slot number is out of range.
    #[error("slot {0} does not exist: slots are numbered 1 to 32767")]
    Index(u16),
    /// The slot is not in use.
    #[error("slot {0} is not in use: only a sandbox's own slot can be changed")]
    NotInUse(u16),
    /// Every slot is in use.
    #[error("all {0} network slots are in use: remove sandboxes or raise the limit")]
    Exhausted(u16),
    /// Another agent uses this network namespace.
    #[error(
        "another agent uses this network namespace, {0}: stop it, or run this agent in a network namespace of its own"
    )]
    Taken(String),
    /// The pool was shut down.
    #[error("the network slots are shut down: the agent is stopping")]
    Closed,
    /// A policy names too many networks.
    #[error("the {list} list has {length} networks, the limit is {MAX_LIST}: join neighbouring networks")]
    ListTooLong {
        /// `allow` or `deny`.
        list: &'static str,
        /// Number of networks.
        length: usize,
    },
    /// A rate is outside the range of the kernel's limiter.
    #[error("the {direction} rate in {unit} per second must be {min} to {max}, or absent for no limit")]
    Rate {
        /// `upload` or `download`.
        direction: &'static str,
        /// `bytes` or `packets`.
        unit: &'static str,
        /// Minimum.
        min: u64,
        /// Maximum.
        max: u64,
    },
    /// The kernel rejected an nftables batch and changed nothing.
    #[error(
        "the kernel rejected {what}: {source}; the kernel needs nf_tables with netdev, nat, ct, \
             limit and connlimit"
    )]
    Rules {
        /// Rejected part of the batch.
        what: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// Failed action.
        action: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A netlink request for network configuration failed.
    #[error("cannot {action}: {source}")]
    Netlink {
        /// Failed action.
        action: String,
        /// Cause.
        source: rtnetlink::Error,
    },
}
