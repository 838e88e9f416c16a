// SPDX-License-Identifier: Apache-2.0
//! Placement of sandboxes on hosts. Pure: the same input gives the same host.

use std::fmt;

use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{
    db::hosts::{Candidate, OVERCOMMIT, RESERVE},
    error::Fault,
};

/// Resources that a sandbox needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    pub(crate) template: &'a str,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) on: On<'a>,
}

/// Hosts that have what a sandbox starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On<'a> {
    /// Those with the template of the platform.
    Template,
    /// Those whose template of the platform has this content.
    TemplateWith(Digest),
    /// Those with the snapshot or the image.
    Hosts(&'a [Uuid]),
    /// Any one: it gets the image first.
    Any,
}

/// SHA-256 of the content of a template, as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; 64]);

impl Digest {
    /// Takes a digest; `None` if the text is none.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        text.as_bytes().try_into().ok().filter(|_| is_hex).map(Self)
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn could_ever(host: &Candidate, need: &Need<'_>) -> bool {
    need.vcpus <= host.max_vcpus
        && i64::from(need.memory_mb) <= host.max_memory_mb.min(usable(host))
        && i64::from(need.disk_size_mb) <= host.max_disk_size_mb
}

fn usable(host: &Candidate) -> i64 {
    host.memory_mb - host.memory_mb / RESERVE
}

fn can_now(host: &Candidate, need: &Need<'_>) -> bool {
    !host.ejected
        && host.reserved_sandboxes < i64::from(host.max_sandboxes)
        && host.reserved_vcpus + i64::from(need.vcpus) <= i64::from(host.cpus) * OVERCOMMIT
        && host.reserved_memory_mb + i64::from(need.memory_mb) <= usable(host)
}

/// Returns the hosts that can take the sandbox, at least one, those with the most free memory first.
pub(crate) fn place(hosts: &[Candidate], need: &Need<'_>) -> Result<Vec<Uuid>, Fault> {
    if hosts.is_empty() {
        let message = "no host is online; `wrenn status` and the agents' logs say why";
        return Err(Fault::new(ErrorCode::NoHostsAvailable, message));
    }
    let has = |host: &&Candidate| match need.on {
        On::Hosts(holders) => holders.contains(&host.id),
        On::Template => host.templates.iter().any(|name| name == need.template),
        On::TemplateWith(digest) => {
            let wanted = Some((need.template, digest.as_str()));
            host.template_digests.iter().any(|known| known.split_once('@') == wanted)
        }
        On::Any => true,
    };
    let with_template: Vec<&Candidate> = hosts.iter().filter(has).collect();
    if let (On::Hosts(_), true) = (need.on, with_template.is_empty()) {
        let message = format!("the host that has {:?} does not answer: try again later", need.template);
        return Err(Fault::new(ErrorCode::HostUnavailable, message));
    }
    if let (On::TemplateWith(_), true) = (need.on, with_template.is_empty()) {
        let message = format!(
            "no host that answers has the template {:?} with the content that it had when the build was asked for: ask again",
            need.template
        );
        return Err(Fault::new(ErrorCode::NotFound, message));
    }
    if with_template.is_empty() {
        return Err(Fault::new(ErrorCode::NotFound, format!("there is no template {:?}", need.template)));
    }
    let large_enough: Vec<&Candidate> =
        with_template.into_iter().filter(|host| could_ever(host, need)).collect();
    if large_enough.is_empty() {
        let message = format!(
            "no host is large enough for {} vCPUs, {} MiB of memory and {} MiB of disk: ask for less",
            need.vcpus, need.memory_mb, need.disk_size_mb
        );
        return Err(Fault::new(ErrorCode::ExceedsCapacity, message));
    }
    let mut free: Vec<&Candidate> = large_enough.into_iter().filter(|host| can_now(host, need)).collect();
    if free.is_empty() {
        return Err(full());
    }
    free.sort_by_key(|host| std::cmp::Reverse(usable(host) - host.reserved_memory_mb));
    Ok(free.into_iter().map(|host| host.id).collect())
}

/// Returns the error for a lack of free hosts.
pub(crate) fn full() -> Fault {
    let message = "every host is full or recovering: delete sandboxes, or try again in a minute";
    Fault::new(ErrorCode::NoHostsAvailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: u128) -> Candidate {
        Candidate {
            id: Uuid::from_u128(id),
            cpus: 2,
            memory_mb: 8192,
            max_sandboxes: 4,
            max_vcpus: 4,
            max_memory_mb: 8192,
            max_disk_size_mb: 10_000,
            templates: vec!["minimal".into()],
            template_digests: vec![format!("minimal@{}", "a".repeat(64))],
            ejected: false,
            reserved_vcpus: 0,
            reserved_memory_mb: 0,
            reserved_sandboxes: 0,
        }
    }

    const NEED: Need<'_> =
        Need { template: "minimal", vcpus: 1, memory_mb: 512, disk_size_mb: 5120, on: On::Template };

    fn code(hosts: &[Candidate], need: Need<'_>) -> ErrorCode {
        place(hosts, &need).expect_err("refused").code
    }

    #[test]
    fn the_emptiest_host_comes_first() {
        let busy = Candidate { reserved_memory_mb: 4096, ..host(1) };
        assert_eq!(place(&[busy, host(2)], &NEED).expect("a host"), [2, 1].map(Uuid::from_u128));
    }

    #[test]
    fn a_template_may_have_to_be_of_one_content() {
        let with = |digit: &str| Need {
            on: On::TemplateWith(Digest::of(&digit.repeat(64)).expect("a digest")),
            ..NEED
        };
        let replaced = Candidate { template_digests: vec![format!("minimal@{}", "b".repeat(64))], ..host(2) };
        let hosts = [host(1), replaced];
        assert_eq!(place(&hosts, &with("a")).expect("a host"), [Uuid::from_u128(1)]);
        assert_eq!(place(&hosts, &with("b")).expect("a host"), [Uuid::from_u128(2)]);
        assert_eq!(code(&hosts, with("c")), ErrorCode::NotFound);
        assert_eq!(code(&hosts, Need { template: "x", ..with("a") }), ErrorCode::NotFound);
        for wrong in ["", "a", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(Digest::of(wrong), None, "{wrong}");
        }
    }

    fn on(holders: &[Uuid]) -> Need<'_> {
        Need { template: "mine", on: On::Hosts(holders), ..NEED }
    }

