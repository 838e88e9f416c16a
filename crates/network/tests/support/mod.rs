// SPDX-License-Identifier: Apache-2.0
//! Helpers for tests in the real kernel. Each test runs in a network namespace without an uplink, in which
//! the test program is started again by `unshare`.
#![allow(dead_code, unreachable_pub)]

pub mod frames;
pub mod guest;
pub mod space;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use wrenn_network::{Egress, PoolConfig, SlotSpec};

const INNER: &str = "WRENN_TEST_ISOLATED";
/// Time limit for waiting, longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the test `name` in a new namespace; returns true in the process that is inside.
pub fn isolated(name: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
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

pub fn config(dir: &Path) -> PoolConfig {
    PoolConfig {
        state_dir: dir.to_owned(),
        instance: "test".into(),
        warm: 2,
        max: 20,
        egress: Egress::None,
        resolvers: vec![[192, 168, 77, 53].into(), [203, 0, 113, 53].into()],
        permitted: Vec::new(),
        in_use: Vec::new(),
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a link is up: the kernel sends nothing before it has noticed that both ends are.
pub fn wait_until_up(shown: impl Fn() -> String) {
    let begin = Instant::now();
    loop {
        let link = shown();
        if link.contains("state UP") {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "it does not come up: {link}");
    }
}

pub fn inside(slot: &SlotSpec, args: &[&str]) -> String {
    let netns = format!("--net={}", slot.netns.display());
    run("nsenter", &[&[netns.as_str()], args].concat())
}

/// Snapshot of links, addresses, routes, mounts, rules, open files and the files of the state directory.
pub fn stock(dir: &Path) -> BTreeSet<String> {
    let mut stock = BTreeSet::new();
    let mut add = |what: &str, text: &str| stock.extend(text.lines().map(|line| format!("{what} {line}")));
    let links = run("ip", &["-o", "link"]);
    let names: Vec<&str> = links.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    add("link", &names.join("\n"));
    add("address", &run("ip", &["-4", "-br", "addr"]));
    add("route", &run("ip", &["-4", "route"]));
    add("neighbour", &run("ip", &["-4", "neigh", "show", "nud", "permanent"]));
    add("rules", &run("nft", &["list", "ruleset"]));
    add("mount", &fs::read_to_string("/proc/self/mounts").unwrap());
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    let kinds: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let namespaces = kinds.iter().filter(|kind| kind.starts_with("net:")).count();
    add("open", &format!("{} files, {namespaces} namespaces", kinds.len()));
    for part in ["slots", "netns"] {
        let entries = fs::read_dir(dir.join(part)).into_iter().flatten().flatten();
        let names: Vec<String> = entries.map(|entry| entry.file_name().display().to_string()).collect();
        add(part, &names.join("\n"));
    }
    stock
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
