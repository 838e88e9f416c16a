// SPDX-License-Identifier: Apache-2.0
//! What e-mail addresses and names of users may be.

use lettre::Address;

use crate::error::Fault;

/// Maximum length of an address.
pub(crate) const EMAIL_MAX: usize = 254;
/// Maximum length of a name, in characters.
const NAME_MAX: usize = 100;

/// Returns an e-mail address in the form in which it is stored: in small letters, without space around it.
pub(crate) fn email(text: &str) -> Result<String, Fault> {
    let text = text.trim();
    let strange = |byte: u8| !byte.is_ascii_graphic() || b"\"(),:;<>[\\]".contains(&byte);
    // What needs quotes is an address, too, and nobody has one: it only confuses what reads it.
    if text.len() > EMAIL_MAX || text.bytes().any(strange) || text.parse::<Address>().is_err() {
        return Err(Fault::invalid("email is no e-mail address: give one such as ada@example.com"));
    }
    Ok(text.to_ascii_lowercase())
}

/// Returns the name of a user, without space around it.
pub(crate) fn name(text: &str) -> Result<String, Fault> {
    let text = text.trim();
    let length = text.chars().count();
    if !(1..=NAME_MAX).contains(&length) || text.chars().any(char::is_control) {
        let message = format!("name: give 1 to {NAME_MAX} characters, without control characters");
        return Err(Fault::invalid(message));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_stored_in_one_form() {
        for text in ["ada@example.com", " Ada@Example.COM\n", "ADA@EXAMPLE.COM"] {
            assert_eq!(email(text).ok().as_deref(), Some("ada@example.com"), "{text:?}");
        }
        assert_eq!(email("admin@localhost").ok().as_deref(), Some("admin@localhost"));
        assert_eq!(email("o'neil+wrenn@example.com").ok().as_deref(), Some("o'neil+wrenn@example.com"));
        for text in [
            "",
            "ada",
            "ada@",
            "@example.com",
            "a@b@c",
            "\"a b\"@example.com",
            "a,b@example.com",
            "a@example.com\r\nBcc: b@example.com",
            "ada@exämple.com",
            &format!("{}@example.com", "a".repeat(254)),
        ] {
            assert!(email(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_one_line() {
        assert_eq!(name(" Ada Lovelace ").ok().as_deref(), Some("Ada Lovelace"));
        assert!(name(&"é".repeat(100)).is_ok());
        for text in ["", "  ", "a\nb", &"x".repeat(101)] {
            assert!(name(text).is_err(), "{text:?}");
        }
    }
}
