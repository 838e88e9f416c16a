// SPDX-License-Identifier: Apache-2.0
//! Where a request came from: the address of its client, and whether the connection is encrypted up to there. `X-Forwarded-*`
//! headers are believed only of trusted reverse proxies (`server.proxy_trusted`): anybody can send them.

use std::{convert::Infallible, net::IpAddr, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, request::Parts};

use crate::{networks::Networks, services::Services, serving::Connection};

/// Maximum number of reverse proxies that a request passes.
const PROXIES: usize = 16;

/// Where a request came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CameFrom {
    /// Address of the client; `None` for a call without a connection.
    pub(crate) address: Option<IpAddr>,
    /// Whether the client's connection is encrypted, as a trusted reverse proxy says.
    pub(crate) is_https: bool,
}

impl CameFrom {
    fn of(peer: Option<IpAddr>, headers: &HeaderMap, trusted: &Networks) -> Self {
        let peer = peer.map(|address| address.to_canonical());
        if !peer.is_some_and(|peer| trusted.contain(peer)) {
            return Self { address: peer, is_https: false };
        }
        let scheme = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        let first = scheme.and_then(|schemes| schemes.split(',').next());
        let is_https = first.is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"));
        Self { address: forwarded(headers, trusted).or(peer), is_https }
    }
}

/// Returns the last address that a trusted proxy tells and that is not of a trusted proxy itself: what stands before it may be made
/// up.
fn forwarded(headers: &HeaderMap, trusted: &Networks) -> Option<IpAddr> {
    let values = headers.get_all("x-forwarded-for").iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let all = values.iter().rev().flat_map(|value| value.rsplit(','));
    let mut last = None;
    for text in all.take(PROXIES) {
        let Ok(address) = text.trim().parse::<IpAddr>() else { return last };
        last = Some(address.to_canonical());
        if !trusted.contain(address) {
            return last;
        }
    }
    last
}

/// Notes where a request came from, for what comes after.
pub(super) async fn note(State(services): State<Services>, mut request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Arc<Connection>>();
    let peer = connection.map(|connection| connection.peer().ip());
    let from = CameFrom::of(peer, request.headers(), &services.state().trusted);
    request.extensions_mut().insert(from);
    next.run(request).await
}

impl<S: Sync> FromRequestParts<S> for CameFrom {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(peer: &str, headers: &[(&'static str, &'static str)]) -> (Option<IpAddr>, bool) {
        let trusted = Networks::parse("10.0.0.0/8").expect("networks");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let from = CameFrom::of(peer.parse().ok(), &map, &trusted);
        (from.address, from.is_https)
    }

    #[test]
    fn strangers_cannot_say_who_they_are() {
        let forged = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")];
        assert_eq!(of("203.0.113.9", &forged), ("203.0.113.9".parse().ok(), false));
        assert_eq!(of("", &forged), (None, false));
    }

    #[test]
    fn trusted_proxies_say_where_a_request_came_from() {
        let https = ("x-forwarded-proto", "https");
        let client = || "198.51.100.1".parse().ok();
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "198.51.100.1"), https]), (client(), true));
        assert_eq!(of("::ffff:10.0.0.1", &[("x-forwarded-for", "198.51.100.1")]), (client(), false));
        // What the client itself wrote stands first.
        assert_eq!(
            of("10.0.0.1", &[("x-forwarded-for", "127.0.0.1, 198.51.100.1, 10.0.0.2")]),
            (client(), false)
        );
        let two = [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "198.51.100.1")];
        assert_eq!(of("10.0.0.1", &two), (client(), false));
        for none in ["", "unknown", "198.51.100.1, x"] {
            assert_eq!(of("10.0.0.1", &[("x-forwarded-for", none)]).0, "10.0.0.1".parse().ok(), "{none}");
        }
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")]).0, "10.0.0.3".parse().ok());
    }
}
