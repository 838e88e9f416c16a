// SPDX-License-Identifier: Apache-2.0
//! Slots in the real kernel. Needs root.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixListener},
            process::CommandExt as _,
        },
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use support::{config, guest::Guest, inside, isolated, run, stock, until};
use wrenn_network::{Egress, MAX_SLOTS, Policy, PoolConfig, Rate, SlotPool, cleanup, leftovers};

#[tokio::test]
async fn a_slot_has_its_addresses_rules_and_tap() {
    if !isolated("a_slot_has_its_addresses_rules_and_tap") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let before = stock(dir.path());
    let pool = SlotPool::start(PoolConfig { egress: Egress::Nat, ..config(dir.path()) }).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let addresses = inside(&slot, &["ip", "-4", "-o", "addr"]);
    assert!(addresses.contains("169.254.0.22/30") && addresses.contains("10.12.0."), "{addresses}");
    assert!(inside(&slot, &["ip", "route"]).contains("default via"), "no default route");
    assert!(inside(&slot, &["ip", "-d", "link", "show", "tap0"]).contains("tun type tap"));
    let rules = inside(&slot, &["nft", "list", "ruleset"]);
    // `nft` must print the rules as they are meant.
    let (reached, left) = (slot.host_address, slot.veth_slot_address);
    for line in [
        "type filter hook ingress device \"tap0\" priority filter; policy drop;",
        &format!("iifname \"eth0\" ip daddr {reached} dnat to 169.254.0.21 comment \"the host reaches"),
        "iifname \"tap0\" ip daddr 169.254.0.53 udp dport 53 dnat to 192.168.77.53 comment \"names\"",
        "iifname \"tap0\" ip daddr 169.254.0.54 tcp dport 53 dnat to 203.0.113.53 comment \"names\"",
        &format!("oifname \"eth0\" ip saddr 169.254.0.21 snat to {left} comment \"the slot's address\""),
        "ct state invalid,untracked drop",
        "iifname \"eth0\" ct direction original ct status dnat accept",
        "iifname \"tap0\" ct direction reply ct status dnat accept",
        "ct original ip daddr @closed drop comment \"never open\"",
        "iifname \"tap0\" ct status ! confirmed limit rate over 64/second burst 4096 packets drop",
        "iifname \"tap0\" ct status ! confirmed ct count over 4096 drop comment \"too many flows\"",
    ] {
        assert!(rules.contains(line), "{line} is not in\n{rules}");
    }
    let host = run("nft", &["list", "table", "ip", "wrenn_test"]);
    for line in [
        "iifname \"wrtest-*\" oifname \"wrtest-*\" drop",
        "oifname \"wrtest-*\" ct state established,related ct direction reply accept",
        "iifname \"wrtest-*\" ip saddr != 10.12.0.0/16 drop",
        "ip saddr 10.12.0.0/16 oifname != \"wrtest-*\" masquerade",
    ] {
        assert!(host.contains(line), "{line} is not in\n{host}");
    }
    // Policies with lists and rates.
    let rate = Rate { bytes: Some(250_000), packets: Some(400) };
    let (allow, deny) = ("203.0.113.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap());
    let policy = Policy { allow: vec![allow], deny: vec![deny], upload: rate, ..Policy::default() };
    pool.set_policy(slot.index, &policy).await.unwrap();
    let rules = inside(&slot, &["nft", "list", "table", "ip", "slot"]);
    for line in [
        "limit rate over 250000 bytes/second burst 64 kbytes drop",
        "limit rate over 400/second burst 64 packets drop",
        "elements = { 203.0.113.0/24 }",
        "elements = { 0.0.0.0/0 }",
    ] {
        assert!(rules.contains(line), "{line} is not in\n{rules}");
    }
    assert_eq!(rules.matches("hook forward").count(), 1, "{rules}");
    let route = run("ip", &["route", "get", &slot.host_address.to_string()]);
    assert!(route.contains(&slot.veth_host), "{route}");

    pool.release(slot.index).await.unwrap();
    pool.release(slot.index).await.unwrap();
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    assert_eq!(stock(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_leave_nothing() {
    if !isolated("many_at_once_leave_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let before = stock(dir.path());
    let pool = SlotPool::start(config(dir.path())).await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        workers.spawn(async move {
            for _ in 0..63 {
                let slot = pool.acquire().await.unwrap();
                pool.release(slot.index).await.unwrap();
            }
        });
    }
    while let Some(result) = workers.join_next().await {
        result.unwrap();
    }
    until("the pool fills up again", || pool.stats().warm == 2 && pool.stats().in_use == 0).await;
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    assert_eq!(stock(dir.path()), before);
}

/// Forks processes that take a while until they execute their program. Each has all descriptors of this one until then.
fn fork_slowly(until: &AtomicBool) {
    let mut children = Vec::new();
    while !until.load(Ordering::Relaxed) {
        let mut command = Command::new("/bin/true");
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| {
                libc::usleep(50_000);
                Ok(())
            })
        };
        children.push(command.spawn().unwrap());
    }
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forked_process_has_the_tap_of_a_slot() {
    if !isolated("no_forked_process_has_the_tap_of_a_slot") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = SlotPool::start(PoolConfig { warm: 0, ..config(dir.path()) }).await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let forks: Vec<_> = (0..48)
        .map(|_| {
            let ended = ended.clone();
            std::thread::spawn(move || fork_slowly(&ended))
        })
        .collect();
    for _ in 0..60 {
        let slot = pool.acquire().await.unwrap();
        Guest::new(&slot);
        pool.release(slot.index).await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    forks.into_iter().for_each(|fork| fork.join().unwrap());
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
}

#[tokio::test]
async fn leftovers_are_undone_and_others_are_not_touched() {
    if !isolated("leftovers_are_undone_and_others_are_not_touched") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("ip", &["link", "add", "wrother-1", "type", "veth", "peer", "name", "wrother-2"]);
    run("nft", &["add", "table", "ip", "foreign"]);
    let before = stock(dir.path());

    let pool = SlotPool::start(PoolConfig { warm: 0, ..config(dir.path()) }).await.unwrap();
    let kept = pool.acquire().await.unwrap();
    let half = pool.acquire().await.unwrap();
    let only_journal = dir.path().join("slots/9");
    fs::write(only_journal, "").unwrap();
    run("ip", &["link", "del", &half.veth_host]);
    drop(pool);

    // The next agent keeps the slot of the running microVM and removes the rest.
    let again = PoolConfig { warm: 0, in_use: vec![kept.index], ..config(dir.path()) };
    let pool = SlotPool::start(again).await.unwrap();
    assert_eq!(pool.stats().in_use, 1);
    assert!(inside(&kept, &["ip", "link", "show", "tap0"]).contains("tap0"));
    assert!(!half.netns.exists() && !dir.path().join("slots/9").exists());
    let next = pool.acquire().await.unwrap();
    assert_ne!(next.index, kept.index);
    drop(pool);
    cleanup(dir.path(), "test").await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    assert_eq!(stock(dir.path()), before);
}

#[tokio::test]
async fn what_no_journal_names_is_found_by_its_name() {
    if !isolated("what_no_journal_names_is_found_by_its_name") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Resources of other programs with similar names.
    for foreign in ["wrtest-x", "wrtest-007", "wrtest-40000", "wrtes-3", "wrtes2-3"] {
        run("ip", &["link", "add", foreign, "type", "bridge"]);
    }
    run("nft", &["add", "table", "ip", "wrenn_tes"]);
    fs::create_dir_all(dir.path().join("netns")).unwrap();
    fs::write(dir.path().join("netns/foreign"), "").unwrap();
    let before = stock(dir.path());
    assert!(leftovers(dir.path(), "test").unwrap().is_empty());

    let pool = SlotPool::start(PoolConfig { warm: 0, ..config(dir.path()) }).await.unwrap();
    let (kept, lost) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    pool.shutdown().await.unwrap();
    // A link without journal and mount point, and a mount point without journal.
    fs::remove_dir_all(dir.path().join("slots")).unwrap();
    run("ip", &["link", "add", "wrtest-9", "type", "bridge"]);
    let found = leftovers(dir.path(), "test").unwrap();
    for part in ["link wrtest-1", "link wrtest-2", "link wrtest-9", "netns/1", "netns/2", "wrenn_test"] {
        assert!(found.iter().any(|line| line.ends_with(part)), "{part} is not in {found:?}");
    }
    assert_eq!(found.len(), 6, "{found:?}");

    let again = PoolConfig { warm: 0, in_use: vec![kept.index], ..config(dir.path()) };
    let pool = SlotPool::start(again).await.unwrap();
    assert!(inside(&kept, &["ip", "link", "show", "tap0"]).contains("tap0"));
    let found = leftovers(dir.path(), "test").unwrap();
    assert!(!lost.netns.exists() && found.len() == 3, "{found:?}");
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    assert!(leftovers(dir.path(), "test").unwrap().is_empty());
    assert_eq!(stock(dir.path()), before);
}

#[tokio::test]
async fn the_limit_is_said_so() {
    if !isolated("the_limit_is_said_so") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = SlotPool::start(PoolConfig { warm: 0, max: 1, ..config(dir.path()) }).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let refused = pool.acquire().await.unwrap_err().to_string();
    assert!(refused.contains("all 1 network slots are in use"), "{refused}");
    pool.release(slot.index).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    pool.release(slot.index).await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
}

/// Slot numbers at byte boundaries, and the last one. All neighbour entries are permanent.
#[tokio::test]
async fn slots_of_every_number_work() {
    if !isolated("slots_of_every_number_work") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let before = stock(dir.path());
    let borders = [127, 128, 255, 256, MAX_SLOTS];
    let in_use = (1..=MAX_SLOTS).filter(|index| !borders.contains(index)).collect();
    let config = PoolConfig { warm: 0, max: MAX_SLOTS, in_use, ..config(dir.path()) };
    let pool = SlotPool::start(config).await.unwrap();
    for index in borders {
        let slot = pool.acquire().await.unwrap();
        assert_eq!(slot.index, index);
        let route = run("ip", &["route", "get", &slot.host_address.to_string()]);
        let via = format!("via {} dev {}", slot.veth_slot_address, slot.veth_host);
        assert!(route.contains(&via), "{route}");
        let host = run("ip", &["neigh", "show", "dev", &slot.veth_host]);
        let within = inside(&slot, &["ip", "neigh", "show", "dev", "eth0"]);
        for (end, neighbours) in [(slot.veth_slot_address, host), (slot.veth_host_address, within)] {
            let known = neighbours.lines().find(|line| line.starts_with(&format!("{end} ")));
            assert!(known.is_some_and(|line| line.contains("PERMANENT")), "{end}: {neighbours}");
        }
    }
    assert!(pool.acquire().await.is_err());
    for index in borders {
        pool.release(index).await.unwrap();
    }
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    assert_eq!(stock(dir.path()), before);
}

/// Another program flushes all rules, as restarting the host's firewall does, while slots are acquired and
/// released.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_rules_come_back() {
    if !isolated("the_hosts_rules_come_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = SlotPool::start(PoolConfig { warm: 0, ..config(dir.path()) }).await.unwrap();
    let rules = run("nft", &["list", "ruleset"]);
    assert!(rules.contains("wrenn_test"), "{rules}");
    run("nft", &["flush", "ruleset"]);
    let busy = async {
        loop {
            let slot = pool.acquire().await.unwrap();
            pool.release(slot.index).await.unwrap();
        }
    };
    tokio::select! {
        () = until("the rules are there again", || run("nft", &["list", "ruleset"]) == rules) => {}
        () = busy => {}
    }
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
}

#[tokio::test]
async fn a_namespace_has_one_agent() {
    if !isolated("a_namespace_has_one_agent") {
        return;
    }
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Every local user can take such names, so the agent must not depend on them.
    let name = SocketAddr::from_abstract_name("wrenn-slots").unwrap();
    let _taken = UnixListener::bind_addr(&name).unwrap();
    let pool = SlotPool::start(PoolConfig { warm: 0, ..config(dir.path()) }).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let there = || run("ip", &["route"]) + &run("nft", &["list", "ruleset"]);
    let before = there();
    let second = PoolConfig { instance: "two".into(), ..config(other.path()) };
    let refused = SlotPool::start(second.clone()).await.unwrap_err().to_string();
    let holder = format!("process {} (an agent in {})", std::process::id(), dir.path().display());
    assert!(refused.contains("another agent") && refused.contains(&holder), "{refused}");
    assert_eq!(there(), before);
    pool.release(slot.index).await.unwrap();
    pool.shutdown().await.unwrap();
    let pool = SlotPool::start(second).await.unwrap();
    pool.shutdown().await.unwrap();
    cleanup(dir.path(), "test").await.unwrap();
    cleanup(other.path(), "two").await.unwrap();
}
