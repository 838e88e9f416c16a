// SPDX-License-Identifier: Apache-2.0
//! Escape sequence by which a user leaves a terminal, as in ssh: a tilde at the beginning of a line, and then a dot.

/// Filter of what a user types.
#[derive(Debug)]
pub(super) struct Escape {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is filtered.
    Off,
    /// At the beginning of a line.
    Line,
    /// After a tilde at the beginning of a line.
    Tilde,
    /// Within a line.
    Text,
}

/// What was typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// Keys for the program.
    pub(super) keys: Vec<u8>,
    /// Whether the user leaves.
    pub(super) leave: bool,
}

impl Escape {
    /// Watches for the sequence.
    pub(super) const fn watching() -> Self {
        Self { state: State::Line }
    }

    /// Lets all through.
    pub(super) const fn none() -> Self {
        Self { state: State::Off }
    }

    /// Filters a piece. What comes after the sequence is dropped.
    pub(super) fn filter(&mut self, typed: &[u8]) -> Typed {
        let mut keys = Vec::with_capacity(typed.len());
        for &key in typed {
            self.state = match (self.state, key) {
                (State::Off, _) => {
                    keys.push(key);
                    State::Off
                }
                (State::Line, b'~') => State::Tilde,
                (State::Tilde, b'.') => return Typed { keys, leave: true },
                (State::Tilde, b'~') => {
                    keys.push(b'~');
                    State::Text
                }
                (state, key) => {
                    if state == State::Tilde {
                        keys.push(b'~');
                    }
                    keys.push(key);
                    if matches!(key, b'\r' | b'\n') { State::Line } else { State::Text }
                }
            };
        }
        Typed { keys, leave: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&str]) -> (String, bool) {
        let mut escape = Escape::watching();
        let mut keys = Vec::new();
        for piece in pieces {
            let typed = escape.filter(piece.as_bytes());
            keys.extend(typed.keys);
            if typed.leave {
                return (String::from_utf8(keys).expect("text"), true);
            }
        }
        (String::from_utf8(keys).expect("text"), false)
    }

    #[test]
    fn a_tilde_and_a_dot_on_a_line_leave() {
        assert_eq!(typed(&["ls\r", "~", ".", "x"]), ("ls\r".to_owned(), true));
        assert_eq!(typed(&["~."]), (String::new(), true));
    }

    #[test]
    fn all_else_passes() {
        for text in ["ls ~.\r", "a~.", "~/bin\r", "~x", "\r~\r"] {
            assert_eq!(typed(&[text]), (text.to_owned(), false));
        }
        assert_eq!(typed(&["~~."]), ("~.".to_owned(), false));
        let mut none = Escape::none();
        assert_eq!(none.filter(b"~.").keys, b"~.");
    }
}
