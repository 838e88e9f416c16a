// SPDX-License-Identifier: Apache-2.0
//! Test guest of a few dozen instructions, for microVM tests on machines whose KVM cannot run Linux.
//!
//! It reports over the serial port that it runs and that its memory is unchanged; see `guest.S`.

/// Guest as an ELF file with a PVH entry point; empty on other architectures than x86-64.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// First byte that the guest prints.
pub const STARTED: u8 = b'S';
/// Byte that the guest prints each time it finds its pattern intact.
pub const INTACT: u8 = b'K';
/// Byte that the guest prints if its memory has changed unexpectedly.
pub const BROKEN: u8 = b'X';

/// Page size in bytes.
pub const PAGE: u64 = 4096;
/// Guest-physical address of the 32-bit round counter.
pub const COUNTER: u64 = 0x30_0000;
/// Guest-physical address of the pattern.
pub const PATTERN: u64 = 0x40_0000;
/// Number of 32-bit words of the pattern; word `i` is `i ^ 0x5a5a_a5a5`.
pub const PATTERN_WORDS: u32 = 4096;
/// Guest-physical address of the first of [`RING_PAGES`] pages that the guest writes in turn.
pub const RING: u64 = 0x50_0000;
/// Number of pages at [`RING`].
pub const RING_PAGES: u64 = 8;

/// Returns whether the guest writes to the page at this address in its rounds.
pub fn changes(address: u64) -> bool {
    let page = address / PAGE * PAGE;
    page == COUNTER || (RING..RING + RING_PAGES * PAGE).contains(&page)
}
