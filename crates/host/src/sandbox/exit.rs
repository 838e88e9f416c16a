// SPDX-License-Identifier: Apache-2.0
//! Exit code of a command, computed from the guest's report.

use wrenn_rpc::process::process_event::EndEvent;

/// Highest signal number of Linux.
const SIGNAL_MAX: i64 = 64;
/// Exit code of a command whose guest reports no valid status.
const UNKNOWN: i32 = -1;

/// Signal names in the status text, for guests whose envd does not send the number.
const SIGNALS: [(&str, i64); 12] = [
    ("hangup", 1),
    ("interrupt", 2),
    ("quit", 3),
    ("illegal instruction", 4),
    ("aborted", 6),
    ("bus error", 7),
    ("floating point exception", 8),
    ("killed", 9),
    ("segmentation fault", 11),
    ("broken pipe", 13),
    ("alarm clock", 14),
    ("terminated", 15),
];

/// Returns the exit code as shells do: 128 + N if signal N killed the command, -1 for an impossible status.
pub(super) fn exit_code(end: &EndEvent) -> i32 {
    let signal = end.signal.map(i64::from).or_else(|| signal_of(&end.status));
    match signal {
        Some(signal) if (1..=SIGNAL_MAX).contains(&signal) => 128 + signal as i32,
        None if (0..=255).contains(&end.exit_code) => end.exit_code,
        _ => UNKNOWN,
    }
}

/// Parses the signal in a status text such as `signal: killed` or `signal: signal 10`.
fn signal_of(status: &str) -> Option<i64> {
    let words = status.strip_prefix("signal: ")?.trim_end_matches(" (core dumped)").trim();
    let named = SIGNALS.iter().find(|(name, _)| *name == words).map(|(_, number)| *number);
    named.or_else(|| words.trim_start_matches("signal ").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32, status: &str, signal: Option<u32>) -> i32 {
        super::exit_code(&EndEvent { exit_code, status: status.into(), signal, ..Default::default() })
    }

    #[test]
    fn signals_become_128_plus_n_and_exits_stay() {
        assert_eq!(end(3, "exit status 3", None), 3);
        assert_eq!(end(-1, "signal: killed", None), 137);
        assert_eq!(end(-1, "signal: segmentation fault (core dumped)", None), 139);
        assert_eq!(end(-1, "signal: alarm clock", None), 142);
        assert_eq!(end(-1, "signal: signal 10", None), 138);
        for signal in 1..=64 {
            assert_eq!(end(-1, "signal: whatever", Some(signal)), 128 + signal as i32);
            assert_eq!(end(-1, &format!("signal: signal {signal}"), None), 128 + signal as i32);
        }
    }

    #[test]
    fn codes_that_no_process_has_are_minus_one() {
        for code in [i32::MIN, -2, 256, i32::MAX] {
            assert_eq!(end(code, "exit status 0", None), -1);
        }
        assert_eq!(end(-1, "signal: nonsense", None), -1);
        assert_eq!(end(-1, "signal: signal 9999999999", None), -1);
        assert_eq!(end(0, "", Some(0)), -1);
        assert_eq!(end(0, "", Some(u32::MAX)), -1);
    }
}
