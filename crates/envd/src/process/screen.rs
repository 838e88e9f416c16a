// SPDX-License-Identifier: Apache-2.0
//! Screen of a terminal: follows the output, and says what a client needs to show the same.

mod input_modes;
mod utf8;

use std::{
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use avt::{Cell, Color, Line, Pen, ScreenKind, Terminal};
use rustix::termios::Winsize;

use self::{input_modes::InputModes, utf8::Decoder};

/// Maximum number of columns and rows that are followed; what a larger terminal shows beyond is not.
const COLS: u16 = 1000;
const ROWS: u16 = 500;
/// Number of lines kept that have left the screen.
const SCROLLBACK: usize = 200;

/// What a terminal shows.
pub(crate) struct Screen {
    terminal: Terminal,
    decoder: Decoder,
    modes: InputModes,
    size: Winsize,
}

/// Text of a screen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    /// Each row without spaces at its end.
    pub(crate) rows: Vec<String>,
    /// Lines that have left the screen, the oldest first.
    pub(crate) scrollback: Vec<String>,
    /// Row and column of the cursor.
    pub(crate) cursor: (usize, usize),
    pub(crate) cursor_visible: bool,
    /// Whether it is the alternate screen.
    pub(crate) alternate: bool,
}

impl Screen {
    /// Creates an empty screen.
    pub(crate) fn new(size: Winsize) -> Option<Self> {
        let terminal = terminal(size, SCROLLBACK)?;
        Some(Self { terminal, decoder: Decoder::default(), modes: InputModes::default(), size })
    }

    /// Size of the terminal.
    pub(crate) fn size(&self) -> Winsize {
        self.size
    }

    /// Follows a piece of output.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let text = self.decoder.decode(bytes);
        self.modes.feed(&text);
        self.guarded(|terminal| terminal.feed(text.as_str()));
    }

    /// Follows a change of the size.
    pub(crate) fn resize(&mut self, size: Winsize) {
        self.size = size;
        let (cols, rows) = followed(size);
        self.guarded(|terminal| terminal.resize(cols, rows));
    }

    /// Frees the lines that have left the screen, because its process has ended.
    pub(crate) fn retire(&mut self) {
        if let Some(mut small) = terminal(self.size, 0) {
            small.feed(self.terminal.dump().as_str());
            self.terminal = small;
        }
    }

    /// Returns what makes a terminal of this size show the same, with the lines that have left the screen above it. It begins by
    /// pushing out what that terminal shows.
    pub(crate) fn replay(&self) -> Vec<u8> {
        let (_, rows) = followed(self.size);
        // Modes that an earlier program left behind go first, and the screen is emptied.
        let mut replay = "\x1b[?1049l\x1b[!p\x1b[0m\x1b[H\x1b[2J".to_owned();
        self.modes.render(&mut replay);
        let primary = self.terminal.primary_screen();
        let left = primary.all_lines().count().saturating_sub(rows);
        for line in primary.all_lines().take(left) {
            render(line, &mut replay);
            // A line that was broken at the edge breaks there again.
            if !line.is_wrapped() {
                replay.push_str("\r\n");
            }
        }
        if left > 0 {
            replay.push_str(&"\n".repeat(rows.saturating_sub(1)));
            replay.push_str("\x1b[H");
        }
        // Last, because it may end within a sequence.
        replay.push_str(&self.terminal.dump());
        let mut replay = replay.into_bytes();
        replay.extend_from_slice(self.decoder.rest());
        replay
    }

    /// Returns its text.
    pub(crate) fn text(&self) -> Text {
        let (_, rows) = followed(self.size);
        let text = |line: &Line| line.text().trim_end().to_owned();
        let alternate = self.terminal.active_screen_kind() == ScreenKind::Alternate;
        let primary = self.terminal.primary_screen();
        let left = primary.all_lines().count().saturating_sub(rows);
        let cursor = self.terminal.cursor();
        Text {
            rows: self.terminal.screen().visible_lines().map(text).collect(),
            scrollback: primary.all_lines().take(left).map(text).collect(),
            cursor: (cursor.row, cursor.col),
            cursor_visible: cursor.visible,
            alternate,
        }
    }

    /// Changes the model. Should an unforeseen sequence make that fail, it begins anew: the output goes on in any case.
    fn guarded(&mut self, change: impl FnOnce(&mut Terminal)) {
        let terminal = &mut self.terminal;
        if catch_unwind(AssertUnwindSafe(|| change(terminal))).is_err()
            && let Some(empty) = self::terminal(self.size, SCROLLBACK)
        {
            self.terminal = empty;
        }
    }
}

