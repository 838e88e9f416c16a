// SPDX-License-Identifier: Apache-2.0
//! Loop of a page server: fills the pages that a guest waits for, those that it will need, and then all others.

use std::{collections::VecDeque, io, ops::Range, os::unix::net::UnixStream, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    blocks::{Blocks, State},
    handshake::Regions,
    userfault::{Event, Filled, Userfault},
};
use crate::{
    BLOCK_SIZE, Layers, Source,
    working_set::{Used, WorkingSet},
};

const SIZE: u64 = BLOCK_SIZE as u64;
/// Number of blocks that are filled around one that is needed: a fault costs as much as filling ten of them.
const AROUND: u64 = 16;
/// Maximum number of blocks that are filled by one call.
const AT_ONCE: u64 = 64;
/// Time without faults after which the rest of the memory is filled.
const IDLE: Duration = Duration::from_secs(1);

/// Server of one guest's memory.
pub(super) struct Server<'a> {
    stream: UnixStream,
    userfault: Userfault,
    regions: Regions,
    layers: &'a Layers,
    blocks: Blocks,
    /// Blocks that threads wait for.
    waiting: VecDeque<u64>,
    /// Parts that the guest is known to need, in their order.
    ahead: VecDeque<Used>,
    working_set: WorkingSet<'a>,
    /// Blocks before this one are filled as far as they have content; none are before the guest is idle.
    complete_to: u64,
    buffer: Vec<u8>,
}

/// Whether the guest is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Alive,
    Gone,
}

