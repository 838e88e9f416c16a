// SPDX-License-Identifier: Apache-2.0
//! Output of a build's commands for a user's terminal, on which nothing of it may act.

use std::{iter::Peekable, str::Chars};

/// Returns a line without escape sequences and control characters other than tabs. Of a line that was written over, as by a
/// progress bar, what was written last counts.
pub(super) fn plain(line: &str) -> String {
    let last = line.trim_end_matches(['\n', '\r']).rsplit('\r').find(|part| !part.is_empty());
    let mut chars = last.unwrap_or_default().chars().peekable();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            '\t' => text.push(c),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

/// Returns the first line of a text, at most `most` characters of it, with an ellipsis if there is more.
pub(super) fn short(text: &str, most: usize) -> String {
    let first = plain(text.lines().next().unwrap_or_default());
    let mut shown: String = first.chars().take(most).collect();
    if shown.len() < first.len() || text.lines().nth(1).is_some() {
        shown.push('…');
    }
    shown
}

/// Skips what follows an escape character.
fn skip_sequence(chars: &mut Peekable<Chars<'_>>) {
    match chars.next() {
        // Up to the character that ends it.
        Some('[') => {
            let _ = chars.find(|c| ('@'..='~').contains(c));
        }
        // A text up to a bell or a string terminator.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let end = chars.find(|c| matches!(c, '\u{7}' | '\u{1b}'));
            let _ = end.filter(|end| *end == '\u{1b}').and_then(|_| chars.next_if_eq(&'\\'));
        }
        Some(' ' | '#' | '%' | '(' | ')' | '*' | '+') => {
            let _ = chars.next();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_the_terminal() {
        for (line, text) in [
            ("plain\ttext ä\n", "plain\ttext ä"),
            ("\u{1b}[1;31mred\u{1b}[0m\r\n", "red"),
            ("\u{1b}]0;title\u{7}a\u{1b}]8;;http://x\u{1b}\\b", "ab"),
            ("\u{1b}(Bx\u{1b}=y\u{1b}", "xy"),
            ("10%\r50%\r100%\r\n", "100%"),
            ("a\u{8}\u{7}\u{0}\u{9b}b\u{7f}", "ab"),
            ("\u{1b}[", ""),
            ("", ""),
        ] {
            assert_eq!(plain(line), text, "{line:?}");
        }
    }

    #[test]
    fn what_is_long_is_cut() {
        assert_eq!(short("RUN true", 20), "RUN true");
        assert_eq!(short("RUN <<EOF\nx\nEOF", 20), "RUN <<EOF…");
        assert_eq!(short("äöü", 2), "äö…");
        assert_eq!(short("", 2), "");
    }
}
