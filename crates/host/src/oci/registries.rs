// SPDX-License-Identifier: Apache-2.0
//! Which registries an agent asks. References come from users, and the agent reaches networks that they do not.

use wrenn_api::ErrorCode;
use wrenn_outbound::is_public_address;

use super::ImageSettings;
use crate::error::AgentError;

/// Maximum number of characters of a registry in a message.
const SHOWN: usize = 128;

/// Registries that may be asked, and how.
#[derive(Debug)]
pub(super) struct Registries {
    /// The only ones, and those of private networks; all public ones if there are none.
    named: Option<Vec<String>>,
    /// Those that are reached by plain HTTP.
    pub(super) plain_http: Vec<String>,
}

impl Registries {
    pub(super) fn new(settings: &ImageSettings) -> Self {
        let plain_http = settings.registries_plain_http.as_deref().map(list).unwrap_or_default();
        Self { named: settings.registries.as_deref().map(list), plain_http }
    }

    /// Fails unless a registry may be asked, which is named as in references.
    pub(super) fn check(&self, registry: &str) -> Result<(), AgentError> {
        if self.is_named(registry) || self.named.is_none() && is_public(registry) {
            return Ok(());
        }
        let shown: String = registry.chars().take(SHOWN).collect();
        let message = format!(
            "this host imports no images from registry {shown}: use another one, or let its operator add it to \
             agent.registries, or to agent.registries_plain_http if it has no TLS"
        );
        Err(AgentError::new(ErrorCode::RegistryDenied, message))
    }

    /// Returns whether the operator has named a registry, which may be in a private network.
    pub(super) fn is_named(&self, registry: &str) -> bool {
        self.named.iter().flatten().chain(&self.plain_http).any(|named| named == registry)
    }
}

/// Splits names at commas.
fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Returns whether a registry is one of a public network, as far as its name tells.
fn is_public(registry: &str) -> bool {
    let host = host(registry).trim_end_matches('.');
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return is_public_address(address);
    }
    // A name in public networks has a dot. One whose end is a number is an address in a notation that libraries accept, too.
    let end = host.rsplit_once('.').map(|(_, end)| end);
    end.is_some_and(|end| end.starts_with(|first: char| first.is_ascii_alphabetic()))
}

/// Returns the host without its port.
fn host(registry: &str) -> &str {
    match registry.find(']') {
        Some(end) => &registry[..=end],
        None => registry.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(named: Option<&str>, plain_http: Option<&str>) -> Registries {
        let [registries, registries_plain_http] = [named, plain_http].map(|text| text.map(str::to_owned));
        Registries::new(&ImageSettings { registries, registries_plain_http, ..ImageSettings::default() })
    }

    #[test]
    fn private_networks_are_not_reached_unless_their_registry_is_named() {
        let usual = registries(None, None);
        for public in
            ["docker.io", "ghcr.io", "registry.example.com:5000", "8.8.8.8", "[2606:4700::1]:443", "x.io."]
        {
            assert!(usual.check(public).is_ok(), "{public}");
        }
        let private = [
            "localhost",
            "localhost:5000",
            "localhost.",
            "registry:5000",
            "127.0.0.1",
            "127.0.0.1:5000",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "172.31.0.1:80",
            "192.168.0.1",
            "0.0.0.0",
            "255.255.255.255",
            // Other notations of loopback.
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "[::1]:5000",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[fe80::1]",
            "[fd00::1]:5000",
            "[64:ff9b::a00:1]",
            "[2002:7f00:1::]",
        ];
        for private in private {
            let refused = usual.check(private).map_err(|error| error.code);
            assert_eq!(refused, Err(ErrorCode::RegistryDenied), "{private}");
            assert!(registries(None, Some(private)).check(private).is_ok(), "{private}");
            assert!(registries(Some(&format!("a.io, {private}")), None).check(private).is_ok(), "{private}");
        }
    }

    #[test]
    fn only_those_that_are_named_are_asked_if_any_is() {
        let some = registries(Some(" docker.io,, lan:5000 "), Some("plain:80"));
        assert_eq!(some.plain_http, ["plain:80"]);
        for (registry, may) in
            [("docker.io", true), ("lan:5000", true), ("plain:80", true), ("lan", false), ("ghcr.io", false)]
        {
            let checked = some.check(registry);
            assert_eq!(checked.is_ok(), may, "{registry}");
            assert!(checked.is_ok() || checked.unwrap_err().message.contains("agent.registries"));
        }
        let long = some.check(&"x".repeat(1000)).unwrap_err().message;
        assert!(long.len() < 512, "{long}");
    }
}
