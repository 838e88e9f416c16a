// SPDX-License-Identifier: Apache-2.0
//! Splits output into text and bytes; a character cut between pieces is joined again.

/// State of one output of a command.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Incomplete character at the end of the previous piece.
    begun: Vec<u8>,
}

/// Piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Valid UTF-8.
    Text(String),
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
}

impl Pieces {
    /// Adds bytes; returns the next piece, if any.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Piece> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        if let Err(error) = std::str::from_utf8(&all)
            && error.error_len().is_none()
        {
            // Valid except for its end, which may be an incomplete character.
            self.begun = all.split_off(error.valid_up_to());
        }
        Self::piece(all)
    }

    /// Returns the rest at the end of the output.
    pub(super) fn finish(&mut self) -> Option<Piece> {
        Self::piece(std::mem::take(&mut self.begun))
    }

    fn piece(bytes: Vec<u8>) -> Option<Piece> {
        if bytes.is_empty() {
            return None;
        }
        Some(String::from_utf8(bytes).map_or_else(|error| Piece::Bytes(error.into_bytes()), Piece::Text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_byte_is_lost(pieces: Vec<Vec<u8>>) {
            let (mut output, mut back) = (Pieces::default(), Vec::new());
            let shown: Vec<_> = pieces.iter().filter_map(|bytes| output.push(bytes)).collect();
            for piece in shown.into_iter().chain(output.finish()) {
                match piece {
                    Piece::Text(text) => back.extend(text.into_bytes()),
                    Piece::Bytes(bytes) => back.extend(bytes),
                }
            }
            prop_assert_eq!(back, pieces.concat());
        }

        #[test]
        fn text_cut_anywhere_stays_text(text: String, size in 1_usize..5) {
            let mut output = Pieces::default();
            for bytes in text.as_bytes().chunks(size) {
                prop_assert!(!matches!(output.push(bytes), Some(Piece::Bytes(_))));
            }
            prop_assert_eq!(output.finish(), None);
        }
    }
}
