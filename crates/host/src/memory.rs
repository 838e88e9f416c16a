// SPDX-License-Identifier: Apache-2.0
//! Limit of the memory in which the agent holds command output and file content, for all guests together.
//!
//! Each stream and each command reserves its minimum at the start, or is rejected. Output of commands that
//! are not streamed may grow beyond that into a shared half of the memory, of which no guest may hold more
//! than is left for the others.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wrenn_api::ErrorCode;

use crate::error::AgentError;

/// Bytes reserved per stream whose reader is stalled: received, decoded and encoded messages, and the
/// connection's window.
pub(crate) const STREAM: u32 = 384 << 10;
/// Bytes reserved per command that is not streamed: [`FIRST`] and messages in transit.
pub(crate) const COMMAND: u32 = 128 << 10;
/// Bytes of a command's output that are always kept, whatever other commands hold.
pub(crate) const FIRST: usize = 64 << 10;

/// Memory budget of one agent.
#[derive(Debug)]
pub(crate) struct Memory {
    /// All bytes.
    all: Arc<Semaphore>,
    /// Bytes shared by large outputs.
    shared: Arc<Semaphore>,
}

impl Memory {
    /// Creates a budget of this many bytes.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let of = |bytes: usize| Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { all: of(bytes), shared: of(bytes / 2) })
    }

    /// Reserves memory until the returned value is dropped after the response.
    pub(crate) fn reserve(&self, bytes: u32) -> Result<Held, AgentError> {
        let all = self.all.clone().try_acquire_many_owned(bytes).map_err(|_| {
            let message = "the host's memory for the output of commands and for files is in use: try again when \
                           some have ended, or raise agent.output_memory";
            AgentError::new(ErrorCode::TooManyRequests, message)
        })?;
        Ok(Held { all, shared: None })
    }
}

/// Memory that the large outputs of one guest hold.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    held: Arc<AtomicUsize>,
}

impl Share {
    /// Creates the account of a guest that holds nothing.
    pub(crate) fn of(memory: Arc<Memory>) -> Self {
        Self { memory, held: Arc::default() }
    }

    /// Budget of all guests.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Reserves memory for more output of a command; returns false if others hold it.
    pub(crate) fn grow(&self, held: &mut Held, bytes: usize) -> bool {
        let Ok(number) = u32::try_from(bytes) else { return false };
        let own = self.held.load(Ordering::Relaxed) + bytes;
        if own > self.memory.shared.available_permits().saturating_sub(bytes) {
            return false;
        }
        let Ok(shared) = self.memory.shared.clone().try_acquire_many_owned(number) else { return false };
        let Ok(all) = self.memory.all.clone().try_acquire_many_owned(number) else { return false };
        self.held.fetch_add(bytes, Ordering::Relaxed);
        held.all.merge(all);
        match &mut held.shared {
            Some(of_guest) => {
                of_guest.permit.merge(shared);
                of_guest.bytes += bytes;
            }
            None => held.shared = Some(OfGuest { permit: shared, bytes, held: self.held.clone() }),
        }
        true
    }
}

/// Reserved memory; dropping this releases it.
#[derive(Debug)]
pub(crate) struct Held {
    all: OwnedSemaphorePermit,
    shared: Option<OfGuest>,
}

#[derive(Debug)]
struct OfGuest {
    permit: OwnedSemaphorePermit,
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Drop for OfGuest {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_guests_holds_more_than_there_is() -> Result<(), AgentError> {
        const MIB: usize = 1 << 20;
        let memory = Memory::new(64 * MIB);
        let take_all = |guest: &Share| -> Result<(Held, usize), AgentError> {
            let mut held = memory.reserve(COMMAND)?;
            let mut bytes = 0;
            while guest.grow(&mut held, MIB) {
                bytes += MIB;
            }
            Ok((held, bytes))
        };
        let guests: Vec<Share> = (0..3).map(|_| Share::of(memory.clone())).collect();
        let (first, most) = take_all(&guests[0])?;
        assert_eq!(most, 16 * MIB, "a half of the shared half");
        let (second, less) = take_all(&guests[1])?;
        assert_eq!(less, 8 * MIB, "a half of what is left");
        assert_eq!(take_all(&guests[0])?.1, 0, "nobody takes more than the others can");
        let mut streams = Vec::new();
        while let Ok(stream) = memory.reserve(STREAM) {
            streams.push(stream);
        }
        assert_eq!(streams.len() * STREAM as usize / MIB, 39, "the rest is for streams");
        let refusal = memory.reserve(STREAM).expect_err("full");
        assert_eq!(refusal.code, ErrorCode::TooManyRequests);
        drop((first, second, streams));
        assert_eq!(take_all(&guests[2])?.1, 16 * MIB, "all of it is free again");
        assert_eq!(memory.all.available_permits(), 64 * MIB);
        assert!(guests.iter().all(|guest| guest.held.load(Ordering::Relaxed) == 0));
        Ok(())
    }
}
