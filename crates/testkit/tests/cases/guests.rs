// SPDX-License-Identifier: Apache-2.0
//! The guest as a machine: identity, usual programs, limits on what commands take of it, and its end.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::Stack;

use super::support::{pause, sh, wait_status};

/// Uses the parts of the kernel one by one.
const KERNEL: &[u8] = include_bytes!("guests/kernel.py");

/// Checks machine-id, host name, its resolution, `ping` and `python` for the default user, files of the kernel over the
/// API, and that `reboot` ends the guest.
pub(crate) async fn a_guest_is_a_machine_with_an_identity(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({})).await?;
    let script = "cat /etc/machine-id; hostname; cat /etc/hostname
        python -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'
        ping -q -c 1 $(hostname) > /dev/null && echo pinged
        ulimit -n; id -un; cat /proc/sys/kernel/pid_max; poweroff 2>&1; echo $?";
    let ran = stack.api.exec(&id, &["sh", "-c", script]).await?;
    let lines: Vec<_> = ran["stdout"].as_str().unwrap_or_default().lines().collect();
    let [machine_id, name, file, address, pinged, files, user, ids, refused, status] = lines[..] else {
        anyhow::bail!("{ran}");
    };
    anyhow::ensure!(machine_id.len() == 32 && machine_id.bytes().all(|b| b.is_ascii_hexdigit()), "{ran}");
    anyhow::ensure!(name == id && file == id && address.starts_with("127.0."), "{ran}");
    anyhow::ensure!((pinged, files, user, ids) == ("pinged", "1024", "wrenn-user", "4194304"), "{ran}");
    anyhow::ensure!(refused.contains("sudo poweroff") && status == "1", "{ran}");

    for path in ["/proc/cpuinfo", "/sys/class/net/eth0/address", "/etc/machine-id"] {
        let content = stack.api.exec(&id, &["cat", path]).await?;
        let read = stack.api.read(&id, path).await?.expect(200)?;
        let read = String::from_utf8_lossy(&read.bytes);
        // The speed of processors changes all the time.
        let same = |text: &str| {
            text.lines().filter(|line| !line.contains("MHz")).map(str::to_owned).collect::<Vec<_>>()
        };
        anyhow::ensure!(
            !read.is_empty() && same(content["stdout"].as_str().unwrap_or_default()) == same(&read),
            "{path}: {read}"
        );
    }

    // One command cannot take the tasks of all, nor all those of the kernel; a user has no limit of its own.
    let script = "ulimit -u; group=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
        cat $group/pids.max $group/../pids.max /proc/sys/kernel/threads-max";
    let limits = stack.api.exec(&id, &["bash", "-c", script]).await?;
    let limits: Vec<_> = limits["stdout"].as_str().unwrap_or_default().lines().map(str::to_owned).collect();
    let [of_user, counts @ ..] = &limits[..] else { anyhow::bail!("{limits:?}") };
    let counts = counts.iter().map(|count| count.parse::<u32>()).collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(
        of_user == "unlimited" && counts.len() == 3 && counts.is_sorted_by(|a, b| a < b),
        "{limits:?}"
    );

    sh(&stack, &id, "groupadd -g 4321 extra && usermod -aG extra wrenn-user").await?;
    let groups = stack.api.exec(&id, &["id", "-G"]).await?;
    let has_extra =
        groups["stdout"].as_str().is_some_and(|ids| ids.split_whitespace().any(|id| id == "4321"));
    anyhow::ensure!(has_extra, "a command has not the groups of its user: {groups}");

    let body = json!({"cmd": "sudo", "args": ["sh", "-c", "reboot; sleep 60"], "timeout_sec": 60});
    let exec = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&body);
    let answered = stack.api.send(exec.timeout(Duration::from_secs(15))).await;
    answered.context("the guest ended meanwhile")?;
    wait_status(&stack, &id, &["error"], 30).await?;
    stack.api.remove(&id).await?;
    Ok(())
}

/// The kernel has what users expect of a machine, such as overlays, FUSE, tunnels, container networks and nftables, in a sandbox
/// from memory and in one that boots.
pub(crate) async fn the_kernel_has_what_users_expect(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    stack.api.write(&id, "/tmp/kernel.py", KERNEL.to_vec()).await?.expect(204)?;
    for boots in [false, true] {
        if boots {
            pause(&stack, &id).await?;
            let path = format!("/v1/sandboxes/{id}/resume");
            let resumed = stack.api.post(&path, &json!({"memory": false})).await?;
            anyhow::ensure!(resumed.status < 300, "{}", resumed.json());
            wait_status(&stack, &id, &["running"], 120).await?;
        }
        let ran = stack.api.exec(&id, &["sudo", "python3", "/tmp/kernel.py"]).await?;
        let parts: Vec<_> = ran["stdout"].as_str().unwrap_or_default().lines().collect();
        anyhow::ensure!(ran["exit_code"] == 0 && parts.len() == 7, "boots: {boots}: {ran}");
        let console = stack.api.exec(&id, &["sudo", "dmesg"]).await?;
        let text = console["stdout"].as_str().unwrap_or_default();
        anyhow::ensure!(!text.contains("Unknown symbol"), "{text}");
    }
    stack.api.remove(&id).await?;
    Ok(())
}
