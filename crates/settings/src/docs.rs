// SPDX-License-Identifier: Apache-2.0
//! Documentation of keys as a Markdown table.

use crate::key::{Key, Kind, Unit};

/// Larger units, the largest first.
const OF_BYTES: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
const OF_SECONDS: [(u64, &str); 3] = [(24 * 3600, "days"), (3600, "hours"), (60, "minutes")];

/// Returns a Markdown table with a row for each key.
pub fn table(keys: &[Key]) -> String {
    let rows: String = keys.iter().map(row).collect();
    format!("| key | values | default | |\n|---|---|---|---|\n{rows}")
}

/// Returns a value as Markdown, with a larger unit if it is a multiple of one.
pub(crate) fn value(kind: &Kind, text: &str) -> String {
    let units: &[(u64, &str)] = match kind {
        Kind::Number(_, _, Unit::Bytes) => &OF_BYTES,
        Kind::Number(_, _, Unit::Seconds) => &OF_SECONDS,
        _ => &[],
    };
    let number = text.parse::<u64>().unwrap_or(0);
    let unit = units.iter().find(|(size, _)| number > *size && number.is_multiple_of(*size));
    let larger = unit.map(|(size, unit)| format!(" ({} {unit})", number / size)).unwrap_or_default();
    format!("`{text}`{larger}")
}

fn row(key: &Key) -> String {
    let variable = key.shared_variable.map(|name| format!(" (`{name}`)")).unwrap_or_default();
    format!("| `{}`{variable} | {} | {} | {} |\n", key.name, values(&key.kind), key.default, key.doc)
}

fn values(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Address => "IP address and port".to_owned(),
        Kind::Number(min, max, unit) => {
            let unit = match unit {
                Unit::Plain => "",
                Unit::Bytes => " bytes",
                Unit::Seconds => " s",
            };
            format!("{min} to {max}{unit}")
        }
        Kind::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_name_values_default_and_documentation() {
        let kind = Kind::Number(1, 1 << 30, Unit::Bytes);
        let default = value(&kind, "2097152");
        let key = Key { name: "a.b", kind, default, doc: "Size.", shared_variable: Some("AB") };
        let expected = "| `a.b` (`AB`) | 1 to 1073741824 bytes | `2097152` (2 MiB) | Size. |";
        assert_eq!(table(&[key]).lines().last(), Some(expected));
    }

    #[test]
    fn a_value_that_is_no_multiple_has_no_larger_unit() {
        let kind = Kind::Number(1, 3600, Unit::Seconds);
        assert_eq!(
            ["10", "60", "90", "7200"].map(|text| value(&kind, text)),
            ["`10`", "`60`", "`90`", "`7200` (2 hours)"]
        );
    }
}
