// SPDX-License-Identifier: Apache-2.0
//! Patterns of names, with the rules of Go's `filepath.Match`, which are those of Dockerfiles. A pattern is for one name of a
//! path, so that nothing in it matches a slash.

use std::{iter::Peekable, str::Chars};

const OPEN: &str = "a bracket has no end; write []] for a bracket itself";
const MEMBER: &str = "a bracket has `-` or `]` where a character should be; write a backslash before it";
const ESCAPE: &str = "it ends with a backslash";

/// A part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    /// `*`: any characters.
    Any,
    /// `?`: one character.
    One,
    Char(char),
    /// `[a-z]`, or `[^a-z]` if negated: one character of these ranges.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Term {
    /// Returns whether this, which is not `*`, matches a character.
    fn takes(&self, next: char) -> bool {
        match self {
            Self::Any => false,
            Self::One => true,
            Self::Char(own) => *own == next,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&next)) != *negated
            }
        }
    }
}

/// A pattern.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<Term>);

/// Returns whether a name is a pattern. Else a backslash in it is one.
pub(crate) fn is_pattern(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(next) = chars.next() {
        match next {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

impl Pattern {
    /// Reads a pattern; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut rest, mut terms) = (text.chars().peekable(), Vec::new());
        while let Some(next) = rest.next() {
            terms.push(match next {
                '*' => Term::Any,
                '?' => Term::One,
                '[' => class(&mut rest)?,
                '\\' => Term::Char(rest.next().ok_or(ESCAPE)?),
                other => Term::Char(other),
            });
        }
        Ok(Self(terms))
    }

    /// Returns about how many steps it takes to match a name.
    pub(crate) fn cost(&self, name: &str) -> u64 {
        self.0.len() as u64 * name.len() as u64
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let (mut term, mut rest) = (0, name);
        // The term after the last `*`, and what this has not taken yet.
        let mut last: Option<(usize, &str)> = None;
        loop {
            if self.0.get(term) == Some(&Term::Any) {
                term += 1;
                last = Some((term, rest));
                continue;
            }
            match (self.0.get(term), rest.chars().next()) {
                (None, None) => return true,
                (Some(own), Some(next)) if own.takes(next) => {
                    term += 1;
                    rest = &rest[next.len_utf8()..];
                }
                // It did not match from here on, so the last `*` takes one character more.
                _ => {
                    let Some((after, from)) = last else { return false };
                    let Some(taken) = from.chars().next() else { return false };
                    rest = &from[taken.len_utf8()..];
                    term = after;
                    last = Some((after, rest));
                }
            }
        }
    }
}

/// Reads the rest of a bracket.
fn class(rest: &mut Peekable<Chars<'_>>) -> Result<Term, &'static str> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
        let low = member(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { member(rest)? } else { low };
        ranges.push((low, high));
    }
    Ok(Term::Class { negated, ranges })
}

fn member(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    match rest.next() {
        Some('-' | ']') => Err(MEMBER),
        Some('\\') => rest.next().ok_or(OPEN),
        next => next.ok_or(OPEN),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    /// From the tests of Go.
    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*", "", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("[\\-x]", "x", true),
            ("[\\-x]", "a", false),
            ("[z-a]", "m", false),
            ("*x", "xxx", true),
            ("*.json", ".json", true),
            ("", "", true),
            ("?", "", false),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_in_go_is_none() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[", "[]", "[^]", "[a-]",
            "[a\\", "a*[",
        ] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_backslash_makes_no_pattern_alone() {
        assert!(["*", "a?", "[", "\\\\*"].into_iter().all(is_pattern));
        assert!(!["", "a", "\\*", "a\\", "]", "\\[a]"].into_iter().any(is_pattern));
    }

    /// Tries every way to share the name between the terms.
    fn naive(terms: &[Term], name: &[char]) -> bool {
        match (terms, name) {
            ([], []) => true,
            ([Term::Any, more @ ..], _) => (0..=name.len()).any(|taken| naive(more, &name[taken..])),
            ([term, more @ ..], [next, rest @ ..]) => term.takes(*next) && naive(more, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_the_naive_one(pattern in "[ab?*\\[\\]^é]{0,8}", name in "[abé]{0,8}") {
            if let Ok(parsed) = Pattern::parse(&pattern) {
                let name_chars: Vec<char> = name.chars().collect();
                prop_assert_eq!(parsed.matches(&name), naive(&parsed.0, &name_chars));
            }
        }
    }
}
