// SPDX-License-Identifier: Apache-2.0
//! Minimal page server: answers each userfaultfd fault with its page from a file.
//! Constants are those of linux/userfaultfd.h.

use std::{
    fs::File,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const PAGE: u64 = 4096;

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

pub(crate) struct PageServer {
    faults: Arc<AtomicUsize>,
}

/// Receives Firecracker's first message: the address ranges of guest memory, and the userfaultfd.
fn handshake(stream: &UnixStream) -> (Vec<serde_json::Value>, OwnedFd) {
    let mut bytes = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty()).unwrap();
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    (serde_json::from_slice(&bytes[..received.bytes]).unwrap(), descriptor.expect("a userfaultfd"))
}

fn serve(stream: &mut UnixStream, memory: &File, faults: &AtomicUsize) {
    let (regions, uffd) = handshake(stream);
    let number = |region: &serde_json::Value, name: &str| region[name].as_u64().unwrap();
    loop {
        let mut waiting = [PollFd::new(&uffd, PollFlags::IN), PollFd::new(&*stream, PollFlags::IN)];
        poll(&mut waiting, None).unwrap();
        if !waiting[1].revents().is_empty() {
            // Firecracker has exited.
            return assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        }
        let mut event = [0_u8; 32];
        match rustix::io::read(&uffd, &mut event) {
            Ok(32) => {}
            // The fault was answered by an earlier copy, or the process is gone.
            _ => continue,
        }
        assert_eq!(event[0], UFFD_EVENT_PAGEFAULT);
        let address = u64::from_ne_bytes(event[16..24].try_into().unwrap()) / PAGE * PAGE;
        let region = regions.iter().find(|region| {
            let base = number(region, "base_host_virt_addr");
            (base..base + number(region, "size")).contains(&address)
        });
        let region = region.expect("a fault in guest memory");
        let mut page = vec![0_u8; PAGE as usize];
        let offset = address - number(region, "base_host_virt_addr") + number(region, "offset");
        memory.read_exact_at(&mut page, offset).unwrap();
        let mut copy =
            Copy { destination: address, source: page.as_ptr() as u64, length: PAGE, mode: 0, copied: 0 };
        // SAFETY: the kernel reads one page from the buffer, which lives until after the call.
        let result = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        let error = std::io::Error::last_os_error();
        assert!(result == 0 || error.raw_os_error() == Some(libc::EEXIST), "{error}");
        faults.fetch_add(1, Ordering::Relaxed);
    }
}

impl PageServer {
    /// Serves the memory of one microVM from a file until the microVM exits.
    pub(crate) fn start(socket: &Path, memory: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        std::fs::set_permissions(socket, PermissionsExt::from_mode(0o666)).unwrap();
        let (memory, faults) = (File::open(memory).unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = faults.clone();
        std::thread::spawn(move || serve(&mut listener.accept().unwrap().0, &memory, &counted));
        Self { faults }
    }

    /// Number of pages served.
    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }
}
