// SPDX-License-Identifier: Apache-2.0
//! Calls of a userfaultfd. Constants and structures are those of linux/userfaultfd.h.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;

/// Request numbers of the calls.
pub(super) const COPY: u32 = 0xc028_aa03;
pub(super) const ZEROPAGE: u32 = 0xc020_aa04;
pub(super) const WAKE: u32 = 0x8010_aa02;

/// Kinds of messages.
const PAGEFAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;
/// Number of bytes of a message, and of messages that are read at a time.
const MESSAGE: usize = 32;
const MESSAGES: usize = 64;

/// A userfaultfd of a VMM's memory, which does not block.
pub(super) struct Userfault(OwnedFd);

/// A message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The pages from the first address up to, and without, the second were freed.
    Removed(u64, u64),
}

/// Outcome of a call that fills pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// This number of bytes, at least one page.
    Bytes(u64),
    /// None: the first page has content already.
    Present,
    /// None: the memory is being changed, which a message says that is to be read first.
    Changing,
    /// None: the process has ended, or has given up this memory.
    Gone,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Userfault {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Fills absent pages from `address` on with this content, and wakes who waits for them.
    pub(super) fn copy(&self, address: u64, content: &[u8]) -> io::Result<Filled> {
        let (src, len) = (content.as_ptr() as u64, content.len() as u64);
        let mut call = UffdioCopy { dst: address, src, len, mode: 0, copy: 0 };
        // SAFETY: the kernel reads the content and writes the structure, which both outlive the call. What is written to
        // is memory of another process that its owner registered for that.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), COPY as _, &raw mut call) };
        filled(result, call.copy, len)
    }

    /// Fills absent pages from `address` on with zeros, and wakes who waits for them.
    pub(super) fn zero(&self, address: u64, len: u64) -> io::Result<Filled> {
        let mut call = UffdioZeropage { start: address, len, mode: 0, zeropage: 0 };
        // SAFETY: as above, without content.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), ZEROPAGE as _, &raw mut call) };
        filled(result, call.zeropage, len)
    }

    /// Wakes who waits for pages that have content.
    pub(super) fn wake(&self, address: u64, len: u64) {
        let range = UffdioRange { start: address, len };
        // SAFETY: the kernel reads the structure, which outlives the call. If it fails, the process has ended.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), WAKE as _, &raw const range) };
    }

    /// Reads the messages that are there.
    pub(super) fn events(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [0; MESSAGE * MESSAGES];
        let read = match rustix::io::read(&self.0, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => 0,
            read => read?,
        };
        Ok(buffer[..read].as_chunks::<MESSAGE>().0.iter().filter_map(parse).collect())
    }
}

fn parse(message: &[u8; MESSAGE]) -> Option<Event> {
    let number =
        |at: usize| message[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    match message[0] {
        PAGEFAULT => Some(Event::Fault(number(16))),
        REMOVE => Some(Event::Removed(number(8), number(16))),
        _ => None,
    }
}

fn filled(result: libc::c_int, done: i64, wanted: u64) -> io::Result<Filled> {
    if result == 0 {
        return Ok(Filled::Bytes(wanted));
    }
    let error = io::Error::last_os_error();
    match (error.raw_os_error(), u64::try_from(done)) {
        (Some(libc::EAGAIN), Ok(done)) if done > 0 => Ok(Filled::Bytes(done)),
        (Some(libc::EAGAIN), _) => Ok(Filled::Changing),
        (Some(libc::EEXIST), _) => Ok(Filled::Present),
        (Some(libc::ESRCH | libc::ENOENT), _) => Ok(Filled::Gone),
        _ => Err(error),
    }
}
