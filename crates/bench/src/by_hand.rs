// SPDX-License-Identifier: Apache-2.0
//! QEMU with the same guest as the driver's, started by hand: the floor for a create.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Longer than any boot.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Kill and reap it in any state.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(share: &Path, disk: &Path, port: u16, accel: &str) -> Command {
    let cpu = if accel == "kvm" { "host" } else { "max" };
    let accel = if accel == "kvm" { "kvm" } else { "tcg,thread=multi" };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", accel, "-cpu", cpu]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-m",
        "512M",
        "-smp",
        "1",
    ]);
    command.arg("-kernel").arg(share.join("vmlinuz")).arg("-initrd").arg(share.join("initrd.img"));
    command.args(["-append", "console=ttyS0 quiet panic=1 reboot=t wrenn.ip=10.0.2.15/24 wrenn.gw=10.0.2.2"]);
    command.args(["-serial", "null", "-device", "virtio-rng-pci"]);
    command.args([
        "-drive",
        &format!("id=root,file={},format=raw,if=none,discard=unmap,detect-zeroes=unmap", disk.display()),
    ]);
    command.args(["-device", "virtio-blk-pci,drive=root"]);
    command.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:49983")]);
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns the time from the start of QEMU until envd answers. The disk exists already.
pub(crate) async fn boot(share: &Path, disk: &Path, accel: &str) -> Result<Duration> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let client = reqwest::Client::builder().timeout(Duration::from_millis(500)).build()?;
    let begin = Instant::now();
    let child =
        command(share, disk, port, accel).spawn().context("QEMU cannot be started: run `make setup`")?;
    let mut qemu = Qemu(child);
    let url = format!("http://127.0.0.1:{port}/health");
    loop {
        if client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
            return Ok(begin.elapsed());
        }
        if let Some(status) = qemu.0.try_wait()? {
            bail!("QEMU ended: {status}");
        }
        if begin.elapsed() > LIMIT {
            bail!("the guest did not get ready within {LIMIT:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
