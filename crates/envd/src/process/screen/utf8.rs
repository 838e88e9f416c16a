// SPDX-License-Identifier: Apache-2.0
//! Decoder of UTF-8 in pieces: a character that is cut at the end of one waits for the next.

/// Decoder with the beginning of a character.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// At most three bytes.
    begun: Vec<u8>,
}

impl Decoder {
    /// Decodes a piece; what is no UTF-8 becomes U+FFFD.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        for chunk in all.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only at the end of the piece can it be the beginning of a character.
            let at_end = invalid.as_ptr_range().end == all.as_ptr_range().end;
            if at_end && is_beginning(invalid) {
                self.begun = invalid.to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// Returns the beginning of a character that is not complete.
    pub(super) fn rest(&self) -> &[u8] {
        &self.begun
    }
}

/// Returns whether more bytes can make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_survive_any_cut() {
        let text = "a漢é🤣\u{10ffff}z";
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let mut decoder = Decoder::default();
                let bytes = text.as_bytes();
                let parts = [&bytes[..cut], &bytes[cut..second], &bytes[second..]];
                let decoded: String = parts.map(|part| decoder.decode(part)).concat();
                assert_eq!(decoded, text, "cut at {cut} and {second}");
                assert!(decoder.rest().is_empty());
            }
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xffb\xe6"), "a\u{fffd}b");
        assert_eq!(decoder.rest(), b"\xe6");
        assert_eq!(decoder.decode(b"c"), "\u{fffd}c");
    }
}
