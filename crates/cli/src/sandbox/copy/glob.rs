// SPDX-License-Identifier: Apache-2.0
//! Patterns of names as shells have them, for names in sandboxes: `*` is any text, `?` any character.

/// Returns whether a name is a pattern.
pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?'])
}

/// Returns whether a name matches a pattern. A name that begins with a dot does only if the pattern does, too.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where the last `*` is, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                // It takes one more character.
                let Some((place, taken)) = star else { return false };
                star = Some((place, taken + 1));
                (at, from) = (place + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name) in [
            ("*", "a"),
            ("*.log", "a.log"),
            ("a*b*c", "aXbYbc"),
            ("?", "ä"),
            ("a?", "ab"),
            (".*", ".a"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("*", ".a"), ("*.log", "a.logs"), ("a?", "a"), ("?", "ab"), ("a*b", "ac"), ("", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(matches(&"*a".repeat(200), &"a".repeat(200)), "it ends soon");
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(2000)));
    }
}