    #[test]
    fn each_refusal_has_its_code() {
        assert_eq!(code(&[], NEED), ErrorCode::NoHostsAvailable);
        assert_eq!(code(&[host(1)], Need { template: "x", ..NEED }), ErrorCode::NotFound);
        assert_eq!(code(&[host(1)], Need { memory_mb: 8192, ..NEED }), ErrorCode::ExceedsCapacity);
        assert_eq!(code(&[host(1)], Need { disk_size_mb: 10_001, ..NEED }), ErrorCode::ExceedsCapacity);
        let full = [
            Candidate { reserved_sandboxes: 4, ..host(1) },
            Candidate { reserved_memory_mb: 7000, ..host(2) },
            Candidate { reserved_vcpus: 32, ..host(3) },
            Candidate { ejected: true, ..host(4) },
        ];
        assert_eq!(code(&full, NEED), ErrorCode::NoHostsAvailable);
        let [first, second] = [1, 2].map(Uuid::from_u128);
        assert_eq!(place(&[host(1), host(2)], &on(&[first])).expect("its host"), [first]);
        assert_eq!(place(&[host(1), host(2)], &on(&[second, first])).expect("both").len(), 2);
        assert_eq!(code(&[host(1)], on(&[second])), ErrorCode::HostUnavailable);
        let image = Need { template: "debian:bookworm", on: On::Any, ..NEED };
        assert_eq!(place(&[host(1), host(2)], &image).expect("any host").len(), 2);
    }
}
