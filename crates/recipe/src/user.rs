// SPDX-License-Identifier: Apache-2.0
//! Users of steps, and owners of what they copy.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::shown;

/// Maximum length of a name, in bytes.
const NAME: usize = 64;

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Account {
    /// Its number.
    Id(u32),
    /// Its name, which the guest looks up.
    Name(String),
}

/// A user, with a group other than its own if one is given: `NAME`, `UID`, `NAME:GROUP`, `UID:GID`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct User {
    /// The user.
    pub account: Account,
    /// The group; without one, that of the user.
    pub group: Option<Account>,
}

/// Error of a text that is not a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a user: write a name (letters, digits, '_', '.' or '-', not first a digit) or a number, and after a ':' a group \
     in the same way"
)]
pub struct UserError(String);

impl User {
    /// Returns the user `root`.
    pub fn root() -> Self {
        Self { account: Account::Name("root".to_owned()), group: None }
    }
}

impl Account {
    fn parse(text: &str) -> Option<Self> {
        if text.len() > NAME {
            return None;
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The largest number stands for no user in the kernel.
            return text.parse::<u32>().ok().filter(|id| *id != u32::MAX).map(Self::Id);
        }
        let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_name = text.bytes().next().is_some_and(first) && text.bytes().all(rest);
        is_name.then(|| Self::Name(text.to_owned()))
    }
}

impl FromStr for User {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let error = || UserError(shown(text));
        let (account, group) = match text.split_once(':') {
            Some((account, group)) => (account, Some(Account::parse(group).ok_or_else(error)?)),
            None => (text, None),
        };
        Ok(Self { account: Account::parse(account).ok_or_else(error)?, group })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.account.fmt(f)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_or_numbers() {
        for text in ["root", "wrenn-user", "_apt", "1000", "1000:1000", "www-data:adm", "0:wheel", "a.b"] {
            assert_eq!(text.parse::<User>().unwrap().to_string(), text);
        }
        let expected = User { account: Account::Id(7), group: Some(Account::Name("g".into())) };
        assert_eq!("007:g".parse(), Ok(expected));
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "x".repeat(65);
        for text in [
            "",
            ":",
            "a:",
            ":b",
            "a:b:c",
            "-a",
            "4294967295",
            "1000a",
            "a b",
            "a/b",
            "../x",
            "ä",
            "a\n",
            &long,
        ] {
            assert!(text.parse::<User>().is_err(), "{text}");
        }
    }
}
