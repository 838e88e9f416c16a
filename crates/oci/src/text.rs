// SPDX-License-Identifier: Apache-2.0
//! Text of strangers in messages: escaped, and cut if it is long.

/// Maximum number of bytes that are shown.
const SHOWN: usize = 256;

/// Returns text as it may be part of a message.
pub(crate) fn shown(text: &[u8]) -> String {
    let mut result = String::new();
    for c in String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            result.extend(c.escape_default());
        } else {
            result.push(c);
        }
    }
    if text.len() > SHOWN {
        result.push('…');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_on_one_line_and_is_bounded() {
        assert_eq!(shown(b"a\n\x1b[31m"), "a\\n\\u{1b}[31m");
        assert_eq!(shown("ä\u{2028}".as_bytes()), "ä\\u{2028}");
        assert_eq!(shown(b"\xff"), "\u{fffd}");
        assert_eq!(shown(&[b'x'; 1000]).chars().count(), SHOWN + 1);
    }
}
