// SPDX-License-Identifier: Apache-2.0
//! The cookie of a browser's session. Scripts cannot read it, and other sites cannot send it along with what changes something.

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, header};
use wrenn_api::Secret;

/// Name of the cookie over plain HTTP.
pub(super) const SESSION: &str = "wrenn_session";

/// Name of the cookie with the value of `X-CSRF-Token` over plain HTTP.
const CSRF: &str = "wrenn_csrf";
/// Beginning of the names over HTTPS. Browsers take such a cookie only from this very host: no page of a name below or beside it, as
/// sandboxes have, can give a browser the session of somebody else.
const OF_HOST: &str = "__Host-";
/// Keeps a cookie from scripts.
const HTTP_ONLY: &str = "; HttpOnly";

/// Returns the header that sets the cookie of a session until this ends.
pub(super) fn set(value: &Secret, expires_at: DateTime<Utc>, is_https: bool) -> Option<HeaderValue> {
    header_of(SESSION, value.reveal(), seconds_until(expires_at), HTTP_ONLY, is_https)
}

/// Returns the header that sets the cookie with the value of `X-CSRF-Token`, which scripts of this server read.
pub(super) fn set_csrf(token: &Secret, expires_at: DateTime<Utc>, is_https: bool) -> Option<HeaderValue> {
    header_of(CSRF, token.reveal(), seconds_until(expires_at), "", is_https)
}

/// Returns the header that removes the cookie.
pub(super) fn clear(is_https: bool) -> Option<HeaderValue> {
    header_of(SESSION, "", 0, HTTP_ONLY, is_https)
}

fn seconds_until(time: DateTime<Utc>) -> i64 {
    (time - Utc::now()).num_seconds().max(0)
}

fn header_of(name: &str, value: &str, seconds: i64, more: &str, is_https: bool) -> Option<HeaderValue> {
    let (prefix, secure) = (prefix(is_https), if is_https { "; Secure" } else { "" });
    let text = format!("{prefix}{name}={value}; Path=/; Max-Age={seconds}{more}; SameSite=Lax{secure}");
    let mut header = HeaderValue::from_str(&text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

const fn prefix(is_https: bool) -> &'static str {
    if is_https { OF_HOST } else { "" }
}

/// Returns the value of the cookie that a request has. Of several only the first counts, as browsers send the closest first.
pub(super) fn of(headers: &HeaderMap, is_https: bool) -> Option<&str> {
    value(headers, &format!("{}{SESSION}", prefix(is_https)))
}

/// Returns the value of the first cookie with a name that a request has.
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    pairs(headers).find(|(given, _)| *given == name).map(|(_, value)| value)
}

/// Returns the names of the cookies that a request has, as they come.
pub(super) fn names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    pairs(headers).map(|(name, _)| name)
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn scripts_and_other_sites_have_no_use_of_it() {
        let end = Utc::now() + TimeDelta::days(1);
        let header = set(&Secret::from("abc".to_owned()), end, true).expect("a header");
        let text = header.to_str().expect("text");
        assert!(text.starts_with("__Host-wrenn_session=abc; Path=/; Max-Age=863"), "{text}");
        assert!(text.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{text}");
        assert!(!format!("{header:?}").contains("abc"));
        let plain = set(&Secret::from("abc".to_owned()), end, false).expect("a header");
        let text = plain.to_str().expect("text");
        assert!(text.starts_with("wrenn_session=abc; ") && !text.contains("Secure"), "{text}");
        let csrf = set_csrf(&Secret::from("def".to_owned()), end, false).expect("a header");
        let text = csrf.to_str().expect("text");
        assert!(
            text.starts_with("wrenn_csrf=def; Path=/; Max-Age=863") && !text.contains("HttpOnly"),
            "{text}"
        );
        assert!(set(&Secret::from("a\nb".to_owned()), end, true).is_none());
        let gone = clear(false).expect("a header");
        assert_eq!(gone.to_str().ok(), Some("wrenn_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"));
    }

    #[test]
    fn it_is_found_among_others() {
        let mut headers = HeaderMap::new();
        assert_eq!(of(&headers, false), None);
        headers.append(header::COOKIE, HeaderValue::from_static("a=b; wrenn_sessions=x"));
        assert_eq!(of(&headers, false), None);
        headers.append(header::COOKIE, HeaderValue::from_static("c=d;wrenn_session=abc=; wrenn_session=e"));
        assert_eq!(of(&headers, false), Some("abc="));
        // Another host may have set it.
        assert_eq!(of(&headers, true), None);
        headers.append(header::COOKIE, HeaderValue::from_static("__Host-wrenn_session=f"));
        assert_eq!((of(&headers, true), of(&headers, false)), (Some("f"), Some("abc=")));
    }
}
