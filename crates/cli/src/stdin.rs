// SPDX-License-Identifier: Apache-2.0
//! Detects standard input that a command in a sandbox does not get, so that the user can be warned.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// State of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Empty, at its end.
    None,
    /// Empty, but the writer of the pipe still exists.
    Open,
    /// Empty terminal.
    Terminal,
    /// Has unread data.
    Waiting,
}

/// Checks standard input without reading it.
pub(crate) fn look() -> Input {
    look_at(&io::stdin())
}

fn look_at(stdin: &(impl std::os::fd::AsFd + io::IsTerminal)) -> Input {
    // Fails for a closed descriptor, and for devices such as /dev/null.
    match rustix::io::ioctl_fionread(stdin) {
        Ok(0) => {}
        Ok(_) => return Input::Waiting,
        Err(_) => return Input::None,
    }
    if stdin.is_terminal() {
        return Input::Terminal;
    }
    let mut polled = [PollFd::new(stdin, PollFlags::IN)];
    match poll(&mut polled, Some(&Timespec::default())) {
        // A file at its end is readable, and a closed pipe reports a hang-up.
        Ok(0) => Input::Open,
        _ => Input::None,
    }
}

/// Returns whether to warn the user, given the command's arguments and result.
pub(crate) fn is_missed(input: Input, arguments: usize, silent_success: bool) -> bool {
    match input {
        Input::None => false,
        Input::Waiting => true,
        Input::Open => silent_success,
        // Probably an interactive interpreter; most other commands print something or have arguments.
        Input::Terminal => silent_success && arguments == 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use anyhow::Result;

    use super::*;

    #[test]
    fn pipes_and_files_are_told_apart_by_what_they_hold() -> Result<()> {
        let (reader, mut writer) = io::pipe()?;
        let mut reader = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(look_at(&reader), Input::Open);
        writer.write_all(b"x")?;
        assert_eq!(look_at(&reader), Input::Waiting);
        reader.read_exact(&mut [0])?;
        drop(writer);
        assert_eq!(look_at(&reader), Input::None);
        let mut file = tempfile::tempfile()?;
        assert_eq!(look_at(&file), Input::None);
        file.write_all(b"x")?;
        assert_eq!(look_at(&file), Input::None, "it was read to its end");
        file.rewind()?;
        assert_eq!(look_at(&file), Input::Waiting);
        assert_eq!(look_at(&std::fs::File::open("/dev/null")?), Input::None);
        Ok(())
    }

    #[test]
    fn a_command_that_may_have_waited_for_input_is_told_only_when_it_did_nothing() {
        assert!(is_missed(Input::Waiting, 2, false));
        assert!(is_missed(Input::Open, 2, true) && !is_missed(Input::Open, 0, false));
        assert!(is_missed(Input::Terminal, 0, true) && !is_missed(Input::Terminal, 1, true));
        assert!(!is_missed(Input::None, 0, true));
    }
}
