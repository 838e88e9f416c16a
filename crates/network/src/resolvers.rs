// SPDX-License-Identifier: Apache-2.0
//! DNS resolvers of guests. Guests always use the same two link-local addresses, so that snapshots do not
//! depend on a host's resolvers; each slot translates them to the resolvers of its host.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// Resolvers in every guest's `/etc/resolv.conf`.
pub const GUEST_RESOLVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 0, 53), Ipv4Addr::new(169, 254, 0, 54)];
/// Resolvers used if the host has none that guests can reach.
pub const FALLBACK: [Ipv4Addr; 2] = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];

const HOST: &str = "/etc/resolv.conf";
/// File with the upstream resolvers of systemd-resolved, used if the host's file has only its loopback stub.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Lists the IPv4 resolvers of a `resolv.conf` that another network namespace can reach, thus none on
/// loopback.
fn reachable(text: &str) -> Vec<Ipv4Addr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    let mut found = Vec::new();
    for address in named {
        if let Ok(IpAddr::V4(address)) = address.parse()
            && !address.is_loopback()
            && !address.is_unspecified()
            && !address.is_multicast()
            && !address.is_broadcast()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

fn of_files(files: &[&Path]) -> Vec<Ipv4Addr> {
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let found = texts.map(|text| reachable(&text)).find(|found| !found.is_empty());
    let mut found = found.unwrap_or_else(|| FALLBACK.to_vec());
    found.truncate(GUEST_RESOLVERS.len());
    found
}

/// Returns the host's resolvers, one or two. Blocking, but short.
pub fn of_host() -> Vec<Ipv4Addr> {
    of_files(&[Path::new(HOST), Path::new(BEHIND_STUB)])
}

/// Maps each of [`GUEST_RESOLVERS`] to a resolver of the host; a single one serves both.
pub(crate) fn targets(resolvers: &[Ipv4Addr]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let targets = resolvers.iter().cycle();
    GUEST_RESOLVERS.into_iter().zip(targets.copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# stub\nnameserver 127.0.0.53\noptions edns0\n";

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_and_ipv6_resolvers_are_passed_over() {
        let text = "search x\nnameserver ::1\n nameserver\t192.168.1.1 # home\nnameserver\nnameserver 127.0.0.1\n\
                    nameserver fe80::1%eth0\nnameserver 192.168.1.1\n#nameserver 9.9.9.9\nnameserver 9.9.9.10\n";
        assert_eq!(reachable(text), [address("192.168.1.1"), address("9.9.9.10")]);
        assert!(reachable(STUB).is_empty());
    }

    #[test]
    fn a_stub_is_followed_and_without_any_there_are_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let (host, behind) = (dir.path().join("host"), dir.path().join("behind"));
        let files = [host.as_path(), behind.as_path()];
        assert_eq!(of_files(&files), FALLBACK);
        fs::write(&host, STUB).unwrap();
        assert_eq!(of_files(&files), FALLBACK);
        fs::write(&behind, "nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n").unwrap();
        assert_eq!(of_files(&files), [address("10.0.0.2"), address("10.0.0.3")]);
        fs::write(&host, "nameserver 9.9.9.9\n").unwrap();
        assert_eq!(of_files(&files), [address("9.9.9.9")]);
    }

    #[test]
    fn a_lone_resolver_answers_for_both() {
        let (one, two) = (address("9.9.9.9"), address("8.8.4.4"));
        let [first, second] = GUEST_RESOLVERS;
        assert_eq!(targets(&[one]), [(first, one), (second, one)]);
        assert_eq!(targets(&[one, two]), [(first, one), (second, two)]);
        assert!(targets(&[]).is_empty());
    }
}
