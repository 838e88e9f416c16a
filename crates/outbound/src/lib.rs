// SPDX-License-Identifier: Apache-2.0
//! Restriction of requests to public networks, for addresses that strangers name: registries of images and receivers of events.
//! A [`Guard`] is asked for the URL of each request, and resolves its name: whatever the name leads to at that moment, there is a
//! connection only to an address that was checked. Redirects must be off, because a client checks no URL by itself.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// Rule for the addresses that requests may lead to: those of public networks, and exceptions.
#[derive(Clone)]
pub struct Guard {
    exceptions: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

impl Guard {
    /// Creates a guard that admits public networks only.
    pub fn public() -> Self {
        Self::public_and(|_| false)
    }

    /// Creates a guard that admits public networks, and what `exceptions` says.
    pub fn public_and(exceptions: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self { exceptions: Arc::new(exceptions) }
    }

    /// Returns whether a request may lead to an address.
    pub fn admits(&self, address: IpAddr) -> bool {
        is_public_address(address) || (self.exceptions)(address)
    }

    /// Returns whether a request for this URL may begin: its host is a name, which the guard resolves, or an admitted address.
    pub fn admits_url(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host.parse().map_or(!host.is_empty(), |address| self.admits(address))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

/// Resolves names to admitted addresses only.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let admitted: Vec<SocketAddr> = found.filter(|address| guard.admits(address.ip())).collect();
            if admitted.is_empty() {
                return Err("its name has no address in a public network".into());
            }
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

/// Returns whether an address is one of public networks: not of a private, local or reserved range.
pub fn is_public_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    // This network, private, shared, loopback, link-local, private, of protocols and documentation, private, of benchmarks,
    // of documentation, multicast and reserved.
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

/// Only one eighth of the addresses is in use. What is in it leads elsewhere by tunnels, or is for documentation. Addresses of
/// IPv4 in those of IPv6 are not in it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn private_addresses_are_not_asked() {
        for (text, may) in [
            ("https://example.com/v2/", true),
            ("https://1.1.1.1/", true),
            ("https://[2606:4700::1]/", true),
            ("https://127.0.0.1/", false),
            ("https://2130706433/", false),
            ("https://0x7f.1/", false),
            ("https://169.254.169.254/latest/", false),
            ("https://10.0.0.1:5000/", false),
            ("https://[::1]/", false),
            ("https://[::ffff:10.0.0.1]/", false),
            ("https://[64:ff9b::10.0.0.1]/", false),
            ("https://[2002:0a00:0001::1]/", false),
            ("https://[fd00::1]/", false),
        ] {
            assert_eq!(Guard::public().admits_url(&url(text)), may, "{text}");
        }
    }

    #[test]
    fn exceptions_are_admitted_and_nothing_beside_them() {
        let guard = Guard::public_and(|address| address == IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(guard.admits_url(&url("http://127.0.0.1:9000/hook")));
        assert!(
            !guard.admits_url(&url("http://127.0.0.2:9000/hook")) && !guard.admits_url(&url("http://[::1]/"))
        );
    }

    #[tokio::test]
    async fn a_name_that_leads_into_a_private_network_has_no_address() {
        let found = Guard::public().resolve("localhost".parse().expect("a name")).await;
        let refused = found.err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("its name has no address in a public network"));
        let guard = Guard::public_and(|address| address.is_loopback());
        let found = guard.resolve("localhost".parse().expect("a name")).await;
        assert!(found.is_ok_and(|mut all| all.all(|address| address.ip().is_loopback())));
    }
}
