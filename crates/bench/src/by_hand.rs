// SPDX-License-Identifier: Apache-2.0
//! QEMU with the same guest as the driver's, started by hand and restored from its memory: the floor for a create.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

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

/// A guest by hand: where its files are, and how it runs.
pub(crate) struct Guest<'a> {
    /// Kernel and initial RAM disk.
    pub(crate) share: &'a Path,
    /// `tcg` or `kvm`.
    pub(crate) accel: &'a str,
}

/// A guest that was saved when its envd answered.
pub(crate) struct Saved {
    memory: PathBuf,
    state: PathBuf,
    disk: PathBuf,
}

impl Guest<'_> {
    /// `keep` says whether what the guest writes is kept in the file of its memory.
    fn command(&self, disk: &Path, memory: &Path, keep: bool, port: u16) -> Command {
        let cpu = if self.accel == "kvm" { "host" } else { "max" };
        let accel = if self.accel == "kvm" { "kvm" } else { "tcg,thread=multi" };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35,memory-backend=memory,suppress-vmdesc=on", "-accel", accel, "-cpu", cpu]);
        command.args(["-global", "migration.send-configuration=off", "-nodefaults", "-no-user-config"]);
        command.args(["-no-reboot", "-display", "none", "-m", "512M", "-smp", "1"]);
        command.arg("-kernel").arg(self.share.join("vmlinuz"));
        command.arg("-initrd").arg(self.share.join("initrd.img"));
        let words = "console=ttyS0 quiet panic=1 reboot=t wrenn.ip=10.0.2.15/24 wrenn.gw=10.0.2.2";
        command.args(["-append", words, "-serial", "null", "-device", "virtio-rng-pci"]);
        let drive =
            format!("id=root,file={},format=raw,if=none,discard=unmap,detect-zeroes=unmap", disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root"]);
        command.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:49983")]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        let share = if keep { "on" } else { "off" };
        let memory =
            format!("memory-backend-file,id=memory,size=512M,share={share},mem-path={}", memory.display());
        command.args(["-object", &memory]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Boots a guest with this disk, and saves it in `dir` when its envd answers.
    pub(crate) async fn save(&self, disk: &Path, dir: &Path) -> Result<Saved> {
        let [memory, state, socket, kept] =
            ["memory", "state", "qmp", "saved.img"].map(|name| dir.join(name));
        let port = free_port()?;
        let mut command = self.command(disk, &memory, true, port);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let mut qemu = Qemu::start(command)?;
        qemu.answers(port).await?;
        let mut control = UnixStream::connect(&socket)?;
        control.set_read_timeout(Some(LIMIT))?;
        for (name, arguments) in [
            ("qmp_capabilities", json!({})),
            ("stop", json!({})),
            ("xen-save-devices-state", json!({ "filename": state, "live": false })),
        ] {
            order(&mut control, name, &arguments)?;
        }
        copy(disk, &kept)?;
        Ok(Saved { memory, state, disk: kept })
    }

    /// Returns the time from the start of QEMU until the saved guest's envd answers. `disk` is a copy of its disk.
    pub(crate) async fn restore(&self, saved: &Saved, disk: &Path) -> Result<Duration> {
        let port = free_port()?;
        let mut command = self.command(disk, &saved.memory, false, port);
        command.arg("-incoming").arg(format!("exec:cat {}", saved.state.display()));
        let begin = Instant::now();
        Qemu::start(command)?.answers(port).await?;
        Ok(begin.elapsed())
    }
}

impl Saved {
    /// Copies the disk for one restore.
    pub(crate) fn disk(&self) -> Result<PathBuf> {
        let target = self.disk.with_extension("copy");
        copy(&self.disk, &target)?;
        Ok(target)
    }
}

impl Qemu {
    fn start(mut command: Command) -> Result<Self> {
        Ok(Self(command.spawn().context("QEMU cannot be started: run `make setup`")?))
    }

    /// Waits until envd answers.
    async fn answers(&mut self, port: u16) -> Result<()> {
        let client = reqwest::Client::builder().timeout(Duration::from_millis(500)).build()?;
        let begin = Instant::now();
        let url = format!("http://127.0.0.1:{port}/health");
        loop {
            if client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("QEMU ended: {status}");
            }
            ensure!(begin.elapsed() < LIMIT, "the guest did not get ready within {LIMIT:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Copies a disk without its holes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    let copied = Command::new("cp").args(["--sparse=always"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// Sends a command of QMP and waits for its answer.
fn order(control: &mut UnixStream, name: &str, arguments: &Value) -> Result<()> {
    control.write_all(format!("{}\n", json!({ "execute": name, "arguments": arguments })).as_bytes())?;
    for line in BufReader::new(control.try_clone()?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        ensure!(line.get("error").is_none(), "{name}: {line}");
        if line.get("return").is_some() {
            return Ok(());
        }
    }
    bail!("{name}: QEMU does not answer")
}
