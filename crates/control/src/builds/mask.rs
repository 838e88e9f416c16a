// SPDX-License-Identifier: Apache-2.0
//! Keeps secrets out of logs: what a command writes of them is replaced, also if it comes in pieces. Pure.
//!
//! Each secret is searched for as Knuth, Morris and Pratt do it, so that time and memory grow with what is read and with the
//! secrets only, whatever both are.

use std::{borrow::Cow, mem, ops::Range, sync::Arc};

/// What stands for a secret.
const MASK: &[u8] = b"***";
/// Minimum length of a line of a secret with several lines that is replaced by itself, and the maximum number of texts.
const LINE_MIN: usize = 8;
const TEXTS_MAX: usize = 256;

/// Texts that are replaced.
#[derive(Clone, Default)]
pub(super) struct Masks(Arc<Vec<Text>>);

/// A text that is replaced.
struct Text {
    bytes: Vec<u8>,
    /// For each length of a beginning of the text, without 0: the length of the longest shorter beginning that is its end.
    shorter: Vec<u32>,
}

/// Bytes of one stream on their way, in which the texts are replaced.
#[derive(Default)]
pub(super) struct Masked {
    masks: Masks,
    /// How much of the beginning of each text is the end of what was taken.
    begun: Vec<usize>,
    /// The end of what was taken, which may be the beginning of a text.
    held: Vec<u8>,
    /// Number of bytes that were taken.
    taken: usize,
    /// What is replaced from the beginning of what is held on: places in what was taken, sorted, and not in each other.
    hidden: Vec<Range<usize>>,
    /// Whether what was given last is replaced: what is replaced right behind it adds nothing.
    is_hiding: bool,
}

impl Masks {
    /// Replaces these secrets as wholes, without line breaks at their ends, and the longer ones of their lines.
    pub(super) fn of<'v>(secrets: impl IntoIterator<Item = &'v str> + Clone) -> Self {
        let wholes = secrets.clone().into_iter().map(trimmed);
        let lines = secrets.into_iter().flat_map(|secret| trimmed(secret).lines());
        let lines = lines.filter(|line| line.len() >= LINE_MIN);
        let mut texts: Vec<&str> = Vec::new();
        for text in wholes.chain(lines).filter(|text| !text.is_empty()) {
            if texts.len() < TEXTS_MAX && !texts.contains(&text) {
                texts.push(text);
            }
        }
        Self(Arc::new(texts.into_iter().map(Text::new).collect()))
    }

    /// Begins with a stream.
    pub(super) fn begin(&self) -> Masked {
        Masked { begun: vec![0; self.0.len()], masks: self.clone(), ..Masked::default() }
    }

    /// Replaces the secrets in a text.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut masked = self.begin();
        let mut hidden = masked.take(text.as_bytes()).into_owned();
        hidden.extend(masked.finish());
        String::from_utf8_lossy(&hidden).into_owned()
    }
}

/// A secret as a command prints it that takes a text of lines for one without the last line break.
pub(super) fn trimmed(secret: &str) -> &str {
    secret.trim_end_matches(['\n', '\r'])
}

impl Text {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut found = Self { shorter: vec![0; bytes.len()], bytes };
        let mut length = 0;
        for at in 1..found.bytes.len() {
            length = found.longer(length, found.bytes[at]);
            found.shorter[at] = length as u32;
        }
        found
    }

    /// Length of the longest beginning that is the end after another byte, if `length` was that before it. It must be less than
    /// the whole.
    fn longer(&self, mut length: usize, byte: u8) -> usize {
        loop {
            if self.bytes[length] == byte {
                return length + 1;
            }
            if length == 0 {
                return 0;
            }
            length = self.shorter[length - 1] as usize;
        }
    }

    /// Finds the text in bytes that begin at this place; adds where it is, joined where it overlaps itself.
    fn find(&self, begun: &mut usize, bytes: &[u8], place: usize, found: &mut Vec<Range<usize>>) {
        for (at, byte) in bytes.iter().enumerate() {
            *begun = self.longer(*begun, *byte);
            if *begun < self.bytes.len() {
                continue;
            }
            let end = place + at + 1;
            let start = end - self.bytes.len();
            match found.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ => found.push(start..end),
            }
            *begun = self.shorter[*begun - 1] as usize;
        }
    }
}

