// SPDX-License-Identifier: Apache-2.0
//! Output of a step's command on its way to the log: made text of, and bounded. Pure.

use std::mem;

use wrenn_api::BuildStream;

/// What is kept of the output of one step.
#[derive(Debug)]
pub(super) struct Output {
    /// Number of bytes that are still kept.
    left: usize,
    is_cut: bool,
    /// The beginning of a character at the end of what standard output and standard error have written so far.
    open: [Vec<u8>; 2],
}

impl Output {
    /// Keeps at most this number of bytes.
    pub(super) const fn of_at_most(bytes: usize) -> Self {
        Self { left: bytes, is_cut: false, open: [Vec::new(), Vec::new()] }
    }

    /// Takes what a stream has written; returns what is to be kept of it. What is no UTF-8 is replaced, and a character that is
    /// written in pieces stays whole.
    pub(super) fn take(&mut self, stream: BuildStream, bytes: &[u8]) -> String {
        if self.is_cut {
            return String::new();
        }
        let kept = &bytes[..bytes.len().min(self.left)];
        self.is_cut = kept.len() < bytes.len();
        self.left -= kept.len();
        let open = &mut self.open[usize::from(stream == BuildStream::Stderr)];
        let mut whole = mem::take(open);
        whole.extend_from_slice(kept);
        let (text, rest) = decode(&whole);
        // The rest of a character that is cut never comes.
        if !self.is_cut {
            *open = rest.to_vec();
        }
        text
    }

    /// Returns what is left at the end of a stream: characters that were begun and not ended.
    pub(super) fn finish(&mut self, stream: BuildStream) -> String {
        let open = mem::take(&mut self.open[usize::from(stream == BuildStream::Stderr)]);
        String::from_utf8_lossy(&open).into_owned()
    }

    /// Returns whether there was more than is kept.
    pub(super) const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Number of bytes that are still kept.
    pub(super) const fn left(&self) -> usize {
        self.left
    }
}

/// Makes text of bytes, and returns the beginning of a character at their end.
fn decode(bytes: &[u8]) -> (String, &[u8]) {
    let mut text = String::with_capacity(bytes.len());
    let mut rest: &[u8] = &[];
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        let is_begun = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        // Only after the end of all can more follow that makes it valid.
        if is_begun && chunks.peek().is_none() {
            rest = invalid;
        } else if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    (text, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: BuildStream = BuildStream::Stdout;
    const ERR: BuildStream = BuildStream::Stderr;

    #[test]
    fn characters_stay_whole_and_what_is_none_is_replaced() {
        let text = "aä€😀b";
        let mut output = Output::of_at_most(1000);
        let pieces: String = text.bytes().map(|byte| output.take(OUT, &[byte])).collect();
        assert_eq!(pieces, text);
        assert_eq!(output.take(OUT, b"x\xffy\xe2\x82z"), "x\u{fffd}y\u{fffd}z");
        assert_eq!(output.take(OUT, b"\xe2\x82"), "");
        assert_eq!(output.take(ERR, b"e"), "e", "streams do not mix");
        assert_eq!(output.finish(OUT), "\u{fffd}");
        assert_eq!((output.finish(OUT), output.finish(ERR)), (String::new(), String::new()));
    }

    #[test]
    fn more_than_is_kept_is_dropped() {
        let mut output = Output::of_at_most(6);
        assert_eq!(output.take(OUT, b"abc"), "abc");
        assert!(!output.is_cut() && output.left() == 3);
        assert_eq!(output.take(ERR, "12ä3".as_bytes()), "12", "no half of a character is kept");
        assert!(output.is_cut());
        assert_eq!((output.take(OUT, b"def"), output.finish(ERR)), (String::new(), String::new()));
    }

    #[test]
    fn all_that_fits_is_not_cut() {
        let mut output = Output::of_at_most(3);
        assert_eq!(output.take(OUT, b"abc"), "abc");
        assert!(!output.is_cut());
        assert_eq!(output.take(OUT, b""), "");
        assert!(!output.is_cut());
        assert_eq!(output.take(OUT, b"d"), "");
        assert!(output.is_cut());
    }
}
