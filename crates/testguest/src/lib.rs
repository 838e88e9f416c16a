//! A guest of a few dozen instructions, for tests of microVMs where no stock kernel runs.
//!
//! It says over the serial port that it runs and that its memory is what it was; see `guest.S`.

/// The guest, an ELF file with a PVH entry point; empty where the processor is no x86-64.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// What it prints first.
pub const STARTED: u8 = b'S';
/// What it prints as often as it has found its pattern in memory.
pub const INTACT: u8 = b'K';
/// What it prints when its memory has changed behind its back.
pub const BROKEN: u8 = b'X';

/// Size of a page.
pub const PAGE: u64 = 4096;
/// Guest-physical address of the number of its rounds, 32 bits.
pub const COUNTER: u64 = 0x30_0000;
/// Where its pattern begins.
pub const PATTERN: u64 = 0x40_0000;
/// How many 32-bit words the pattern has; word `i` is `i ^ 0x5a5a_a5a5`.
pub const PATTERN_WORDS: u32 = 4096;
/// The first of the [`RING_PAGES`] that it writes in turn.
pub const RING: u64 = 0x50_0000;
/// See [`RING`].
pub const RING_PAGES: u64 = 8;

/// Whether the page at this address changes while the guest runs its rounds.
pub fn changes(address: u64) -> bool {
    let page = address / PAGE * PAGE;
    page == COUNTER || (RING..RING + RING_PAGES * PAGE).contains(&page)
}
