// SPDX-License-Identifier: Apache-2.0
//! Words and flags of an instruction, as they stand there: with their quotes.

/// A word between spaces. Spaces within quotes, and escaped ones, are part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    /// Offset in the text, in bytes.
    pub(crate) at: usize,
    pub(crate) raw: &'a str,
}

impl Word<'_> {
    pub(crate) const fn end(&self) -> usize {
        self.at + self.raw.len()
    }
}

/// A flag, such as `--timeout=30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flag<'a> {
    /// Offset in the text, in bytes.
    pub(crate) at: usize,
    /// Name without the dashes.
    pub(crate) name: &'a str,
    /// What follows `=`.
    pub(crate) value: Option<Word<'a>>,
}

/// Returns the first word at or after an offset.
pub(crate) fn next_word(text: &str, from: usize, escape: char) -> Option<Word<'_>> {
    let at = skip_spaces(text, from);
    let mut quote = None;
    let mut chars = text[at..].char_indices();
    let mut end = text.len();
    while let Some((offset, next)) = chars.next() {
        match quote {
            None if next.is_whitespace() => {
                end = at + offset;
                break;
            }
            None if next == '\'' || next == '"' => quote = Some(next),
            Some(open) if next == open => quote = None,
            _ if next == escape && quote != Some('\'') => {
                chars.next();
            }
            _ => {}
        }
    }
    (at < end).then(|| Word { at, raw: &text[at..end] })
}

/// Returns the words from an offset on.
pub(crate) fn words(text: &str, from: usize, escape: char) -> Vec<Word<'_>> {
    let mut found = Vec::new();
    let mut at = from;
    while let Some(word) = next_word(text, at, escape) {
        at = word.end();
        found.push(word);
    }
    found
}

/// Returns the flags from an offset on, and the offset of what follows them. `--` ends them.
pub(crate) fn flags(text: &str, from: usize, escape: char) -> (Vec<Flag<'_>>, usize) {
    let mut found = Vec::new();
    let mut at = from;
    while let Some(word) = next_word(text, at, escape) {
        let Some(flag) = word.raw.strip_prefix("--") else { break };
        at = word.end();
        if flag.is_empty() {
            break;
        }
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let value = value.map(|raw| Word { at: at - raw.len(), raw });
        found.push(Flag { at: word.at, name, value });
    }
    (found, skip_spaces(text, at))
}

fn skip_spaces(text: &str, from: usize) -> usize {
    text.len() - text[from..].trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_spaces_outside_of_quotes() {
        let raw = |text: &'static str| {
            words(text, 0, '\\').iter().map(|word| (word.at, word.raw)).collect::<Vec<_>>()
        };
        assert_eq!(raw("  a\tb=\"c d\" "), [(2, "a"), (4, "b=\"c d\"")]);
        assert_eq!(raw(r"a\ b 'c\' d"), [(0, r"a\ b"), (5, r"'c\'"), (10, "d")]);
        assert_eq!(raw(r#""a\" b" 'x y"#), [(0, r#""a\" b""#), (8, "'x y")]);
        assert_eq!(raw(r"a\"), [(0, r"a\")]);
        assert!(raw(" ").is_empty());
    }

    #[test]
    fn flags_stand_first() {
        let (found, rest) = flags("RUN --a=b --c=\"d e\"  --f x --g", 4, '\\');
        let value = |at, raw| Some(Word { at, raw });
        let expected = [
            Flag { at: 4, name: "a", value: value(8, "b") },
            Flag { at: 10, name: "c", value: value(14, "\"d e\"") },
            Flag { at: 21, name: "f", value: None },
        ];
        assert_eq!(found, expected);
        assert_eq!(rest, 25);
        assert_eq!(flags("-- --a", 0, '\\'), (vec![], 3));
        assert_eq!(flags("--", 0, '\\'), (vec![], 2));
    }
}
