// SPDX-License-Identifier: Apache-2.0
//! Headers of proxied requests and responses: what concerns one connection only, and where a request came from. Pure.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use super::address::{host, naming_headers};

/// Headers of one connection (RFC 9110, section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
];
const FORWARDED: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
];
/// Host that the sandbox's server gets instead of the one that was asked for.
const REWRITTEN_HOST: &str = "x-wrenn-host";
/// Cookies of the API, which a browser also sends to other ports of its host, and to names beside it: of sessions, against other sites,
/// both over HTTPS and over plain HTTP, and of sign-ins by another provider. A sandbox could sign in with them.
const OF_API: [&str; 5] =
    ["__Host-wrenn_session", "wrenn_session", "__Host-wrenn_csrf", "wrenn_csrf", "wrenn_oauth_*"];
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    /// Address of the connection.
    pub(super) peer: IpAddr,
    /// Whether it is of a reverse proxy that says the truth.
    pub(super) trusted: bool,
    /// Whether the connection is encrypted.
    pub(super) tls: bool,
    /// The part of the path that names the port.
    pub(super) prefix: Option<&'a str>,
}

/// Protocol to which a request asks to upgrade.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = named(headers).any(|name| name == header::UPGRADE);
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

/// Names in the `Connection` header.
fn named(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok())
}

