// SPDX-License-Identifier: Apache-2.0
//! Encoders of network frames.

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];
pub const GUEST_MAC: Mac = [2, 0xfc, 0, 0, 0, 5];
pub const TAP_MAC: Mac = [2, 0xfc, 0, 0, 0, 0x16];
pub const BROADCAST: Mac = [0xff; 6];
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub fn ether(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

/// Inserts a VLAN tag into a frame.
pub fn tagged(frame: &[u8], tag: u16, vlan: u16) -> Vec<u8> {
    [&frame[..12], &tag.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// `options` must be a multiple of four bytes.
pub fn ipv4_with(options: &[u8], from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let total = (words * 4 + body.len()) as u16;
    let mut head = vec![0x40 | words as u8, 0];
    head.extend_from_slice(&total.to_be_bytes());
    head.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
    head.extend_from_slice(&from.octets());
    head.extend_from_slice(&to.octets());
    head.extend_from_slice(options);
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    [&head, body].concat()
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    ipv4_with(&[], from, to, protocol, body)
}

pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    // The checksum is optional in IPv4.
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// First packet of a TCP connection.
pub fn syn(addresses: (Ipv4Addr, Ipv4Addr), from: u16, to: u16) -> Vec<u8> {
    let mut segment = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    segment.extend_from_slice(&[0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&addresses.0.octets()[..], &addresses.1.octets(), &[0, TCP, 0, 20], &segment].concat();
    segment[16..18].copy_from_slice(&checksum(&pseudo));
    segment
}

pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0][..], &rest, payload].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

pub fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

/// IPv6 packet with a UDP datagram.
pub fn ipv6(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let body = udp(7, 7, payload);
    let address =
        |last: u16| [[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(), &last.to_be_bytes()].concat();
    let head = [0x60, 0, 0, 0, 0, body.len() as u8, UDP, 64];
    [&head[..], &address(from), &address(to), &body].concat()
}

pub fn kind(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// Source and destination of an IPv4 frame.
pub fn addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let both = (address(26)?, address(30)?);
    (kind(frame) == IPV4).then_some(both)
}

pub fn holds(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|window| window == text.as_bytes())
}
