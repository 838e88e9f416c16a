// SPDX-License-Identifier: Apache-2.0
//! Typed ids: internally a UUIDv7, externally a prefix of letters and 25 lower-case base-36 digits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Number of base-36 digits of the largest 128-bit number.
const DIGITS: usize = 25;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Errors of parsing an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text does not begin with the prefix of this type.
    #[error("an id of this kind begins with \"{0}\"")]
    Prefix(&'static str),
    /// The part after the prefix is not 25 lower-case base-36 digits of at most 128 bits.
    #[error("an id is \"{0}\" followed by 25 digits or lower-case letters")]
    Digits(&'static str),
}

fn encode(prefix: &str, value: u128) -> String {
    let mut digits = [b'0'; DIGITS];
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 36) as usize];
        rest /= 36;
    }
    let mut text = String::with_capacity(prefix.len() + DIGITS);
    text.push_str(prefix);
    text.extend(digits.iter().map(|&digit| char::from(digit)));
    text
}

fn decode(prefix: &'static str, text: &str) -> Result<u128, IdError> {
    let digits = text.strip_prefix(prefix).ok_or(IdError::Prefix(prefix))?;
    if digits.len() != DIGITS {
        return Err(IdError::Digits(prefix));
    }
    digits
        .bytes()
        .try_fold(0_u128, |value, byte| {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                _ => return None,
            };
            value.checked_mul(36)?.checked_add(u128::from(digit))
        })
        .ok_or(IdError::Digits(prefix))
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Prefix of the text form.
            pub const PREFIX: &'static str = $prefix;

            /// Generates an id; later ids sort after earlier ones.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// Id as stored in the database.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode(Self::PREFIX, self.0.as_u128()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode(Self::PREFIX, text).map(|value| Self(Uuid::from_u128(value)))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

typed_id!(
    /// Id of a build.
    BuildId, "bd"
);

typed_id!(
    /// Id of a sandbox.
    SandboxId, "sb"
);
typed_id!(
    /// Id of a team, the owner of sandboxes and API keys.
    TeamId, "team"
);
typed_id!(
    /// Id of an API key (not its secret).
    ApiKeyId, "key"
);
typed_id!(
    /// Id of a host.
    HostId, "host"
);
typed_id!(
    /// Id of a user.
    UserId, "us"
);
typed_id!(
    /// Id of a session: one sign-in of a user.
    SessionId, "se"
);
typed_id!(
    /// Id of an invitation into a team.
    InvitationId, "iv"
);
typed_id!(
    /// Id of a channel, to which events are delivered.
    ChannelId, "ch"
);
typed_id!(
    /// Id of a delivery of an event to a channel.
    DeliveryId, "de"
);
typed_id!(
    /// Id of an entry of the audit log.
    AuditId, "au"
);

impl TeamId {
    /// The team that the platform's sandboxes and templates belong to. Nobody is in it or has a key of it: who administers the
    /// platform acts for it.
    pub const PLATFORM: Self = Self(Uuid::nil());
    /// The team of a user who is in no team. No team has this id, and nobody has a permission in it.
    pub const NONE: Self = Self(Uuid::max());
}

impl SandboxId {
    /// Minimum length of the beginning of an id: a shorter one is too easily a typing error.
    pub const BEGINNING_MIN: usize = 6;

    /// Returns the first and the last id with this beginning, and `None` if no id has it, or if it is too short.
    pub fn range(beginning: &str) -> Option<(Self, Self)> {
        let length = Self::PREFIX.len() + DIGITS;
        if !(Self::BEGINNING_MIN..=length).contains(&beginning.len()) || !beginning.is_ascii() {
            return None;
        }
        let first = format!("{beginning:0<length$}").parse().ok()?;
        let largest = Self(Uuid::from_u128(u128::MAX));
        Some((first, format!("{beginning:z<length$}").parse().unwrap_or(largest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_form_is_letters_and_digits_only() {
        let text = SandboxId::new().to_string();
        assert_eq!(text.len(), 27);
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{text}");
    }

    #[test]
    fn a_number_beyond_128_bits_is_refused() {
        assert!("sbf5lxx1zz5pnorynqglhzmsp33".parse::<SandboxId>().is_ok());
        let next = "sbf5lxx1zz5pnorynqglhzmsp34".parse::<SandboxId>();
        assert_eq!(next, Err(IdError::Digits("sb")));
        assert!("sbzzzzzzzzzzzzzzzzzzzzzzzzz".parse::<SandboxId>().is_err());
    }

    #[test]
    fn one_kind_is_not_another() {
        let team = TeamId::new().to_string();
        assert_eq!(team.parse::<SandboxId>(), Err(IdError::Prefix("sb")));
    }

    #[test]
    fn beginnings_are_ranges_of_ids() {
        let id = |text: &str| text.parse::<SandboxId>().expect("an id");
        let first_and_last = |text: &str| SandboxId::range(text).map(|(a, b)| (a.to_string(), b.to_string()));
        let all = (id("sb03hal00000000000000000000"), id("sb03halzzzzzzzzzzzzzzzzzzzz"));
        assert_eq!(SandboxId::range("sb03hal"), Some(all));
        // The largest id is not of `z` alone.
        let last = first_and_last("sbf5lxx").map(|(_, last)| last);
        assert_eq!(last.as_deref(), Some("sbf5lxx1zz5pnorynqglhzmsp33"));
        for none in
            ["", "sb", "sb03h", "xb03hal", "sb03HAL", "sb03hä", "sbzzzz", "sb03hal0000000000000000000000"]
        {
            assert_eq!(SandboxId::range(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_in_the_ranges_of_its_beginnings(value: u128, length in 6_usize..=27) {
            let id = SandboxId::from(Uuid::from_u128(value));
            let (first, last) = SandboxId::range(&id.to_string()[..length]).expect("a range");
            prop_assert!(first.uuid() <= id.uuid() && id.uuid() <= last.uuid());
        }

        #[test]
        fn every_id_survives_its_text_form(value: u128) {
            let id = SandboxId::from(Uuid::from_u128(value));
            prop_assert_eq!(id.to_string().parse::<SandboxId>(), Ok(id));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = text.parse::<SandboxId>();
            let _ = format!("sb{text}").parse::<SandboxId>();
        }
    }
}