/// Removes the headers of one connection; keeps the upgrade to a protocol.
pub(super) fn end_to_end(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> = named(headers).collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain([&header::UPGRADE]) {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Whether the client's connection is encrypted, up to a trusted reverse proxy at least.
pub(super) fn is_secure(headers: &HeaderMap, origin: &Origin<'_>) -> bool {
    let told = headers.get("x-forwarded-proto").filter(|_| origin.trusted);
    told.map_or(origin.tls, |proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// Makes the headers of a request those for the sandbox.
pub(super) fn for_sandbox(uri: &Uri, headers: &mut HeaderMap, origin: &Origin<'_>) {
    let upgrade = upgrade(headers);
    end_to_end(headers, upgrade);
    // The body comes at once.
    headers.remove(header::EXPECT);
    naming_headers().for_each(|name| drop(headers.remove(name)));
    join_cookies(headers);
    take_cookies(headers, &OF_API);
    let host = host(uri, headers).and_then(|host| HeaderValue::from_str(host).ok());
    let secure = is_secure(headers, origin);
    let told = |name: &str| headers.get(name).filter(|_| origin.trusted).cloned();
    let before = told("x-forwarded-for").and_then(|before| before.to_str().ok().map(str::to_owned));
    let via = before.map_or_else(|| origin.peer.to_string(), |before| format!("{before}, {}", origin.peer));
    let asked_for = told("x-forwarded-host").or_else(|| host.clone());
    FORWARDED.iter().for_each(|name| drop(headers.remove(*name)));
    let proto = HeaderValue::from_static(if secure { "https" } else { "http" });
    let values = [
        ("x-forwarded-for", HeaderValue::from_str(&via).ok()),
        ("x-forwarded-proto", Some(proto)),
        ("x-forwarded-host", asked_for),
        (
            "x-forwarded-prefix",
            origin.prefix.and_then(|prefix| HeaderValue::from_str(&format!("/{prefix}")).ok()),
        ),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let rewritten = headers.remove(REWRITTEN_HOST);
    match rewritten.or(host) {
        Some(host) => headers.insert(header::HOST, host),
        None => headers.remove(header::HOST),
    };
}

/// Makes one header of all cookies: HTTP/2 may send each in its own (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// Takes the cookies of these names out of a request, and returns their values. A name that ends with `*` is that of all that begin so.
/// The others stay as they are written; they need not be text.
pub(super) fn take_cookies(headers: &mut HeaderMap, names: &[&str]) -> Vec<String> {
    let all: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().cloned().collect();
    let pairs = |value: &HeaderValue| -> Vec<Vec<u8>> {
        value.as_bytes().split(|byte| *byte == b';').map(|pair| pair.trim_ascii().to_vec()).collect()
    };
    let taken = |pair: &[u8]| value_of_cookie(pair, names);
    if !all.iter().any(|value| pairs(value).iter().any(|pair| taken(pair).is_some())) {
        return Vec::new();
    }
    headers.remove(header::COOKIE);
    let mut values = Vec::new();
    for value in all {
        let (ours, others): (Vec<_>, Vec<_>) =
            pairs(&value).into_iter().partition(|pair| taken(pair).is_some());
        values.extend(ours.iter().filter_map(|pair| taken(pair)));
        let rest = HeaderValue::from_bytes(&others.join(&b"; "[..]));
        if let Some(rest) = rest.ok().filter(|rest| !rest.is_empty()) {
            headers.append(header::COOKIE, rest);
        }
    }
    values
}

/// Returns the value of a cookie, if it has one of these names.
pub(super) fn value_of_cookie(pair: &[u8], names: &[&str]) -> Option<String> {
    let end = pair.iter().position(|byte| *byte == b'=')?;
    let name = pair[..end].trim_ascii();
    let is_one = names.iter().any(|one| match one.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning.as_bytes()),
        None => one.as_bytes() == name,
    });
    is_one.then(|| String::from_utf8_lossy(pair[end + 1..].trim_ascii()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        lines
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn headers_of_one_connection_stay_there() {
        let mut given = headers(&[
            ("connection", "keep-alive, X-Own"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        assert_eq!(upgrade(&given), None, "Connection does not name it");
        end_to_end(&mut given, None);
        assert_eq!(shown(&given), ["accept: */*"]);
    }

    #[test]
    fn cookies_of_the_api_stay_outside() {
        let hidden = |given: &'static str| {
            let mut headers = headers(&[("cookie", given)]);
            take_cookies(&mut headers, &OF_API);
            shown(&headers)
        };
        assert_eq!(hidden("a=1;b=wrenn_session=2"), ["cookie: a=1;b=wrenn_session=2"]);
        assert_eq!(hidden("a=1; wrenn_session=x; wrenn_csrf=y; wrenn_oauth_0f=z; b=2"), ["cookie: a=1; b=2"]);
        assert_eq!(hidden("__Host-wrenn_session=x; __Host-wrenn_csrf=y; __Host-a=1"), ["cookie: __Host-a=1"]);
        assert!(hidden("wrenn_session=x").is_empty());
    }

    #[test]
    fn cookies_are_one_header() {
        let mut given = headers(&[("cookie", "a=1; b=2")]);
        given.append(header::COOKIE, HeaderValue::from_static("c=3"));
        join_cookies(&mut given);
        assert_eq!(shown(&given), ["cookie: a=1; b=2; c=3"]);
    }

    #[test]
    fn host_and_origin_are_the_same_for_requests_and_upgrades() {
        for asks in [false, true] {
            let mut given = headers(&[
                ("host", "8000-x.localhost:9727"),
                ("forwarded", "for=1.2.3.4"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil"),
                ("expect", "100-continue"),
                ("e2b-sandbox-id", "x"),
            ]);
            if asks {
                given.extend(headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]));
            }
            let origin = Origin { peer: PEER, trusted: false, tls: false, prefix: None };
            for_sandbox(&Uri::from_static("/x"), &mut given, &origin);
            let mut expected = vec![
                "host: 8000-x.localhost:9727",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: 8000-x.localhost:9727",
                "x-forwarded-proto: http",
            ];
            if asks {
                expected.insert(0, "connection: upgrade");
                expected.insert(2, "upgrade: websocket");
            }
            assert_eq!(shown(&given), expected);
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_the_host_can_be_another() {
        let mut given = headers(&[
            ("host", "inner"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "8000-x.example.com"),
            ("x-wrenn-host", "localhost:5173"),
        ]);
        let origin = Origin { peer: PEER, trusted: true, tls: false, prefix: Some("8000-x") };
        for_sandbox(&Uri::from_static("/x"), &mut given, &origin);
        assert_eq!(
            shown(&given),
            [
                "host: localhost:5173",
                "x-forwarded-for: 1.2.3.4, 192.0.2.1",
                "x-forwarded-host: 8000-x.example.com",
                "x-forwarded-prefix: /8000-x",
                "x-forwarded-proto: https",
            ]
        );
    }
}
