// SPDX-License-Identifier: Apache-2.0
//! First message of Firecracker to a page server: where the guest's memory is, and the userfaultfd of it.
//!
//! Source: https://github.com/firecracker-microvm/firecracker/blob/main/docs/snapshotting/handling-page-faults-on-snapshot-resume.md

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;

use crate::BLOCK_SIZE;

/// Largest message in bytes. A guest has one region, or two if its memory is larger than 3 GiB.
const MESSAGE_MAX: usize = 16 << 10;
const SIZE: u64 = BLOCK_SIZE as u64;

/// A part of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Region {
    /// Address in the VMM.
    #[serde(rename = "base_host_virt_addr")]
    pub(super) address: u64,
    /// Number of bytes.
    pub(super) size: u64,
    /// Offset in the memory in bytes.
    pub(super) offset: u64,
}

/// Parts of a guest's memory that are known to be whole blocks inside of it.
#[derive(Debug)]
pub(super) struct Regions(Vec<Region>);

impl Region {
    fn is_sound(&self, memory: u64) -> bool {
        let end = self.offset.checked_add(self.size);
        let whole = [self.address, self.size, self.offset].iter().all(|number| number.is_multiple_of(SIZE));
        whole && self.address.checked_add(self.size).is_some() && end.is_some_and(|end| end <= memory)
    }
}

impl Regions {
    fn parse(message: &[u8], memory: u64) -> io::Result<Self> {
        let regions: Vec<Region> = serde_json::from_slice(message)?;
        if regions.iter().all(|region| region.is_sound(memory)) {
            return Ok(Self(regions));
        }
        let reason = format!("the VMM's memory is not that of the snapshot: {regions:?} of {memory} bytes");
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    /// Block at this address.
    pub(super) fn block(&self, address: u64) -> Option<u64> {
        let inside = |region: &&Region| (region.address..region.address + region.size).contains(&address);
        let region = self.0.iter().find(inside)?;
        Some((address - region.address + region.offset) / SIZE)
    }

    /// Address of a block, and the first block after its region.
    pub(super) fn address(&self, block: u64) -> Option<(u64, u64)> {
        let at = block * SIZE;
        let inside = |region: &&Region| (region.offset..region.offset + region.size).contains(&at);
        let region = self.0.iter().find(inside)?;
        Some((at - region.offset + region.address, (region.offset + region.size) / SIZE))
    }
}

/// Receives the message of a memory of this size.
pub(super) fn receive(stream: &UnixStream, memory: u64) -> io::Result<(Regions, OwnedFd)> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| io::Error::other("the VMM sent no userfaultfd"))?;
    Ok((Regions::parse(&bytes[..received.bytes], memory)?, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 30;

    fn region(address: u64, size: u64, offset: u64) -> String {
        format!(
            r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":4096,"page_size_kib":4096}}"#
        )
    }

    #[test]
    fn addresses_are_found_in_their_region() {
        let text = format!("[{},{}]", region(0x7000_0000, 8192, 0), region(0x9000_0000, 4096, 8192));
        let regions = Regions::parse(text.as_bytes(), MEMORY).unwrap();
        assert_eq!(regions.block(0x7000_1fff), Some(1));
        assert_eq!(regions.block(0x7000_2000), None);
        assert_eq!(regions.block(0x9000_0000), Some(2));
        assert_eq!(regions.address(1), Some((0x7000_1000, 2)));
        assert_eq!(regions.address(2), Some((0x9000_0000, 3)));
        assert_eq!(regions.address(3), None);
    }

    #[test]
    fn memory_that_is_not_the_snapshots_is_refused() {
        let bad = [
            region(0x7000_0000, MEMORY + 4096, 0),
            region(0x7000_0000, 4096, MEMORY),
            region(0x7000_0001, 4096, 0),
            region(0x7000_0000, 4096, 1),
            region(u64::MAX - 4095, 8192, 0),
            region(0x7000_0000, 4096, u64::MAX - 4095),
        ];
        for bad in bad {
            assert!(Regions::parse(format!("[{bad}]").as_bytes(), MEMORY).is_err(), "{bad}");
        }
        assert!(Regions::parse(b"{", MEMORY).is_err());
    }
}
