// SPDX-License-Identifier: Apache-2.0
//! Time to acquire a network slot from the warm pool, and to build one compared with `ip` and `nft` commands.
//! Runs in a network namespace without an uplink.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use wrenn_network::{Egress, PoolConfig, SlotPool, cleanup};

use crate::row::Row;

const ROUNDS: usize = 40;
const INSTANCE: &str = "bnch";
/// Longer than any slot takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program; `args` are separated by spaces.
pub(crate) fn run(program: &str, args: &str) -> Result<()> {
    let output = Command::new(program)
        .args(args.split(' '))
        .output()
        .with_context(|| format!("{program} cannot be started: run `make setup`"))?;
    if !output.status.success() {
        bail!("{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// nftables rules of a slot, as written by hand.
const RULES: &str = r#"
table netdev guard {
    chain ingress {
        type filter hook ingress device "tap0" priority filter; policy drop;
        ether saddr != 02:fc:00:00:00:05 drop
        ether type arp arp saddr ip 169.254.0.21 arp daddr ip 169.254.0.22 accept
        ether type ip ip saddr 169.254.0.21 accept
    }
}
table ip slot {
    set closed {
        type ipv4_addr
        flags constant,interval
        elements = { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12,
                     192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 }
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        iifname "eth0" ip daddr 10.11.0.1 dnat to 169.254.0.21
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "eth0" ip saddr 169.254.0.21 snat to 10.12.0.3
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid,untracked drop
        iifname "eth0" ct direction original ct status dnat accept
        iifname "tap0" ct direction reply ct status dnat accept
        iifname "eth0" ct direction original drop
        iifname "tap0" ct direction reply drop
        ct original ip daddr @closed drop
        accept
    }
    chain input {
        type filter hook input priority filter; policy drop;
    }
}
"#;

fn rules_by_hand(netns: &str) -> Result<()> {
    let mut nft = Command::new("ip")
        .args(["netns", "exec", netns, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft cannot be started: run `make setup`")?;
    nft.stdin.take().context("nft takes no input")?.write_all(RULES.as_bytes())?;
    if !nft.wait()?.success() {
        bail!("nft refused the rules written by hand");
    }
    Ok(())
}

fn build_by_hand(name: &str) -> Result<Duration> {
    let begin = Instant::now();
    run("ip", &format!("netns add {name}"))?;
    run("ip", &format!("link add {name} type veth peer name eth0 netns {name}"))?;
    for inside in [
        "tuntap add tap0 mode tap vnet_hdr",
        "link set tap0 address 02:fc:00:00:00:16",
        "addr add 10.12.0.3/31 dev eth0",
        "addr add 169.254.0.22/30 dev tap0",
        "link set lo up",
        "link set eth0 up",
        "link set tap0 up",
        "neigh add 169.254.0.21 lladdr 02:fc:00:00:00:05 dev tap0",
        "route add default via 10.12.0.2",
    ] {
        run("ip", &format!("-n {name} {inside}"))?;
    }
    run("ip", &format!("netns exec {name} sysctl -q -w net.ipv4.ip_forward=1"))?;
    rules_by_hand(name)?;
    run("ip", &format!("addr add 10.12.0.2/31 dev {name}"))?;
    run("ip", &format!("link set {name} up"))?;
    run("ip", "route add 10.11.0.1/32 via 10.12.0.3")?;
    Ok(begin.elapsed())
}

fn by_hand() -> Result<Vec<Duration>> {
    let name = format!("wbench{}", std::process::id() % 100_000);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let built = build_by_hand(&name);
        // Remove it even if incomplete. The kernel removes the link with the namespace, but later.
        let _ = run("ip", &format!("link del {name}"));
        let removed = run("ip", &format!("netns del {name}"));
        times.push(built?);
        removed?;
    }
    Ok(times)
}

async fn pool(dir: &Path, warm: usize) -> Result<std::sync::Arc<SlotPool>> {
    let config = PoolConfig {
        state_dir: dir.to_owned(),
        instance: INSTANCE.into(),
        warm,
        max: ROUNDS as u16,
        egress: Egress::None,
        resolvers: vec![[203, 0, 113, 53].into()],
        permitted: Vec::new(),
        in_use: Vec::new(),
    };
    Ok(SlotPool::start(config).await?)
}

async fn times(dir: &Path, warm: usize) -> Result<Vec<Duration>> {
    let pool = pool(dir, warm).await?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        while pool.stats().warm < warm {
            if begin.elapsed() > LIMIT {
                bail!("the pool does not fill up");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let begin = Instant::now();
        let slot = pool.acquire().await?;
        times.push(begin.elapsed());
        pool.release(slot.index).await?;
    }
    pool.shutdown().await?;
    cleanup(dir, INSTANCE).await?;
    Ok(times)
}

fn measure() -> Result<Vec<Row>> {
    // SAFETY: affects only this thread and those it starts; all exit with it.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(std::io::Error::last_os_error()).context("the bench needs root for a network namespace");
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (warm, built) = runtime.block_on(async {
        anyhow::Ok((times(&dir.path().join("warm"), 2).await?, times(&dir.path().join("cold"), 0).await?))
    })?;
    let ready = Row::time("a slot from the warm pool (ms)", &warm, 1.0);
    let built = Row::ratio("building a slot ÷ the same by ip and nft", &built, &by_hand()?, 0.34);
    Ok(vec![ready, built])
}

/// Measures both rows on a new thread, because the namespace must not affect other threads.
pub(crate) fn warm_and_built() -> Result<Vec<Row>> {
    let measured = thread::spawn(measure).join();
    measured.unwrap_or_else(|_| bail!("the measuring thread died"))
}