impl<'a> Server<'a> {
    pub(super) fn new(
        (stream, regions, userfault): (UnixStream, Regions, Userfault),
        layers: &'a Layers,
        (working_set, ahead): (WorkingSet<'a>, Vec<Used>),
    ) -> Self {
        Self {
            stream,
            userfault,
            regions,
            layers,
            blocks: Blocks::new(layers.header().blocks()),
            waiting: VecDeque::new(),
            ahead: ahead.into(),
            working_set,
            complete_to: 0,
            buffer: vec![0; (AT_ONCE * SIZE) as usize],
        }
    }

    /// Serves the guest until its VMM ends.
    pub(super) fn serve(mut self) -> io::Result<()> {
        let mut idle = false;
        loop {
            let limit = if !self.ahead.is_empty() || (idle && !self.is_complete()) {
                Some(Duration::ZERO)
            } else {
                (!self.is_complete()).then_some(IDLE)
            };
            match self.wait(limit)? {
                Waited::Ended => return Ok(()),
                Waited::Events => {
                    idle = false;
                    if self.answer()? == Guest::Gone {
                        return Ok(());
                    }
                }
                Waited::Nothing => {
                    idle = self.ahead.is_empty();
                    if self.work_ahead()? == Guest::Gone {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.complete_to >= self.layers.header().blocks()
    }

    /// Waits for messages of the kernel, at most for this time.
    fn wait(&self, limit: Option<Duration>) -> io::Result<Waited> {
        let limit = limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 });
        let mut open =
            [PollFd::new(&self.userfault, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut open, limit.as_ref()) {
            Err(Errno::INTR) => return Ok(Waited::Nothing),
            ready => ready?,
        };
        // The VMM sends nothing more on its stream.
        Ok(if !open[1].revents().is_empty() {
            Waited::Ended
        } else if open[0].revents().is_empty() {
            Waited::Nothing
        } else {
            Waited::Events
        })
    }

    fn read_events(&mut self) -> io::Result<()> {
        for event in self.userfault.events()? {
            match event {
                Event::Fault(address) => self.waiting.extend(self.regions.block(address)),
                Event::Removed(from, to) => {
                    let blocks = |address| self.regions.block(address);
                    let last = to.checked_sub(SIZE).and_then(blocks);
                    if let (Some(first), Some(last)) = (blocks(from), last) {
                        self.blocks.free(first..last + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills what threads wait for, with what is around it.
    fn answer(&mut self) -> io::Result<Guest> {
        self.read_events()?;
        while let Some(block) = self.waiting.pop_front() {
            let from = block / AROUND * AROUND;
            let to = (from + AROUND).min(self.layers.header().blocks());
            let state = self.blocks.state(block);
            if state == State::Absent {
                self.working_set.record(Used { start: from, blocks: (to - from) as u32 })?;
            }
            // What the guest freed stays free until it is used again.
            let (from, to) = if state == State::Freed { (block, block + 1) } else { (from, to) };
            if self.fill(from, to)? == Guest::Gone {
                return Ok(Guest::Gone);
            }
            if state == State::Filled {
                self.wake(block);
            }
            self.read_events()?;
        }
        Ok(Guest::Alive)
    }

    fn wake(&self, block: u64) {
        if let Some((address, _)) = self.regions.address(block) {
            self.userfault.wake(address, SIZE);
        }
    }

    /// Fills the next part that the guest is known to need, or some of the rest.
    fn work_ahead(&mut self) -> io::Result<Guest> {
        if let Some(Used { start, blocks }) = self.ahead.pop_front() {
            return self.fill(start, start + u64::from(blocks));
        }
        let blocks = self.layers.header().blocks();
        let rest = self.layers.header().mapping.between(self.complete_to, blocks).next();
        let Some(rest) = rest else {
            self.complete_to = blocks;
            return Ok(Guest::Alive);
        };
        let to = rest.end().min(rest.start + AT_ONCE);
        self.complete_to = to;
        self.fill(rest.start, to)
    }

    /// Fills the absent blocks from `from` up to, and without, `to`.
    fn fill(&mut self, from: u64, to: u64) -> io::Result<Guest> {
        let mut at = from;
        while at < to {
            at = match self.fill_some(at, to)? {
                Some(next) => next,
                None => return Ok(Guest::Gone),
            };
        }
        Ok(Guest::Alive)
    }

    /// Fills blocks of one source from `at` on; returns the first one that it did not look at. None if the guest is
    /// gone.
    fn fill_some(&mut self, at: u64, to: u64) -> io::Result<Option<u64>> {
        let Some((address, region_end)) = self.regions.address(at) else { return Ok(Some(at + 1)) };
        let to = self.blocks.change(at, to.min(region_end).min(at + AT_ONCE));
        let state = self.blocks.state(at);
        let (source, to) = match state {
            State::Filled => return Ok(Some(to)),
            State::Freed => (Source::Zero, to),
            State::Absent => self.source(at, to),
        };
        let filled = match source {
            Source::Zero => self.userfault.zero(address, (to - at) * SIZE),
            Source::Data { .. } => {
                let content = &mut self.buffer[..((to - at) * SIZE) as usize];
                self.layers.read(source, content)?;
                self.userfault.copy(address, content)
            }
        };
        match filled? {
            Filled::Bytes(bytes) => {
                let next = at + bytes / SIZE;
                self.note_filled(state, at..next);
                Ok(Some(next))
            }
            Filled::Present => {
                self.note_filled(state, at..at + 1);
                self.userfault.wake(address, SIZE);
                Ok(Some(at + 1))
            }
            Filled::Changing => {
                // The thread that changes the memory goes on when its message is read.
                self.read_events()?;
                std::thread::yield_now();
                Ok(Some(at))
            }
            Filled::Gone => Ok(None),
        }
    }

    /// Notes that blocks of this state were filled. Those that the guest freed stay freed: between the message that it frees them
    /// and the time when it does, zeros can be filled in that are then taken away again, and the guest would wait for ever for what
    /// counts as filled.
    fn note_filled(&mut self, state: State, blocks: Range<u64>) {
        if state == State::Absent {
            self.blocks.fill(blocks);
        }
    }

    /// Source of an absent block, and the first block up to `to` that does not continue it.
    fn source(&self, at: u64, to: u64) -> (Source, u64) {
        match self.layers.header().mapping.between(at, to).next() {
            Some(range) if range.start == at => (range.source, range.end()),
            Some(range) => (Source::Zero, range.start),
            None => (Source::Zero, to),
        }
    }
}

/// What was waited for.
enum Waited {
    Events,
    Nothing,
    /// The VMM has ended.
    Ended,
}
