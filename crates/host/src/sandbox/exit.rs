//! The exit code of a command from the status text that envd reports.

/// Signals by the words that envd's status text uses.
const SIGNALS: [(&str, i32); 12] = [
    ("hangup", 1),
    ("interrupt", 2),
    ("quit", 3),
    ("illegal instruction", 4),
    ("trace/breakpoint trap", 5),
    ("aborted", 6),
    ("bus error", 7),
    ("floating point exception", 8),
    ("killed", 9),
    ("segmentation fault", 11),
    ("broken pipe", 13),
    ("terminated", 15),
];

/// The exit code of a command as shells give it: 128 + N when signal N ended it.
pub(crate) fn exit_code(reported: i32, status: &str) -> i32 {
    let Some(rest) = status.strip_prefix("signal: ") else { return reported };
    let words = rest.trim_end_matches(" (core dumped)").trim();
    let number = words.parse().ok().filter(|n| (1..=64).contains(n));
    let named = SIGNALS.iter().find(|(name, _)| *name == words).map(|(_, n)| *n);
    number.or(named).map_or(reported, |signal| 128 + signal)
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn signals_become_128_plus_n_and_exits_stay() {
        assert_eq!(exit_code(3, "exit status 3"), 3);
        assert_eq!(exit_code(-1, "signal: killed"), 137);
        assert_eq!(exit_code(-1, "signal: segmentation fault (core dumped)"), 139);
        assert_eq!(exit_code(-1, "signal: 34"), 162);
        assert_eq!(exit_code(-1, "signal: nonsense"), -1);
    }
}
