// SPDX-License-Identifier: Apache-2.0
//! Modes of a terminal that concern what it sends (mouse, paste, keypad) and the shape of its cursor, which the screen model
//! does not follow.

use std::{collections::BTreeSet, fmt::Write as _};

/// Private modes (DECSET) that are followed: mouse reports and their encodings, focus reports, bracketed paste.
const FOLLOWED: [u16; 10] = [9, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004];
/// Maximum number of parameter characters of a sequence that is followed.
const PARAMETERS: usize = 64;

/// Modes that are set.
#[derive(Debug, Default)]
pub(super) struct InputModes {
    set: BTreeSet<u16>,
    keypad: bool,
    /// Parameter of DECSCUSR.
    cursor: Option<u8>,
    state: State,
}

/// Position in an escape sequence.
#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Escape,
    /// Within a control sequence, whose characters are these.
    Control(String),
}

impl InputModes {
    /// Follows a piece of output.
    pub(super) fn feed(&mut self, text: &str) {
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            if matches!(self.state, State::Text) {
                // Most output has no sequences.
                let Some(at) = rest.find('\x1b') else { return };
                self.state = State::Escape;
                rest = &rest[at + 1..];
                continue;
            }
            self.step(char);
            rest = &rest[char.len_utf8()..];
        }
    }

    fn step(&mut self, char: char) {
        self.state = match (std::mem::take(&mut self.state), char) {
            (_, '\x1b') => State::Escape,
            (State::Escape, '[') => State::Control(String::new()),
            (State::Escape, 'c') => {
                *self = Self::default();
                State::Text
            }
            (State::Escape, '=' | '>') => {
                self.keypad = char == '=';
                State::Text
            }
            (State::Control(mut parameters), ' '..='?') if parameters.len() < PARAMETERS => {
                parameters.push(char);
                State::Control(parameters)
            }
            (State::Control(parameters), 'h' | 'l' | 'q' | 'p') => {
                self.control(&parameters, char);
                State::Text
            }
            _ => State::Text,
        };
    }

    fn control(&mut self, parameters: &str, end: char) {
        match (parameters, end) {
            ("!", 'p') => (self.keypad, self.cursor) = (false, None),
            (shape, 'q') => {
                if let Some(shape) = shape.strip_suffix(' ') {
                    self.cursor = shape.parse().ok().filter(|shape| (1..=6).contains(shape));
                }
            }
            (modes, 'h' | 'l') => {
                let Some(modes) = modes.strip_prefix('?') else { return };
                let modes = modes.split(';').filter_map(|mode| mode.parse().ok());
                for mode in modes.filter(|mode| FOLLOWED.contains(mode)) {
                    if end == 'h' {
                        self.set.insert(mode);
                    } else {
                        self.set.remove(&mode);
                    }
                }
            }
            _ => {}
        }
    }

    /// Writes the sequences that set the same modes, and reset all others.
    pub(super) fn render(&self, to: &mut String) {
        for mode in FOLLOWED {
            if !self.set.contains(&mode) {
                let _ = write!(to, "\x1b[?{mode}l");
            }
        }
        for mode in &self.set {
            let _ = write!(to, "\x1b[?{mode}h");
        }
        to.push_str(if self.keypad { "\x1b=" } else { "\x1b>" });
        let _ = write!(to, "\x1b[{} q", self.cursor.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_may_be_cut_anywhere() {
        let output = "x\x1b[?1002;2004hy\x1b[31m\x1b=\x1b[2 q\x1b[?25l";
        for cut in 0..output.len() {
            let mut modes = InputModes::default();
            modes.feed(&output[..cut]);
            modes.feed(&output[cut..]);
            assert_eq!(modes.set, BTreeSet::from([1002, 2004]), "cut at {cut}");
            assert_eq!((modes.keypad, modes.cursor), (true, Some(2)), "cut at {cut}");
        }
    }

    #[test]
    fn a_reset_resets_them() {
        let mut modes = InputModes::default();
        modes.feed("\x1b[?2004h\x1b=\x1bc");
        assert!(modes.set.is_empty() && !modes.keypad);
    }

    #[test]
    fn endless_sequences_are_left() {
        let mut modes = InputModes::default();
        modes.feed(&format!("\x1b[{}", "1;".repeat(1000)));
        assert!(!matches!(modes.state, State::Control(_)));
    }
}
