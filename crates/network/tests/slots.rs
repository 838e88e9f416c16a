//! Slots in the real kernel. Needs root. Everything happens in a network namespace of its own that has no
//! uplink, made by running this program again under `unshare`.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use wrenn_network::{Egress, PoolConfig, SlotPool, SlotSpec, cleanup};

const INNER: &str = "WRENN_TEST_ISOLATED";

/// Runs the test `name` in a namespace of its own; true in the process that is there.
fn isolated(name: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--"])
        .arg(program)
        .args([name, "--exact", "--nocapture"])
        .env(INNER, "1");
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

fn config(dir: &Path) -> PoolConfig {
    PoolConfig {
        state_dir: dir.to_owned(),
        instance: "test".into(),
        warm: 2,
        max: 20,
        egress: Egress::None,
        in_use: Vec::new(),
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn inside(slot: &SlotSpec, args: &[&str]) -> String {
    let netns = format!("--net={}", slot.netns.display());
    run("nsenter", &[&[netns.as_str()], args].concat())
}

/// Links, mounts, packet filter tables, and the files of the state directory.
fn stock(dir: &Path) -> BTreeSet<String> {
    let links = run("ip", &["-o", "link"]);
    let name = |line: &str| format!("link {}", line.split_whitespace().nth(1).unwrap_or_default());
    let mut stock: BTreeSet<String> = links.lines().map(name).collect();
    stock
        .extend(fs::read_to_string("/proc/self/mounts").unwrap().lines().map(|line| format!("mount {line}")));
    stock.extend(run("nft", &["list", "tables"]).lines().map(str::to_owned));
    for part in ["slots", "netns"] {
        let entries = fs::read_dir(dir.join(part)).into_iter().flatten().flatten();
        stock.extend(entries.map(|entry| format!("{part} {}", entry.file_name().display())));
    }
    stock
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

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
    assert!(
        rules.contains("dnat to 169.254.0.21") && rules.contains("ip saddr != 169.254.0.21 drop"),
        "{rules}"
    );
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
            for _ in 0..12 {
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
