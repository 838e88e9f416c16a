// SPDX-License-Identifier: Apache-2.0
//! Exit code of a command, computed from the guest's report.

use wrenn_rpc::process::process_event::EndEvent;

/// Highest signal number of Linux.
const SIGNAL_MAX: u32 = 64;
/// Exit code of a command whose guest reports no valid status.
const UNKNOWN: i32 = -1;

/// Returns the exit code as shells do: 128 + N if signal N killed the command, -1 for an impossible status.
pub(super) fn exit_code(end: &EndEvent) -> i32 {
    match end.signal {
        Some(signal @ 1..=SIGNAL_MAX) => 128 + signal as i32,
        None if (0..=255).contains(&end.exit_code) => end.exit_code,
        _ => UNKNOWN,
    }
}

/// Returns the number of the signal that ended the command, if the guest names one that exists.
pub(super) fn signal(end: &EndEvent) -> Option<u32> {
    end.signal.filter(|signal| (1..=SIGNAL_MAX).contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32, number: Option<u32>) -> (i32, Option<u32>) {
        let end = EndEvent { exit_code, signal: number, ..Default::default() };
        (super::exit_code(&end), signal(&end))
    }

    #[test]
    fn signals_become_128_plus_n_and_exits_stay() {
        assert_eq!(end(3, None), (3, None));
        for number in 1..=64 {
            assert_eq!(end(-1, Some(number)), (128 + number as i32, Some(number)));
        }
    }

    #[test]
    fn codes_that_no_process_has_are_minus_one() {
        for code in [i32::MIN, -2, -1, 256, i32::MAX] {
            assert_eq!(end(code, None), (-1, None));
        }
        for number in [0, 65, u32::MAX] {
            assert_eq!(end(0, Some(number)), (-1, None));
        }
    }
}
