// SPDX-License-Identifier: Apache-2.0
//! Simulated resolvers of the host. They know every name, with the same two addresses, or keep silent, and count what they are
//! asked.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Addresses of the host's resolvers, in the order in which guests ask them.
pub(super) const RESOLVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 53), Ipv4Addr::new(203, 0, 113, 54)];
/// Addresses of every name.
pub(super) const FOUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
pub(super) const SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80);

/// Types of questions: for addresses of IPv4 and of IPv6.
pub(super) const A: u16 = 1;
pub(super) const AAAA: u16 = 28;

/// Length of the head of a message, which the question follows.
const HEAD: usize = 12;

/// A simulated resolver.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    silent: AtomicBool,
    asked: Mutex<Vec<Question>>,
}

/// A question: for addresses of which name and of which type.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    name: String,
    kind: u16,
}

impl Resolver {
    /// Makes it swallow what it is asked, or answer again.
    pub(super) fn keep_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// Number of times that it was asked this.
    pub(super) fn times_asked(&self, name: &str, kind: u16) -> usize {
        let question = Question { name: name.to_owned(), kind };
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|other| **other == question).count()
    }

    /// Returns what it answers to a datagram; nothing while it is silent. What is no question is sent back.
    pub(super) fn answer(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let Some((question, end)) = Question::read(datagram) else { return Some(datagram.to_vec()) };
        let answer = question.answer(datagram, end);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        (!self.silent.load(Ordering::Relaxed)).then_some(answer)
    }
}

impl Question {
    /// Reads the question of a message, and where it ends. `None` if there is none.
    fn read(message: &[u8]) -> Option<(Self, usize)> {
        let (mut at, mut labels) = (HEAD, Vec::new());
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(message.get(at..at + length)?));
            at += length;
        }
        // Its class follows its type.
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        Some((Self { name: labels.join("."), kind }, at + 4))
    }

    /// Answers the message, whose question ends there, with the address of its type, or none.
    fn answer(&self, message: &[u8], end: usize) -> Vec<u8> {
        let address = match self.kind {
            A => FOUR.octets().to_vec(),
            AAAA => SIX.octets().to_vec(),
            _ => Vec::new(),
        };
        let mut answer = message[..2].to_vec();
        // An answer of a server that asks others, to one question, with one address or none.
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(!address.is_empty()), 0, 0, 0, 0]);
        answer.extend(message.get(HEAD..end).unwrap_or_default());
        if !address.is_empty() {
            // The name is that of the question; the answer is valid for a minute.
            answer.extend([0xc0, HEAD as u8]);
            answer.extend(self.kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
            answer.extend(address);
        }
        answer
    }
}
