// SPDX-License-Identifier: Apache-2.0
//! Digests: SHA-256 in hexadecimal digits.

use sha2::{Digest as _, Sha256};

/// Length of a digest.
const DIGITS: usize = 64;

/// A digest of several fields. Each is hashed with its length, so that no two lists of fields are hashed as the same bytes.
pub(crate) struct Fields(Sha256);

impl Fields {
    /// Begins with what the fields are of.
    pub(crate) fn of(kind: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.add(kind);
        fields
    }

    pub(crate) fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    pub(crate) fn digest(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Returns bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns whether a text is a digest, as which it is also the name of a file.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[&str]) -> String {
        let mut all = Fields::of("test");
        fields.iter().for_each(|field| all.add(field));
        all.digest()
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let digests = [of(&["ab", "c"]), of(&["a", "bc"]), of(&["abc"]), of(&["abc", ""]), of(&[])];
        for (at, one) in digests.iter().enumerate() {
            assert!(is_digest(one), "{one}");
            assert!(!digests[..at].contains(one));
        }
        assert_eq!(of(&["ab", "c"]), digests[0]);
    }

    #[test]
    fn only_digests_are_names_of_files() {
        for text in ["", "../etc/passwd", &"A".repeat(64), &"0".repeat(63), &format!("{}/", "0".repeat(63))] {
            assert!(!is_digest(text), "{text}");
        }
    }
}
