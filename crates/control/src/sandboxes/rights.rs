// SPDX-License-Identifier: Apache-2.0
//! Whose files are, and with which permissions.

use crate::error::Fault;

/// Maximum length of the name of a user or a group, in characters.
const NAME_MAX: usize = 256;

/// User of a request: whose home relative paths begin from, and whom what is made belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfUser(String);

impl OfUser {
    /// Checks a user's name; without one, it is the default user of the template.
    pub fn new(name: Option<String>) -> Result<Self, Fault> {
        name.map_or(Ok(Self::default()), |name| checked_name("user", name).map(Self))
    }

    pub(super) fn into_name(self) -> String {
        self.0
    }
}

/// Checks the name of a user or a group; `field` is its name in the request.
fn checked_name(field: &str, name: String) -> Result<String, Fault> {
    if (1..=NAME_MAX).contains(&name.chars().count()) && !name.contains('\0') {
        return Ok(name);
    }
    Err(Fault::invalid(format!("{field}: 1 to {NAME_MAX} characters without NUL")))
}

/// What a file gets instead of what it has, or would get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    mode: Option<u32>,
    owner: String,
    group: String,
}

impl Rights {
    /// Checks permission bits in octal digits, and an owner and a group by name or number.
    pub fn new(mode: Option<&str>, owner: Option<String>, group: Option<String>) -> Result<Self, Fault> {
        let octal = |text: &str| {
            let digits =
                (1..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits);
            mode.ok_or_else(|| Fault::invalid("mode: permission bits in 1 to 4 octal digits, such as 0644"))
        };
        let name =
            |field, name: Option<String>| name.map_or(Ok(String::new()), |name| checked_name(field, name));
        Ok(Self {
            mode: mode.map(octal).transpose()?,
            owner: name("owner", owner)?,
            group: name("group", group)?,
        })
    }

    /// Returns mode, owner and group; the latter are empty if they are not given.
    pub(super) fn into_parts(self) -> (Option<u32>, String, String) {
        (self.mode, self.owner, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_bits_are_octal_digits() {
        let mode = |text| Rights::new(Some(text), None, None).map(|rights| rights.mode).map_err(drop);
        assert_eq!((mode("0644"), mode("7"), mode("4755")), (Ok(Some(0o644)), Ok(Some(7)), Ok(Some(0o4755))));
        for wrong in ["", "8", "00644", "-1", "+7", "u+x", "0o64"] {
            assert_eq!(mode(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn names_are_bounded() {
        for wrong in [String::new(), "a\0b".to_owned(), "x".repeat(257)] {
            assert!(OfUser::new(Some(wrong.clone())).is_err(), "{wrong:?}");
            assert!(Rights::new(None, Some(wrong), None).is_err());
        }
        assert_eq!(OfUser::new(None).map(OfUser::into_name).ok().as_deref(), Some(""));
    }
}
