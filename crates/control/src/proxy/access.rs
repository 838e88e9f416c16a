// SPDX-License-Identifier: Apache-2.0
//! Access to private ports: the traffic token of the sandbox, in a header, in the query, or in a cookie. Pure.

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::headers::take_cookies;

/// Headers with the token.
const HEADERS: [&str; 2] = ["x-wrenn-traffic-token", "e2b-traffic-access-token"];
/// Parameter of the query with the token.
pub(crate) const PARAMETER: &str = "wrenn_traffic_token";
/// Cookie with the token.
const COOKIE: &str = "wrenn-traffic-token";
/// Seconds for which a browser keeps the cookie.
const COOKIE_AGE: u32 = 12 * 3600;

/// The tokens of a request, in descending order of their strength.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) header: Option<String>,
    pub(super) query: Option<String>,
    /// Another sandbox of the domain may have set one, too.
    pub(super) cookies: Vec<String>,
}

/// How a token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Header,
    Query,
    Cookie,
}

impl Given {
    /// Takes all tokens out of a request, so that the sandbox gets none.
    pub(super) fn take(uri: &mut Uri, headers: &mut HeaderMap) -> Self {
        let mut given = Self::default();
        for name in HEADERS {
            let value = headers.remove(name).and_then(|value| value.to_str().ok().map(str::to_owned));
            given.header = given.header.or(value);
        }
        if let Some((token, rest)) = uri.query().and_then(token_of_query)
            && let Some(without) = with_query(uri, &rest)
        {
            given.query = Some(token);
            *uri = without;
        }
        given.cookies = take_cookies(headers, &[COOKIE]);
        given
    }

    /// Returns how the right token came.
    pub(super) fn proves(&self, token: &str) -> Option<By> {
        let right = |given: &String| same(given, token);
        if self.header.as_ref().is_some_and(right) {
            Some(By::Header)
        } else if self.query.as_ref().is_some_and(right) {
            Some(By::Query)
        } else {
            self.cookies.iter().any(right).then_some(By::Cookie)
        }
    }
}

/// Compares secrets in constant time, independent of their length.
fn same(one: &str, other: &str) -> bool {
    Sha256::digest(one)[..].ct_eq(&Sha256::digest(other)[..]).into()
}

/// Returns the token of a query, and the query without it.
fn token_of_query(query: &str) -> Option<(String, String)> {
    let is_token = |part: &&str| part.split_once('=').is_some_and(|(name, _)| name == PARAMETER);
    let (_, value) = query.split('&').find(is_token)?.split_once('=')?;
    let rest: Vec<&str> = query.split('&').filter(|part| !is_token(part)).collect();
    Some((percent_decode_str(value).decode_utf8_lossy().into_owned(), rest.join("&")))
}

fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = uri.path();
    let all = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(all.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Returns the cookie with which a browser goes on without the token in the URL.
pub(super) fn cookie(token: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={token}; Path=/; Max-Age={COOKIE_AGE}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).ok()
}

/// Whether a browser sends a request because of a page of another sandbox or site, whose cookies it sends all the same. A link
/// from there is no such request.
pub(super) fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = text("sec-fetch-site").is_some_and(|site| matches!(site, "same-site" | "cross-site"));
    foreign && !(method == Method::GET && text("sec-fetch-mode") == Some("navigate"))
}

/// Whether a browser asks for a page, which it can be sent on from.
pub(super) fn wants_page(method: &Method, headers: &HeaderMap) -> bool {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    method == Method::GET && accepts.is_some_and(|kinds| kinds.contains("text/html"))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::{prop_assert, proptest};

    use super::*;
    use crate::proxy::headers::value_of_cookie;

    fn take(uri: &str, headers: &[(&str, &str)]) -> (Given, String, Vec<String>) {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).expect("a request");
        let mut uri = request.uri().clone();
        let given = Given::take(&mut uri, request.headers_mut());
        let left = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")));
        (given, uri.to_string(), left.collect())
    }

    #[test]
    fn the_sandbox_gets_no_token() {
        let cookies = ("cookie", "a=1; wrenn-traffic-token=c; b=2");
        let (given, uri, left) = take(
            "/x%2Fy?wrenn_traffic_token=q%2B&z=%20",
            &[("e2b-traffic-access-token", "h"), cookies, ("cookie", "wrenn-traffic-token=d")],
        );
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            given,
            Given { header: some("h"), query: some("q+"), cookies: vec!["c".to_owned(), "d".to_owned()] }
        );
        assert_eq!((uri.as_str(), left), ("/x%2Fy?z=%20", vec!["cookie: a=1; b=2".to_owned()]));
        let (given, uri, left) = take("/?wrenn_traffic_token=q", &[("cookie", "a=1;b=2")]);
        assert_eq!((given.query, uri.as_str(), left), (some("q"), "/", vec!["cookie: a=1;b=2".to_owned()]));
        assert_eq!(take("/?x", &[]).0, Given::default());
    }

    #[test]
    fn the_right_token_counts_however_it_came() {
        let given = |header: &str, query: &str, cookie: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Given {
                header: some(header),
                query: some(query),
                cookies: cookie.split(',').map(str::to_owned).collect(),
            }
        };
        assert_eq!(given("right", "", "").proves("right"), Some(By::Header));
        assert_eq!(given("wrong", "right", "right").proves("right"), Some(By::Query));
        assert_eq!(given("", "", "right").proves("right"), Some(By::Cookie));
        assert_eq!(given("", "", "another,right").proves("right"), Some(By::Cookie));
        assert_eq!(given("wrong", "rightx", "righ").proves("right"), None);
        assert_eq!(Given::default().proves(""), None);
    }

    #[test]
    fn pages_of_others_do_not_use_the_cookie() {
        let foreign = |method: Method, site: &str, mode: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("sec-fetch-site", site.parse().expect("a value"));
            headers.insert("sec-fetch-mode", mode.parse().expect("a value"));
            is_foreign(&method, &headers)
        };
        assert!(
            foreign(Method::GET, "same-site", "no-cors") && foreign(Method::POST, "cross-site", "navigate")
        );
        assert!(foreign(Method::GET, "same-site", "websocket"));
        assert!(
            !foreign(Method::GET, "cross-site", "navigate") && !foreign(Method::POST, "same-origin", "cors")
        );
        assert!(!is_foreign(&Method::POST, &HeaderMap::new()));
    }

    proptest! {
        /// Whatever a client sends, nothing fails, and the cookie of the token is not left.
        #[test]
        fn no_cookie_of_ours_is_left(text in "(a=1|wrenn-traffic-token=x|wrenn-traffic-token| |;|=|\\PC){0,12}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(header::COOKIE, value);
                take_cookies(&mut headers, &[COOKIE]);
                let left = headers.get(header::COOKIE).map(HeaderValue::as_bytes).unwrap_or_default();
                let mut pairs = left.split(|byte| *byte == b';');
                prop_assert!(pairs.all(|pair| value_of_cookie(pair.trim_ascii(), &[COOKIE]).is_none()), "{left:?}");
            }
        }
    }
}
