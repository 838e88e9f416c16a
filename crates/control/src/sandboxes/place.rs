// SPDX-License-Identifier: Apache-2.0
//! Placement of sandboxes on hosts. Pure: the same input gives the same host.

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
    /// Host of the snapshot that it goes on from, the only one that has it.
    pub(crate) host: Option<Uuid>,
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
    let has = |host: &&Candidate| match need.host {
        Some(id) => host.id == id,
        None => host.templates.iter().any(|name| name == need.template),
    };
    let with_template: Vec<&Candidate> = hosts.iter().filter(has).collect();
    if let (Some(_), true) = (need.host, with_template.is_empty()) {
        let message = format!("the host of snapshot {:?} does not answer: try again later", need.template);
        return Err(Fault::new(ErrorCode::HostUnavailable, message));
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
            ejected: false,
            reserved_vcpus: 0,
            reserved_memory_mb: 0,
            reserved_sandboxes: 0,
        }
    }

    const NEED: Need<'_> =
        Need { template: "minimal", vcpus: 1, memory_mb: 512, disk_size_mb: 5120, host: None };

    fn code(hosts: &[Candidate], need: Need<'_>) -> ErrorCode {
        place(hosts, &need).expect_err("refused").code
    }

    #[test]
    fn the_emptiest_host_comes_first() {
        let busy = Candidate { reserved_memory_mb: 4096, ..host(1) };
        assert_eq!(place(&[busy, host(2)], &NEED).expect("a host"), [2, 1].map(Uuid::from_u128));
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
        let snapshot = |id| Need { template: "mine", host: Some(Uuid::from_u128(id)), ..NEED };
        assert_eq!(place(&[host(1), host(2)], &snapshot(1)).expect("its host"), [Uuid::from_u128(1)]);
        assert_eq!(code(&[host(1)], snapshot(2)), ErrorCode::HostUnavailable);
    }
}
