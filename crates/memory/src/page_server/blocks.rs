// SPDX-License-Identifier: Apache-2.0
//! State of each block of a guest's memory: absent, filled, or freed by the guest.

/// State of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its content is in the snapshot.
    Absent,
    /// The guest has it.
    Filled,
    /// The guest has freed it, so it is zero.
    Freed,
}

/// States of all blocks, two bits each.
pub(super) struct Blocks {
    filled: Vec<u64>,
    freed: Vec<u64>,
}

impl Blocks {
    /// Absent blocks of this number.
    pub(super) fn new(blocks: u64) -> Self {
        let words = blocks.div_ceil(64) as usize;
        Self { filled: vec![0; words], freed: vec![0; words] }
    }

    pub(super) fn state(&self, block: u64) -> State {
        let (word, bit) = place(block);
        if self.filled[word] & bit != 0 {
            State::Filled
        } else if self.freed[word] & bit != 0 {
            State::Freed
        } else {
            State::Absent
        }
    }

    pub(super) fn fill(&mut self, blocks: std::ops::Range<u64>) {
        for (word, bit) in blocks.map(place) {
            self.filled[word] |= bit;
            self.freed[word] &= !bit;
        }
    }

    pub(super) fn free(&mut self, blocks: std::ops::Range<u64>) {
        for (word, bit) in blocks.map(place) {
            self.filled[word] &= !bit;
            self.freed[word] |= bit;
        }
    }

    /// First block from `from` up to, and without, `to` whose state is another one than that of `from`.
    pub(super) fn change(&self, from: u64, to: u64) -> u64 {
        let first = self.state(from);
        (from..to).find(|block| self.state(*block) != first).unwrap_or(to)
    }
}

/// Word and bit of a block.
fn place(block: u64) -> (usize, u64) {
    ((block / 64) as usize, 1 << (block % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_is_filled_again_and_freed_again() {
        let mut blocks = Blocks::new(130);
        assert_eq!(blocks.change(0, 130), 130);
        blocks.fill(60..70);
        assert_eq!([59, 60, 69, 70].map(|block| blocks.change(block, 130)), [60, 70, 70, 130]);
        blocks.free(65..130);
        let states = [60, 65, 129].map(|block| blocks.state(block));
        assert_eq!(states, [State::Filled, State::Freed, State::Freed]);
        blocks.fill(129..130);
        assert_eq!(blocks.state(129), State::Filled);
        assert_eq!(blocks.state(0), State::Absent);
    }
}
