//! Slots in the real kernel. Needs root.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{config, inside, isolated, run, stock, until};
use wrenn_network::{PoolConfig, SlotPool, cleanup};

#[tokio::test]
async fn a_slot_has_its_addresses_rules_and_tap() {
    if !isolated("a_slot_has_its_addresses_rules_and_tap") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let before = stock(dir.path());
    let pool = SlotPool::start(config(dir.path())).await.unwrap();
    let slot = pool.acquire().await.unwrap();
    let addresses = inside(&slot, &["ip", "-4", "-o", "addr"]);
    assert!(addresses.contains("169.254.0.22/30") && addresses.contains("10.12.0."), "{addresses}");
    assert!(inside(&slot, &["ip", "route"]).contains("default via"), "no default route");
    assert!(inside(&slot, &["ip", "-d", "link", "show", "tap0"]).contains("tun type tap"));
    let rules = inside(&slot, &["nft", "list", "ruleset"]);
    println!("{rules}");
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

    // The next agent keeps the slot of the microVM that still runs, and undoes the rest.
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
