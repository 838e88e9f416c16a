// SPDX-License-Identifier: Apache-2.0
//! Address of a port in a request: the first label of the host, headers, or the first part of the path. Pure.

use std::fmt;

use http::{HeaderMap, Uri, header};
use wrenn_api::SandboxId;

/// Headers with the sandbox and the port, for hosts that are no name of a port.
const IDS: [&str; 2] = ["x-wrenn-sandbox-id", "e2b-sandbox-id"];
const PORTS: [&str; 2] = ["x-wrenn-sandbox-port", "e2b-sandbox-port"];

/// A port of a sandbox; its text is `PORT-ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) port: u16,
    pub(super) id: SandboxId,
}

/// How a request names its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By the first label of its host: each port is an origin of its own.
    Host,
    /// By headers.
    Headers,
    /// By the first part of its path.
    Path,
}

/// Why a request names no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Nothing in it does.
    Nothing,
    /// What it says is no sandbox or no port.
    Invalid,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.port, self.id)
    }
}

impl Address {
    /// Parses `PORT-ID`; upper and lower case are the same, as in host names.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (port, id) = text.split_once('-')?;
        Some(Self { port: parse_port(port)?, id: id.to_ascii_lowercase().parse().ok()? })
    }

    /// Parses the first label of a host.
    pub(super) fn of_host(host: &str) -> Option<Self> {
        let (label, _domain) = host.split_once('.')?;
        Self::parse(label)
    }

    /// Finds the port that a request names.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap) -> Result<(Self, Form), Unknown> {
        if let Some(address) = host(uri, headers).and_then(Self::of_host) {
            return Ok((address, Form::Host));
        }
        let header = |names: [&str; 2]| names.iter().find_map(|name| headers.get(*name));
        if let Some(id) = header(IDS) {
            let id = id.to_str().ok().and_then(|id| id.to_ascii_lowercase().parse().ok());
            let port = header(PORTS).and_then(|port| parse_port(port.to_str().ok()?));
            let (Some(id), Some(port)) = (id, port) else { return Err(Unknown::Invalid) };
            return Ok((Self { port, id }, Form::Headers));
        }
        let part = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
        match Self::parse(part) {
            Some(address) => Ok((address, Form::Path)),
            None => Err(Unknown::Nothing),
        }
    }
}

/// Parses a port, which is not 0, in its usual form.
fn parse_port(text: &str) -> Option<u16> {
    let usual = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| usual)
}

/// Returns the host of a request, with its port if there is one.
pub(super) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let of_header = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(http::uri::Authority::as_str).or_else(of_header)
}

/// Headers that name a port, which the port does not get.
pub(super) fn naming_headers() -> impl Iterator<Item = &'static str> {
    IDS.into_iter().chain(PORTS)
}

/// Returns path and query without the first part of the path; `None` if there is no `/` behind that, so that relative links
/// would go astray.
pub(super) fn without_first_part(uri: &Uri) -> Option<String> {
    let path = uri.path().trim_start_matches('/');
    let rest = &path[path.find('/')?..];
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("{rest}{query}"))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::{prop_assert, prop_assert_eq, proptest};
    use uuid::Uuid;

    use super::*;

    fn address(port: u16) -> Address {
        Address { port, id: SandboxId::from(Uuid::from_u128(7)) }
    }

    fn of(uri: &str, headers: &[(&str, &str)]) -> Result<(Address, Form), Unknown> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        Address::of(request.uri(), request.headers())
    }

    #[test]
    fn a_port_is_named_by_host_headers_or_path() {
        let text = address(8000).to_string();
        let id = address(8000).id.to_string();
        let host = format!("{}.Example.com:9727", text.to_uppercase());
        assert_eq!(of("/x", &[("host", &host)]), Ok((address(8000), Form::Host)));
        assert_eq!(of(&format!("http://{text}.localhost/x"), &[]), Ok((address(8000), Form::Host)));
        let named = [("host", "sandbox.example.com"), ("e2b-sandbox-id", &id), ("e2b-sandbox-port", "80")];
        assert_eq!(of("/x", &named), Ok((address(80), Form::Headers)));
        // The host is stronger.
        assert_eq!(of("/x", &[("host", &host), named[1], named[2]]), Ok((address(8000), Form::Host)));
        assert_eq!(of("/x", &[("host", "a"), ("x-wrenn-sandbox-id", &id)]), Err(Unknown::Invalid));
        assert_eq!(of("/x", &[("host", "a"), named[1], ("e2b-sandbox-port", "0")]), Err(Unknown::Invalid));
        assert_eq!(of(&format!("/{text}/x"), &[("host", "10.0.0.1")]), Ok((address(8000), Form::Path)));
        assert_eq!(of("/x", &[("host", "10.0.0.1")]), Err(Unknown::Nothing));
        // A host of one label is none in front of a domain.
        assert_eq!(of("/x", &[("host", &text)]), Err(Unknown::Nothing));
    }

    #[test]
    fn the_rest_of_a_path_stays_as_it_is_written() {
        let rest = |uri: &str| without_first_part(&uri.parse().expect("a URI"));
        assert_eq!(rest("/8000-x/a%2Fb//c?d=%20&e"), Some("/a%2Fb//c?d=%20&e".to_owned()));
        assert_eq!(rest("/8000-x/"), Some("/".to_owned()));
        assert_eq!(rest("/8000-x"), None);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(port in 1_u16.., id in proptest::arbitrary::any::<u128>()) {
            let address = Address { port, id: SandboxId::from(Uuid::from_u128(id)) };
            prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
            prop_assert_eq!(Address::of_host(&format!("{address}.a.b:1")), Some(address));
        }

        #[test]
        fn what_is_read_was_written_so(text in "\\PC{0,60}|[0-9]{1,6}-sb[0-9a-z]{20,30}") {
            if let Some(address) = Address::parse(&text) {
                prop_assert_eq!(address.to_string(), text.to_ascii_lowercase());
            }
            let host = format!("{text}.localhost");
            prop_assert!(Address::of_host(&host).is_none_or(|address| host.contains(&address.port.to_string())));
        }
    }
}
