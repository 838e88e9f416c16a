// SPDX-License-Identifier: Apache-2.0
//! Lines of comma-separated values (RFC 4180), which spreadsheets do not take for formulas.

/// Renders a line.
pub(crate) fn line(fields: &[String]) -> String {
    let mut line = fields.iter().map(|text| field(text)).collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

/// Renders a field. One that a spreadsheet would calculate gets an apostrophe: names come from people who are not to be trusted.
fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if !formula && !text.contains([',', '"', '\n', '\r']) {
        return text.to_owned();
    }
    format!("\"{}{}\"", if formula { "'" } else { "" }, text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_are_no_formulas() {
        let of = |text: &str| line(&["a".to_owned(), text.to_owned()]);
        assert_eq!(of(""), "a,\r\n");
        assert_eq!(of("b c"), "a,b c\r\n");
        assert_eq!(of("b,\"c\"\n"), "a,\"b,\"\"c\"\"\n\"\r\n");
        for formula in ["=1", "+1", "-1", "@x"] {
            assert_eq!(of(formula), format!("a,\"'{formula}\"\r\n"));
        }
    }
}
