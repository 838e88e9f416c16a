//! What the agent needs of a network slot pool, so that it does not depend on how slots are built.

use std::{net::Ipv4Addr, path::PathBuf};

use async_trait::async_trait;

/// A network slot handed to one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub index: u16,
    /// The file that its network namespace is pinned at.
    pub netns: PathBuf,
    /// Where the host reaches the guest.
    pub host_address: Ipv4Addr,
    /// The tap device in the namespace.
    pub tap: String,
    /// The guest's hardware address.
    pub guest_mac: String,
}

/// Gives out network slots and takes them back.
#[async_trait]
pub trait Slots: Send + Sync {
    /// Hands out a free slot; the error is fit for a caller to read.
    async fn acquire(&self) -> Result<Slot, String>;
    /// Takes a slot back; one that is free already is fine.
    async fn release(&self, index: u16);
    /// Removes the slots that no sandbox uses.
    async fn shutdown(&self);
}
