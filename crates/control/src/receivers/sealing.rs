// SPDX-License-Identifier: Apache-2.0
//! Encryption of the configurations of channels, which hold secrets: AES-256-GCM with a key of the servers' key file, bound to
//! the channel. The first key of the file encrypts; all of them decrypt, so that a key can be exchanged without a pause.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, ensure};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use uuid::Uuid;

/// Length of a key in bytes.
const KEY: usize = 32;
/// Maximum number of keys in a file, and maximum size of the file in bytes.
const KEYS_MAX: usize = 16;
const FILE_MAX: u64 = 64 << 10;
/// What is encrypted with a key of this file, apart from the channel.
const PURPOSE: &[u8] = b"wrenn channel 1";

/// Keys of the servers, the one that encrypts first.
#[derive(Default)]
pub(crate) struct SealingKeys(Vec<(i32, RandomizedNonceKey)>);

/// A text that is encrypted, and the number of its key.
pub(crate) struct Sealed {
    pub(crate) key: i32,
    pub(crate) bytes: Vec<u8>,
}

/// Returns the content of a key file with one new key of this number.
pub fn new_channel_key(number: u32) -> anyhow::Result<String> {
    let mut key = [0; KEY];
    rand::fill(&mut key).ok().context("the system gives no random numbers")?;
    let mut line = format!("{number} ");
    for byte in key {
        write!(line, "{byte:02x}")?;
    }
    line.push('\n');
    Ok(line)
}

impl SealingKeys {
    /// Reads a key file; there are no keys without one.
    pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = || -> anyhow::Result<String> {
            ensure!(std::fs::metadata(file)?.len() <= FILE_MAX, "it has more than {FILE_MAX} bytes");
            Ok(std::fs::read_to_string(file)?)
        };
        text().and_then(|text| Self::parse(&text)).with_context(|| {
            format!(
                "the key file {} cannot be used: each line has a number and 64 hexadecimal digits, as \
                 `echo \"1 $(openssl rand -hex 32)\"` makes it (server.channels_key_file)",
                file.display()
            )
        })
    }

    /// Parses the lines of a key file. No error quotes a line.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut keys: Vec<(i32, RandomizedNonceKey)> = Vec::new();
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let (number, digits) = line.split_once(' ').with_context(|| format!("line {at} has one word"))?;
            let number: i32 =
                number.parse().ok().filter(|number| *number > 0).with_context(|| {
                    format!("line {at} does not begin with a number from 1 to {}", i32::MAX)
                })?;
            let key = bytes(digits.trim()).with_context(|| format!("line {at} has no key of {KEY} bytes"))?;
            ensure!(
                keys.iter().all(|(other, _)| *other != number),
                "there are two keys of the number {number}"
            );
            let key = RandomizedNonceKey::new(&AES_256_GCM, &key).ok().context("a key is not taken")?;
            keys.push((number, key));
        }
        ensure!((1..=KEYS_MAX).contains(&keys.len()), "it has {} keys, not 1 to {KEYS_MAX}", keys.len());
        Ok(Self(keys))
    }

    /// Returns the number of the key that encrypts; `None` if there is none.
    pub(crate) fn current(&self) -> Option<i32> {
        self.0.first().map(|(number, _)| *number)
    }

    /// Encrypts a text of a channel; `None` without a key.
    pub(crate) fn seal(&self, channel: Uuid, text: &[u8]) -> Option<Sealed> {
        let (number, key) = self.0.first()?;
        let mut sealed = text.to_vec();
        let nonce = key.seal_in_place_append_tag(Aad::from(aad(channel)), &mut sealed).ok()?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut sealed);
        Some(Sealed { key: *number, bytes })
    }

    /// Decrypts a text of a channel; `None` if the key is not there, or what was encrypted was changed.
    pub(crate) fn open(&self, channel: Uuid, sealed: &Sealed) -> Option<Vec<u8>> {
        let (_, key) = self.0.iter().find(|(number, _)| *number == sealed.key)?;
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        key.open_in_place(nonce, Aad::from(aad(channel)), &mut text).ok().map(|text| text.to_vec())
    }
}

/// What the encryption is bound to: the text of one channel is none of another one.
fn aad(channel: Uuid) -> Vec<u8> {
    [PURPOSE, channel.as_bytes()].concat()
}

/// Reads the digits of a key.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    if digits.len() != 2 * KEY || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..2 * KEY).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> String {
        new_channel_key(number).expect("a key")
    }

    fn keys(lines: &[&str]) -> SealingKeys {
        SealingKeys::parse(&lines.concat()).expect("keys")
    }

    #[test]
    fn what_was_sealed_is_opened_for_its_channel_only() {
        let (keys, channel) = (keys(&[&key(1)]), Uuid::now_v7());
        let sealed = keys.seal(channel, b"a secret").expect("sealed");
        assert_eq!(keys.open(channel, &sealed).as_deref(), Some(b"a secret".as_slice()));
        assert!(keys.open(Uuid::now_v7(), &sealed).is_none());
        let again = keys.seal(channel, b"a secret").expect("sealed");
        assert_ne!(again.bytes, sealed.bytes, "a nonce is used twice");
        for at in 0..sealed.bytes.len() {
            let mut bytes = sealed.bytes.clone();
            bytes[at] ^= 1;
            assert!(keys.open(channel, &Sealed { key: 1, bytes }).is_none(), "byte {at}");
        }
        for length in 0..sealed.bytes.len() {
            let bytes = sealed.bytes[..length].to_vec();
            assert!(keys.open(channel, &Sealed { key: 1, bytes }).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn a_key_is_exchanged_without_a_pause() {
        let (old, new, channel) = (key(1), key(2), Uuid::now_v7());
        let sealed = keys(&[&old]).seal(channel, b"a secret").expect("sealed");
        let both = keys(&["# the new one\n", &new, "\n", &old]);
        assert_eq!(both.current(), Some(2));
        assert!(both.open(channel, &sealed).is_some());
        let resealed = both.seal(channel, b"a secret").expect("sealed");
        assert!(keys(&[&new]).open(channel, &resealed).is_some());
        assert!(keys(&[&new]).open(channel, &sealed).is_none());
        assert!(keys(&[&key(1)]).open(channel, &sealed).is_none(), "another key of its number opens it");
    }

    #[test]
    fn wrong_files_are_refused_and_not_quoted() {
        let digits = "ab".repeat(32);
        let twice = format!("1 {digits}\n1 {digits}");
        for wrong in
            ["", "1", "0 ab", "x ab", &format!("1 {}", "zz".repeat(32)), &format!("-1 {digits}"), &twice]
        {
            let told = SealingKeys::parse(wrong).err().map(|error| format!("{error:#}")).expect("refused");
            assert!(!told.contains(&digits) && !told.contains("zz"), "{told}");
        }
        assert!(SealingKeys::read(Some(Path::new("/nowhere/key"))).is_err());
        let none = SealingKeys::read(None).expect("no keys");
        assert!(none.current().is_none() && none.seal(Uuid::now_v7(), b"x").is_none());
    }
}
