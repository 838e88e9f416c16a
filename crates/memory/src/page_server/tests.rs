// SPDX-License-Identifier: Apache-2.0
//! Page server of a memory in this process.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
    thread::JoinHandle,
    time::Instant,
};

use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;
use crate::{BLOCK_SIZE, Mapping, Range, Source, mapping::tests::build, working_set::Used};

const SIZE: usize = BLOCK_SIZE as usize;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const API: u32 = 0xc018_aa3f;
const REGISTER: u32 = 0xc020_aa00;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const MODE_MISSING: u64 = 1;

/// Memory of a guest that a server fills.
struct Guest {
    address: *mut u8,
    blocks: usize,
    stream: UnixStream,
    server: JoinHandle<io::Result<()>>,
}

fn call(file: &OwnedFd, request: u32, argument: &mut [u64]) {
    // SAFETY: the arrays have the layout of the structures, which are 64-bit numbers.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "{request:x}: {}", io::Error::last_os_error());
}

/// Makes a userfaultfd for anonymous memory of this size.
fn register(blocks: usize) -> (OwnedFd, *mut u8) {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
    // SAFETY: a system call on a number.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    assert!(number >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made.
    let file = unsafe { OwnedFd::from_raw_fd(number as RawFd) };
    call(&file, API, &mut [0xaa, FEATURE_EVENT_REMOVE, 0]);
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at an address that the kernel chooses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), blocks * SIZE, access, kind, -1, 0) };
    assert_ne!(address, libc::MAP_FAILED);
    call(&file, REGISTER, &mut [address as u64, (blocks * SIZE) as u64, MODE_MISSING, 0]);
    (file, address.cast())
}

impl Guest {
    fn start(layers: &Layers, working_set: &File) -> Self {
        let blocks = layers.header().blocks() as usize;
        let (userfault, address) = register(blocks);
        let (stream, other) = UnixStream::pair().unwrap();
        let text = format!(
            r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":4096}}]"#,
            address as u64,
            blocks * SIZE
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [userfault.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&stream, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
        let (layers, working_set) = (layers.clone(), working_set.try_clone().unwrap());
        let server = std::thread::spawn(move || serve(other, &layers, &working_set));
        Self { address, blocks, stream, server }
    }

    /// Reads the first and the last byte of a block, as a guest does.
    fn read(&self, block: usize) -> [u8; 2] {
        assert!(block < self.blocks);
        // SAFETY: inside of the memory, which lives as long as this.
        [0, SIZE - 1].map(|at| unsafe { self.address.add(block * SIZE + at).read_volatile() })
    }

    /// Gives blocks back to the kernel, as a balloon does.
    fn free(&self, block: usize, blocks: usize) {
        assert!(block + blocks <= self.blocks);
        // SAFETY: inside of the memory, to which nothing refers.
        let freed = unsafe {
            libc::madvise(self.address.add(block * SIZE).cast(), blocks * SIZE, libc::MADV_DONTNEED)
        };
        assert_eq!(freed, 0);
    }

    /// Blocks that are filled, without touching them.
    fn resident(&self) -> Vec<usize> {
        let mut seen = vec![0; self.blocks];
        // SAFETY: the vector has a byte for each page.
        let looked = unsafe { libc::mincore(self.address.cast(), self.blocks * SIZE, seen.as_mut_ptr()) };
        assert_eq!(looked, 0);
        (0..self.blocks).filter(|block| seen[*block] & 1 != 0).collect()
    }

    fn wait_resident(&self, all: &[usize]) {
        let begin = Instant::now();
        while !all.iter().all(|block| self.resident().contains(block)) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{:?} of {all:?}", self.resident());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the guest, and then the server.
    fn end(self) -> io::Result<()> {
        drop(self.stream);
        let ended = self.server.join().unwrap();
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(self.address.cast(), self.blocks * SIZE) };
        ended
    }
}

/// Memory with blocks of these bytes, each in one of three generations; 0 is a hole.
fn layers(content: &[u8]) -> Layers {
    let files: BTreeMap<_, _> =
        (0..3).map(|number| (build(number), Arc::new(tempfile::tempfile().unwrap()))).collect();
    let (mut mapping, mut next) = (Mapping::default(), [0; 3]);
    for (block, byte) in content.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        let of = block / 5 % 3;
        files[&build(of as u64)].write_all_at(&vec![*byte; SIZE], next[of] * SIZE as u64).unwrap();
        let source = Source::Data { build: build(of as u64), block: next[of] };
        mapping.push(Range { start: block as u64, blocks: 1, source }).unwrap();
        next[of] += 1;
    }
    let header = Header {
        block_size: BLOCK_SIZE,
        memory_size: (content.len() * SIZE) as u64,
        generation: 2,
        build: build(2),
        parent: Some(build(1)),
        mapping,
    };
    Layers::new(header, files).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The guest reads what is in the snapshot, in whatever order, and zeros where it freed memory.
    #[test]
    fn a_guest_reads_its_memory(
        content in prop::collection::vec(prop_oneof![Just(0_u8), 1..5_u8], 1..300),
        steps in prop::collection::vec((0..300_usize, prop::bool::weighted(0.2)), 1..60),
    ) {
        let set = tempfile::tempfile().unwrap();
        let guest = Guest::start(&layers(&content), &set);
        let mut expected = content;
        for (place, free) in steps {
            let block = place % expected.len();
            if free {
                let blocks = (expected.len() - block).min(7);
                guest.free(block, blocks);
                expected[block..block + blocks].fill(0);
            } else {
                prop_assert_eq!(guest.read(block), [expected[block]; 2], "block {}", block);
            }
        }
        for (block, byte) in expected.iter().enumerate() {
            prop_assert_eq!(guest.read(block), [*byte; 2], "block {}", block);
        }
        guest.end().unwrap();
    }
}

#[test]
fn what_was_used_first_is_filled_ahead_the_next_time() {
    let (content, set) = ([7; 256], tempfile::tempfile().unwrap());
    let layers = layers(&content);
    let guest = Guest::start(&layers, &set);
    assert_eq!([guest.read(200), guest.read(100)], [[7; 2]; 2]);
    guest.end().unwrap();
    let (_, used) = WorkingSet::open(&set, 256).unwrap();
    assert_eq!(used, [Used { start: 192, blocks: 16 }, Used { start: 96, blocks: 16 }]);
    let guest = Guest::start(&layers, &set);
    guest.wait_resident(&(96..112).chain(192..208).collect::<Vec<_>>());
    guest.end().unwrap();
}

#[test]
fn the_rest_is_filled_when_the_guest_is_idle() {
    let mut content = [3; 500];
    content[40..90].fill(0);
    let set = tempfile::tempfile().unwrap();
    let guest = Guest::start(&layers(&content), &set);
    let with_content: Vec<_> = (0..500).filter(|block| content[*block] != 0).collect();
    guest.wait_resident(&with_content);
    assert_eq!(guest.resident(), with_content, "zeros take no memory");
    assert_eq!(guest.read(50), [0; 2]);
    guest.end().unwrap();
    assert_eq!(WorkingSet::open(&set, 500).unwrap().1, [Used { start: 48, blocks: 16 }]);
}

#[test]
fn data_that_cannot_be_read_ends_the_server() {
    let (layers, set) = (layers(&[1; 64]), tempfile::tempfile().unwrap());
    layers.data().for_each(|file| file.set_len(0).unwrap());
    let guest = Guest::start(&layers, &set);
    // It fills the rest by itself, and nobody waits for a page that never comes.
    let Guest { server, stream, .. } = guest;
    assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    drop(stream);
}