fn terminal(size: Winsize, scrollback: usize) -> Option<Terminal> {
    let (cols, rows) = followed(size);
    Terminal::with_scrollback(cols, rows, Some(scrollback)).ok()
}

/// Returns the columns and rows that are followed.
fn followed(size: Winsize) -> (usize, usize) {
    (size.ws_col.clamp(1, COLS).into(), size.ws_row.clamp(1, ROWS).into())
}

/// Writes a line with its colours, without spaces at its end.
fn render(line: &Line, to: &mut String) {
    let blank = |cell: &Cell| cell.char() == ' ' && cell.pen().is_default();
    let mut runs: Vec<Vec<Cell>> = line.chunks(|a, b| a.pen() != b.pen()).collect();
    if !line.is_wrapped() {
        while let Some(last) = runs.last_mut() {
            let used = last.iter().rposition(|cell| !blank(cell)).map_or(0, |at| at + 1);
            last.truncate(used);
            if used > 0 {
                break;
            }
            runs.pop();
        }
    }
    for cells in &runs {
        if let Some(cell) = cells.first() {
            select(cell.pen(), to);
        }
        to.extend(cells.iter().map(Cell::char));
    }
    to.push_str("\x1b[0m");
}

/// Writes the sequence that selects a pen.
fn select(pen: &Pen, to: &mut String) {
    to.push_str("\x1b[0");
    let attributes = [
        (pen.is_bold(), 1),
        (pen.is_faint(), 2),
        (pen.is_italic(), 3),
        (pen.is_underline(), 4),
        (pen.is_blink(), 5),
        (pen.is_inverse(), 7),
        (pen.is_strikethrough(), 9),
    ];
    for (_, number) in attributes.into_iter().filter(|(set, _)| *set) {
        let _ = write!(to, ";{number}");
    }
    for (color, base) in [(pen.foreground(), 38), (pen.background(), 48)] {
        let _ = match color {
            Some(Color::Indexed(index)) => write!(to, ";{base};5;{index}"),
            Some(Color::RGB(rgb)) => write!(to, ";{base};2;{};{};{}", rgb.r, rgb.g, rgb.b),
            None => Ok(()),
        };
    }
    to.push('m');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cols: u16, rows: u16) -> Winsize {
        Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
    }

    fn screen(output: &[u8]) -> Screen {
        let mut screen = Screen::new(size(20, 5)).unwrap();
        screen.feed(output);
        screen
    }

    /// Shows the screen on a used terminal, as a client does that comes back.
    fn shown_again(screen: &Screen) -> Screen {
        let mut other = Screen::new(screen.size()).unwrap();
        other.feed(b"something else\r\n\x1b[31m\x1b[?1049hvim\x1b[3;9H\x1b[?25l\x1b[2;4r");
        other.feed(&screen.replay());
        other
    }

    #[test]
    fn a_client_that_comes_back_sees_the_same() {
        let many: String = (1..40).map(|i| format!("\x1b[3{}mline {i}\x1b[0m\r\n", i % 8)).collect();
        let outputs = [
            b"$ ls\r\na  b\r\n$ ".to_vec(),
            many.into_bytes(),
            "\x1b[1;32mgr\u{e9}n\x1b[0m 漢字\r\n🤣 end".as_bytes().to_vec(),
            b"shell\r\n\x1b[?1049h\x1b[2J\x1b[Hfull screen\x1b[5;10H\x1b[7mstatus\x1b[0m".to_vec(),
            b"\x1b[2;4r\x1b[?6habc\r\nd\x1b[3;3H".to_vec(),
            b"a line that is longer than the screen is wide\r\nnext".to_vec(),
            b"cut in \x1b[3".to_vec(),
            "cut in 漢".as_bytes()[..8].to_vec(),
        ];
        for output in outputs {
            let mut screen = screen(&output);
            let mut again = shown_again(&screen);
            let case = String::from_utf8_lossy(&output).into_owned();
            assert_eq!(again.text().rows, screen.text().rows, "{case:?}");
            assert_eq!(again.text().cursor, screen.text().cursor, "{case:?}");
            for screen in [&mut screen, &mut again] {
                screen.feed("1mX\u{6f22}\r\n\x1b[?1049lY\r\n\r\n".as_bytes());
            }
            assert_eq!(again.text().rows, screen.text().rows, "{case:?}, continued");
            assert_eq!(again.terminal.dump(), screen.terminal.dump(), "{case:?}, continued");
        }
    }

    #[test]
    fn lines_that_left_the_screen_are_above_it() {
        let lines: Vec<String> = (1..=9).map(|i| format!("line {i}")).collect();
        let screen = screen(lines.join("\r\n").as_bytes());
        assert_eq!(screen.text().scrollback, lines[..4]);
        assert_eq!(screen.text().rows, lines[4..]);
        let again = shown_again(&screen).text().scrollback;
        assert_eq!(again[again.len() - 4..], lines[..4], "{again:?}");
    }

    #[test]
    fn only_so_many_lines_are_kept() {
        let lines: String = (0..5000).map(|i| format!("{i}\r\n")).collect();
        let mut screen = screen(lines.as_bytes());
        let text = screen.text();
        assert_eq!(text.scrollback.len(), SCROLLBACK);
        assert_eq!(text.rows, ["4996", "4997", "4998", "4999", ""]);
        screen.retire();
        assert_eq!(screen.text(), Text { scrollback: Vec::new(), ..text });
    }

    #[test]
    fn sizes_beyond_the_limits_are_cut() {
        let mut screen = Screen::new(size(0, 0)).unwrap();
        screen.feed(b"x");
        screen.resize(size(u16::MAX, u16::MAX));
        screen.feed(b"y");
        assert_eq!(screen.text().rows.len(), usize::from(ROWS));
        assert_eq!(screen.size().ws_col, u16::MAX);
    }

    /// Whatever a program writes, and in whatever pieces.
    #[test]
    fn any_output_is_followed_and_shown_again() {
        const PARTS: [&str; 24] = [
            "text ",
            "\r\n",
            "\n",
            "漢",
            "é",
            "\x1b[",
            "\x1b[?1049h",
            "\x1b[?1049l",
            "\x1b[?6h",
            "\x1b[2;4r",
            "\x1b[31;1m",
            "\x1b[0m",
            "\x1b[3;7H",
            "\x1b[J",
            "\x1b[1K",
            "\x1b7",
            "\x1b8",
            "\x1b[?25l",
            "\x1b[2L",
            "\x1b[3P",
            "\x1b[S",
            "\t",
            "\x1b]0;title\x07",
            "a line that is longer than the screen is wide ",
        ];
        for seed in 1..300_u64 {
            let mut state = seed;
            let mut next = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let output: String = (0..60).map(|_| PARTS[next(PARTS.len() as u64) as usize]).collect();
            let mut screen = Screen::new(size(20, 5)).unwrap();
            for piece in output.as_bytes().chunks(1 + next(9) as usize) {
                screen.feed(piece);
                if next(40) == 0 {
                    screen.resize(size(10 + next(20) as u16, 3 + next(5) as u16));
                }
            }
            let again = shown_again(&screen);
            assert_eq!(again.text().rows, screen.text().rows, "seed {seed}: {output:?}");
            assert_eq!(again.text().cursor, screen.text().cursor, "seed {seed}: {output:?}");
        }
    }

    #[test]
    fn modes_of_the_keyboard_and_mouse_come_back() {
        let screen = screen(b"\x1b[?2004h\x1b[?1000;1006h\x1b[?1000l\x1b=\x1b[4 q");
        let replay = String::from_utf8(screen.replay()).unwrap();
        assert!(replay.contains("\x1b[?1006h\x1b[?2004h\x1b=\x1b[4 q"), "{replay:?}");
        assert!(replay.contains("\x1b[?1000l"), "{replay:?}");
    }
}
