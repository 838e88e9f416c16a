// SPDX-License-Identifier: Apache-2.0
//! Content codings of HTTP: what a request's body is in, and what a response's body may be in (RFC 9110, sections 8.4 and
//! 12.5.3). gzip is the only one besides none.

use axum::http::{HeaderMap, header};

/// Codings that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// Only the content as it is.
    Plain,
    /// gzip, or the content as it is.
    Gzip,
    /// gzip, not the content as it is.
    OnlyGzip,
}

/// Returns whether a request's body is gzipped; an error with its coding if it is in any other.
pub(super) fn is_gzipped(headers: &HeaderMap) -> Result<bool, String> {
    let values: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().collect();
    let text = match values[..] {
        [] => return Ok(false),
        [value] => value.to_str().unwrap_or("?").trim(),
        _ => return Err("several codings".into()),
    };
    match text.to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => Err(text.chars().take(64).collect()),
    }
}

/// Reads `Accept-Encoding`; `None` if the client accepts nothing that there is.
pub(super) fn accepted(headers: &HeaderMap) -> Option<Accepted> {
    let (mut gzip, mut plain, mut any) = (None, None, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
            let weight = weight.and_then(|w| w.parse::<f32>().ok()).unwrap_or(1.0);
            match name.as_str() {
                "gzip" | "x-gzip" => gzip = Some(weight),
                "identity" => plain = Some(weight),
                "*" => any = Some(weight),
                _ => {}
            }
        }
    }
    // The content as it is is acceptable unless that is excluded.
    if plain.or(any).is_some_and(|weight| weight <= 0.0) {
        return (gzip.or(any).unwrap_or(0.0) > 0.0).then_some(Accepted::OnlyGzip);
    }
    // `*` alone says that the client can do anything, not that it wants gzip.
    let wanted = gzip.is_some_and(|weight| weight > 0.0 && weight >= plain.unwrap_or(0.0));
    Some(if wanted { Accepted::Gzip } else { Accepted::Plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_client_accepts() {
        let read =
            |text: &str| accepted(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, text.parse().unwrap())]));
        assert_eq!(accepted(&HeaderMap::new()), Some(Accepted::Plain));
        for text in ["", "identity", "br", "*", "gzip;q=0", "gzip;q=0.5, identity", "deflate, zstd"] {
            assert_eq!(read(text), Some(Accepted::Plain), "{text}");
        }
        for text in ["gzip, deflate", "gzip, deflate, zstd", "GZIP", "br;q=1, gzip;q=0.1", "gzip, identity"] {
            assert_eq!(read(text), Some(Accepted::Gzip), "{text}");
        }
        for text in ["gzip, identity;q=0", "*;q=0, gzip", "*, identity;q=0", "identity; q=0.0, *;q=0.3"] {
            assert_eq!(read(text), Some(Accepted::OnlyGzip), "{text}");
        }
        for text in ["identity;q=0", "*;q=0", "br, identity;q=0", "gzip;q=0, identity;q=0"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn reads_the_coding_of_a_body() {
        let read = |text: &str| {
            is_gzipped(&HeaderMap::from_iter([(header::CONTENT_ENCODING, text.parse().unwrap())]))
        };
        assert_eq!(is_gzipped(&HeaderMap::new()), Ok(false));
        assert_eq!((read("identity"), read("gzip"), read("GZip")), (Ok(false), Ok(true), Ok(true)));
        assert_eq!(read("br"), Err("br".into()));
        assert_eq!(read("gzip, gzip"), Err("gzip, gzip".into()));
    }
}
