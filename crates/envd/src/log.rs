// SPDX-License-Identifier: Apache-2.0
//! envd's log: lines on the console, which the host keeps, with the id of the request.

use std::fmt::Display;

use http::HeaderMap;

/// Maximum length of a request id in characters.
const ID: usize = 128;
/// Maximum length of a line in characters.
const LINE: usize = 1024;

/// Returns the id of a request if it is printable.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    (!id.is_empty() && id.len() <= ID && id.bytes().all(|byte| byte.is_ascii_graphic())).then_some(id)
}

/// Writes one line; escapes its text, which may be untrusted.
pub(crate) fn line(request: Option<&str>, text: impl Display) {
    eprintln!("envd: {}", shape(request, &text.to_string()));
}

fn shape(request: Option<&str>, text: &str) -> String {
    let mut line = request.map(|id| format!("request {id}: ")).unwrap_or_default();
    for letter in text.chars().take(LINE) {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_carries_the_requests_id() {
        let mut headers = HeaderMap::new();
        assert_eq!(request_id(&headers), None);
        headers.insert("x-request-id", "01a2-b".parse().unwrap());
        let id = request_id(&headers);
        assert_eq!(shape(id, "a\nb\u{1b}[2J"), "request 01a2-b: a\\nb\\u{1b}[2J");
        assert_eq!(shape(None, &"x".repeat(5000)).len(), LINE);
        headers.insert("x-request-id", "a b".parse().unwrap());
        assert_eq!(request_id(&headers), None);
    }
}
