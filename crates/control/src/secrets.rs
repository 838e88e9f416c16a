// SPDX-License-Identifier: Apache-2.0
//! Secrets: how an API key looks, and the hashes under which keys, tokens and cookies are stored.

use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Beginning of a key.
const PREFIX: &str = "wrn_";
/// The beginning that some clients demand of a key of hexadecimal digits: it stands for ours.
const PREFIX_OF_E2B: &str = "e2b_";
/// Length of the part of a key by which people recognise it.
const SHOWN: usize = 8;
/// Number of random bytes of a key.
const RANDOM: usize = 20;

/// Returns a new key of 160 random bits.
pub(crate) fn new_key() -> String {
    let mut bytes = [0_u8; RANDOM];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().fold(PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Returns the part of a key by which people recognise it.
pub(crate) fn shown(key: &str) -> &str {
    key.get(..SHOWN).unwrap_or_default()
}

/// Returns the hash under which a secret is stored.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Returns the hash under which a key is stored, in whichever form it is given.
pub(crate) fn hash_of_key(key: &str) -> [u8; 32] {
    match key.strip_prefix(PREFIX_OF_E2B) {
        Some(digits) => hash(&format!("{PREFIX}{digits}")),
        None => hash(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_in_either_form() {
        let key = new_key();
        assert_eq!(key.len(), 44);
        let digits = key.strip_prefix(PREFIX).expect("the prefix");
        assert!(digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{key}");
        assert_eq!(hash_of_key(&format!("e2b_{digits}")), hash(&key));
        assert_eq!(hash_of_key(&key), hash(&key));
        assert_ne!(new_key(), key);
        assert_eq!(shown(&key).len(), 8);
        assert_eq!(shown("wrn"), "");
    }
}
