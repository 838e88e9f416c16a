// SPDX-License-Identifier: Apache-2.0
//! How a command ended, computed from the guest's report.

use wrenn_rpc::{host::v1::Victim, process::process_event::EndEvent};

/// Highest signal number of Linux.
const SIGNAL_MAX: u32 = 64;
/// Exit code of a command whose guest reports no valid status.
const UNKNOWN: i32 = -1;
/// Maximum length in characters of the name of a program, as the kernel has it.
const NAME_MAX: usize = 15;

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

/// Returns what the guest's kernel killed for want of memory, if the guest says that it did, and what.
pub(super) fn victim(end: &EndEvent) -> Option<Victim> {
    let victim = end.victim.as_option().filter(|_| end.out_of_memory)?;
    Some(Victim { pid: victim.pid, command: program(&victim.command), ..Default::default() })
}

/// Returns a name of a program that a guest gives as one that a kernel has: short, with `?` for what is not printable.
pub(super) fn program(name: &str) -> String {
    let printable = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    name.chars().take(NAME_MAX).map(|c| if printable(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use wrenn_rpc::process::process_event;

    use super::*;

    #[test]
    fn a_victim_is_told_only_for_want_of_memory_and_its_name_is_shown_safely() {
        let told =
            process_event::Victim { pid: 7, command: "\x1b[2J a/é\u{202e}".into(), ..Default::default() };
        let mut end = EndEvent { victim: Some(told).into(), ..Default::default() };
        assert_eq!(victim(&end), None);
        end.out_of_memory = true;
        let shown = victim(&end).map(|victim| (victim.pid, victim.command));
        assert_eq!(shown, Some((7, "?[2J a/é?".to_owned())));
        assert_eq!(program(&"x".repeat(1 << 20)).len(), NAME_MAX);
        assert_eq!(victim(&EndEvent { out_of_memory: true, ..Default::default() }), None);
    }

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
