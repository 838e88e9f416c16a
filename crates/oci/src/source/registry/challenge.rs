// SPDX-License-Identifier: Apache-2.0
//! What a registry asks for when it answers 401.

/// How to prove who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By name and password.
    Basic,
    /// By a token that another server gives.
    Bearer {
        /// URL of that server.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
    },
}

/// Finds a challenge that can be met in the values of `WWW-Authenticate`; tokens are better than passwords.
pub(super) fn find<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<_> = values.filter_map(parsed).collect();
    all.iter().find(|one| **one != Challenge::Basic).or(all.first()).cloned()
}

fn parsed(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    for (name, value) in parameters(rest) {
        match name.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            // The scope is known: to pull from this repository.
            _ => {}
        }
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

/// Reads `name="value"` or `name=value`, separated by commas.
fn parameters(text: &str) -> Vec<(&str, String)> {
    let (mut all, mut rest) = (Vec::new(), text);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_start_matches([',', ' ', '\t']).trim_end();
        let (value, left) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        all.push((name, value));
        rest = left;
    }
    all
}

/// Reads up to the closing quote, and returns what follows it.
fn unquoted(text: &str) -> (String, &str) {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, &text[at + 1..]),
            c => {
                value.push(c);
                escaped = false;
            }
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn a_challenge_that_can_be_met_is_found() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        let cases: [(&[&str], Option<Challenge>); 8] = [
            (&[hub], Some(bearer("https://auth.docker.io/token", Some("registry.docker.io")))),
            (
                &["Basic realm=x", "bearer realm=https://a/t , Service=s"],
                Some(bearer("https://a/t", Some("s"))),
            ),
            (&[r#"Bearer scope="a,b\"c=d", realm="https://a""#], Some(bearer("https://a", None))),
            (&["Negotiate", "BASIC realm=\"x\""], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&["Bearer service=x"], None),
            (&["Digest realm=x", ""], None),
            (&[], None),
        ];
        for (values, expected) in cases {
            assert_eq!(find(values.iter().copied()), expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read(text in "(Bearer )?[a-z=\",\\\\ ä]{0,40}") {
            let _ = find(std::iter::once(text.as_str()));
        }
    }
}