impl Masked {
    /// Takes what the stream has; returns what can be shown by now. What may be the beginning of a text is held back.
    pub(super) fn take<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if self.begun.is_empty() {
            return Cow::Borrowed(bytes);
        }
        self.held.extend_from_slice(bytes);
        let masks = self.masks.clone();
        for (text, begun) in masks.0.iter().zip(&mut self.begun) {
            let mut found = Vec::new();
            text.find(begun, bytes, self.taken, &mut found);
            if !found.is_empty() {
                self.hidden = joined(mem::take(&mut self.hidden), found);
            }
        }
        self.taken += bytes.len();
        let held = self.begun.iter().copied().max().unwrap_or_default();
        Cow::Owned(self.give(self.taken - held))
    }

    /// Returns what is left at the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.begun.fill(0);
        self.give(self.taken)
    }

    /// Gives away what is before a place.
    fn give(&mut self, until: usize) -> Vec<u8> {
        let first = self.taken - self.held.len();
        let (mut given, mut at) = (Vec::with_capacity(until - first), first);
        for hidden in self.hidden.iter().take_while(|hidden| hidden.start < until) {
            let (start, end) = (hidden.start.max(at), hidden.end.min(until));
            if start > at {
                given.extend_from_slice(&self.held[at - first..start - first]);
                self.is_hiding = false;
            }
            if !mem::replace(&mut self.is_hiding, true) {
                given.extend_from_slice(MASK);
            }
            at = end;
        }
        if at < until {
            given.extend_from_slice(&self.held[at - first..until - first]);
            self.is_hiding = false;
        }
        self.held.drain(..until - first);
        self.hidden.retain(|hidden| hidden.end > until);
        given
    }
}

/// Joins sorted ranges with others, and those that overlap or touch.
fn joined(ranges: Vec<Range<usize>>, others: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut all = [ranges, others].concat();
    all.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(all.len());
    for range in all {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(secrets: &[&str]) -> Masks {
        Masks::of(secrets.iter().copied())
    }

    /// What is shown of a text that comes in pieces of this size.
    fn in_pieces(masks: &Masks, text: &str, size: usize) -> String {
        let mut masked = masks.begin();
        let mut shown = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            shown.extend_from_slice(&masked.take(piece));
        }
        shown.extend(masked.finish());
        String::from_utf8(shown).expect("UTF-8")
    }

    #[test]
    fn secrets_are_replaced_however_they_come() {
        let cases: [(&[&str], &str, &str); 12] = [
            (&["hunter2"], "the password hunter2!", "the password ***!"),
            (&["hunter2"], "hunterhunter2hunte", "hunter***hunte"),
            (&["hunter2"], "hunter2hunter2", "***"),
            (&["hunter2", "ter2x"], "hunter2x ter2x hunter2", "*** *** ***"),
            (&["abab"], "abababab ab", "*** ab"),
            (&["aaaa"], "aaaaaaa aaa", "*** aaa"),
            (
                &["secret", "secrets are long"],
                "secret secrets are lon secrets are long",
                "*** ***s are lon ***",
            ),
            (&["pässwörd"], "ein pässwörd, ein pässwort", "ein ***, ein pässwort"),
            (&["token\n"], "token\ntoken", "***\n***"),
            (&["first line\nx\nsecond line\n"], "second line|x|first line", "***|x|***"),
            (&[], "anything", "anything"),
            (&["hunter2"], "", ""),
        ];
        for (secrets, text, shown) in cases {
            let masks = masks(secrets);
            for size in 1..=text.len().max(1) {
                assert_eq!(in_pieces(&masks, text, size), shown, "{text:?} in pieces of {size}");
            }
            assert_eq!(masks.hide(text), shown);
        }
    }

    #[test]
    fn what_can_be_no_secret_is_shown_at_once() {
        let mut masked = masks(&["secret"]).begin();
        assert_eq!(&*masked.take(b"hello"), b"hello");
        assert_eq!(&*masked.take(b" sec"), b" ");
        assert_eq!(&*masked.take(b"ond"), b"second");
        assert_eq!(&*masked.take(b"secret"), b"***");
        assert_eq!((&*masked.take(b"se"), &*masked.finish()), (&b""[..], &b"se"[..]));
    }

    #[test]
    fn little_is_held_however_long_a_secret_lasts() {
        let long = "a".repeat(60_000);
        let masks = masks(&[&long]);
        let mut masked = masks.begin();
        let mut shown = 0;
        for _ in 0..64 {
            shown += masked.take(long.as_bytes()).len();
            assert!(masked.held.len() < 2 * long.len() && masked.hidden.len() <= 1);
        }
        shown += masked.finish().len();
        assert_eq!(shown, MASK.len(), "it never ends, so that there is one");
    }
}
