// SPDX-License-Identifier: Apache-2.0
//! Simulated microVM: opens a slot's tap device and writes frames.

use std::{
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use wrenn_network::{GUEST_ADDRESS, SlotSpec};

use super::{PATIENCE, frames, inside, space::Space, wait_until_up};

/// Size of `struct virtio_net_hdr`; all zero means that nothing is offloaded.
const HEADER: usize = 10;

pub struct Guest {
    tap: File,
}

impl Guest {
    pub fn new(slot: &SlotSpec) -> Self {
        let tap = Space::at(&slot.netns).run(|| open_tap("tap0"));
        wait_until_up(|| inside(slot, &["ip", "link", "show", "tap0"]));
        Self { tap }
    }

    /// Sends a frame.
    pub fn raw(&self, frame: &[u8]) {
        let written = (&self.tap).write(&[&[0; HEADER][..], frame].concat()).unwrap();
        assert_eq!(written, HEADER + frame.len());
    }

    /// Sends an IP packet with correct addresses.
    pub fn packet(&self, to: Ipv4Addr, protocol: u8, body: &[u8]) {
        let packet = frames::ipv4(GUEST_ADDRESS, to, protocol, body);
        self.raw(&frames::ether(frames::TAP_MAC, frames::GUEST_MAC, frames::IPV4, &packet));
    }

    pub fn udp(&self, from: u16, to: (Ipv4Addr, u16), payload: &str) {
        self.packet(to.0, frames::UDP, &frames::udp(from, to.1, payload.as_bytes()));
    }

    fn readable(&self, wait: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: pointer and count describe one live entry.
        unsafe { libc::poll(&raw mut poll, 1, wait.as_millis() as i32) > 0 }
    }

    fn read(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = (&self.tap).read(&mut buffer).unwrap();
        buffer[HEADER..length].to_vec()
    }

    /// Reads all frames that have arrived.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while self.readable(Duration::ZERO) {
            all.push(self.read());
        }
        all
    }

    /// Waits for a frame that matches and ignores others.
    pub fn drain_until(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.readable(PATIENCE) {
                let frame = self.read();
                if wanted(&frame) {
                    return frame;
                }
            }
        }
        panic!("no such frame came");
    }

    /// Waits for a packet with this payload; returns its frame and the frames received before it.
    pub fn expect(&self, payload: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (begin, mut others) = (Instant::now(), Vec::new());
        while begin.elapsed() < PATIENCE {
            if self.readable(PATIENCE) {
                let frame = self.read();
                if frames::holds(&frame, payload) {
                    return (frame, others);
                }
                others.push(frame);
            }
        }
        panic!("{payload:?} did not come, but {} others", others.len());
    }
}

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

fn open_tap(name: &str) -> File {
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the descriptor is open, the request has the kernel's layout and outlives the call.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }, 0);
    tap
}
