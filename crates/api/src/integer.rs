// SPDX-License-Identifier: Apache-2.0
//! Deserializer of integers as JSON Schema defines them: `21.0` is an integer too.

use std::fmt;

use serde::{Deserializer, de};

struct Integer;

impl de::Visitor<'_> for Integer {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number that is not negative")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u32, E> {
        u32::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u32, E> {
        u32::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<u32, E> {
        if value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
            return Ok(value as u32);
        }
        Err(E::invalid_value(de::Unexpected::Float(value), &self))
    }
}

struct Optional;

impl<'de> de::Visitor<'de> for Optional {
    type Value = Option<u32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number that is not negative, or null")
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<u32>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<u32>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u32>, D::Error> {
        deserializer.deserialize_any(Integer).map(Some)
    }
}

/// Deserializes an optional integer.
pub(crate) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    deserializer.deserialize_option(Optional)
}

#[cfg(test)]
mod tests {
    use crate::CreateSandbox;

    fn vcpus(json: &str) -> Result<Option<u32>, ()> {
        let parsed = serde_json::from_str::<CreateSandbox>(&format!(r#"{{"vcpus":{json}}}"#));
        parsed.map(|parsed| parsed.vcpus).map_err(drop)
    }

    #[test]
    fn whole_numbers_in_any_notation() {
        assert_eq!(vcpus("21"), Ok(Some(21)));
        assert_eq!(vcpus("21.0"), Ok(Some(21)));
        assert_eq!(vcpus("2.1e1"), Ok(Some(21)));
        assert_eq!(vcpus("null"), Ok(None));
        for bad in ["21.5", "-1", "-1.0", "\"21\"", "4294967296", "1e300", "true", "[]"] {
            assert_eq!(vcpus(bad), Err(()), "{bad}");
        }
    }
}
