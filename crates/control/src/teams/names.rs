// SPDX-License-Identifier: Apache-2.0
//! Names of teams.

use wrenn_rpc::Foreign;

use crate::error::Fault;

/// Maximum length of the name of a team, in characters.
const NAME_MAX: usize = 128;

/// Checks the name of a team.
pub(super) fn check_name(name: &str) -> Result<(), Fault> {
    let length = name.chars().count();
    if (1..=NAME_MAX).contains(&length) && name.trim() == name && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let rule = format!("it has 1 to {NAME_MAX} characters, no control characters, and no spaces around it");
    Err(Fault::invalid(format!("{} is no name of a team: {rule}", Foreign(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_on_one_line() {
        for name in ["a", "Ada's team", "計算機", &"x".repeat(NAME_MAX)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", " ", " a", "a ", "a\nb", "a\0", &"x".repeat(NAME_MAX + 1)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
