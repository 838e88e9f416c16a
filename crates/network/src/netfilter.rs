// SPDX-License-Identifier: Apache-2.0
//! Netlink socket to netfilter, and encoding of its messages (linux/netfilter/nfnetlink.h).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Maximum size of one message in bytes; more never fits the socket's buffer.
pub(crate) const MAX_MESSAGE: usize = 192 * 1024;

const HEADER: usize = 16;
/// Size of the netfilter header: family, version and resource.
const FAMILY_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const ATTRIBUTE_KIND: u16 = 0x3FFF;

/// Buffer in which messages are built.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    /// Offset of the last message.
    begin: usize,
}

/// Header fields of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Subsystem and command.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) family: u8,
    pub(crate) resource: u16,
}

impl Messages {
    /// Appends a message; `fill` adds its attributes.
    pub(crate) fn message(&mut self, head: Head, fill: impl FnOnce(&mut Self)) {
        self.begin = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(head.flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&head.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[head.family, 0]);
        self.bytes.extend_from_slice(&head.resource.to_be_bytes());
        let begin = self.begin;
        fill(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - begin) as u16;
        self.bytes[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn raw(&mut self, kind: u16, bytes: &[u8]) {
        self.attribute(kind, |messages| messages.bytes.extend_from_slice(bytes));
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |messages| {
            messages.bytes.extend_from_slice(text.as_bytes());
            messages.bytes.push(0);
        });
    }

    pub(crate) fn number(&mut self, kind: u16, number: u32) {
        self.raw(kind, &number.to_be_bytes());
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    /// Appends attributes as received from the kernel.
    pub(crate) fn append(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Message from the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// Content after the header.
    pub(crate) body: &'a [u8],
}

fn number_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Iterates over the messages of a datagram; ignores a truncated last one.
pub(crate) fn received(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(number_at(bytes, 0)?) as usize;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: u16::from_ne_bytes(number_at(message, 4)?),
            sequence: u32::from_ne_bytes(number_at(message, 8)?),
            body: &message[HEADER..],
        })
    })
}

impl<'a> Received<'a> {
    /// Returns the error code of an NLMSG_ERROR; 0 is an acknowledgement.
    pub(crate) fn error(&self) -> Option<i32> {
        let is_error = i32::from(self.kind) == libc::NLMSG_ERROR;
        number_at(self.body, 0).filter(|_| is_error).map(i32::from_ne_bytes)
    }

    /// Returns the kernel's error text, if any.
    pub(crate) fn reason(&self) -> Option<String> {
        const MESSAGE: u16 = 1;
        // Skip the error number and the header of the rejected message.
        let attributes = self.body.get(4 + HEADER..)?;
        let text = attribute(attributes, MESSAGE)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    }

    /// Returns the attributes of a netfilter message.
    pub(crate) fn attributes(&self) -> &'a [u8] {
        self.body.get(FAMILY_HEADER..).unwrap_or_default()
    }
}

/// Returns the content of the first attribute of a type.
pub(crate) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(number_at(bytes, 0)?) as usize;
        let kind = u16::from_ne_bytes(number_at(bytes, 2)?) & ATTRIBUTE_KIND;
        let contents = bytes.get(4..length)?;
        if kind == wanted {
            return Some(contents);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Socket to netfilter, bound to the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        const TYPE: libc::c_int = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers are passed; the returned descriptor is owned here alone.
        let socket = unsafe {
            let fd = checked(libc::socket(libc::AF_NETLINK, TYPE, libc::NETLINK_NETFILTER))?;
            Self(OwnedFd::from_raw_fd(fd))
        };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            let (value, size) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
            // SAFETY: the value is an int that outlives the call.
            checked(unsafe { libc::setsockopt(socket.fd(), libc::SOL_NETLINK, option, value, size) })?;
        }
        Ok(socket)
    }

    fn fd(&self) -> libc::c_int {
        self.0.as_raw_fd()
    }

    pub(crate) fn send(&self, messages: &Messages) -> io::Result<()> {
        if messages.bytes.len() > MAX_MESSAGE {
            return Err(io::Error::other(format!("{} bytes are too much at once", messages.bytes.len())));
        }
        let (data, length) = (messages.bytes.as_ptr().cast(), messages.bytes.len());
        // SAFETY: pointer and length describe a live buffer.
        let sent = unsafe { libc::send(self.fd(), data, length, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the next datagram, or `None` if there is none. Never blocks: the kernel answers before a send
    /// returns, or while earlier answers are read.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let (data, length) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: pointer and length describe a live buffer.
        let got = unsafe { libc::recv(self.fd(), data, length, libc::MSG_DONTWAIT) };
        if got >= 0 {
            return Ok(buffer.get(..got as usize));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_found_again() {
        let head = Head { kind: 7, flags: 0, sequence: 9, family: 2, resource: 10 };
        let mut messages = Messages::default();
        messages.message(head, |message| {
            message.text(1, "abc");
            message.nested(2, |inner| inner.number(3, 0x0102_0304));
        });
        messages.message(head, |message| message.raw(1, &[5]));
        let both: Vec<_> = received(messages.bytes()).collect();
        assert_eq!(both.len(), 2);
        let attributes = both[0].attributes();
        assert_eq!(attribute(attributes, 1).unwrap(), b"abc\0");
        assert_eq!(attribute(attribute(attributes, 2).unwrap(), 3).unwrap(), [1, 2, 3, 4]);
        assert_eq!(attribute(both[1].attributes(), 1).unwrap(), [5]);
        assert_eq!(both[1].sequence, 9);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes: Vec<u8>, kind: u16) {
            for message in received(&bytes) {
                let _ = (message.error(), message.reason(), attribute(message.attributes(), kind));
            }
        }
    }
}
