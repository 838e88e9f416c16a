// SPDX-License-Identifier: Apache-2.0
//! QEMU with the same guest as the driver's, started by hand and restored from its memory: the floor for creates and
//! resumes.

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
use tempfile::TempDir;
use tokio::task::JoinSet;
use wrenn_testkit::Stack;

/// Longer than any boot.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);
/// Interval between looks whether a guest runs, that of the driver.
const LOOK: Duration = Duration::from_millis(5);

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Kill and reap it in any state.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest by hand that was saved when its envd answered.
pub(crate) struct Guest {
    /// Kernel and initial RAM disk.
    share: PathBuf,
    /// `tcg` or `kvm`.
    accel: &'static str,
    /// Its files, on the file system of the stack's disks.
    dir: TempDir,
    client: reqwest::Client,
}

impl Guest {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `keep` says whether what the guest writes is kept in the file of its memory.
    fn command(&self, disk: &Path, keep: bool, port: u16, control: &Path) -> Command {
        let cpu = if self.accel == "kvm" { "host" } else { "max,-erms" };
        let accel = if self.accel == "kvm" { "kvm" } else { "tcg,thread=multi" };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35,memory-backend=memory,suppress-vmdesc=on", "-accel", accel, "-cpu", cpu]);
        command.args(["-global", "migration.send-configuration=off", "-nodefaults", "-no-user-config"]);
        command.args(["-no-reboot", "-display", "none", "-m", "512M", "-smp", "1"]);
        command.arg("-kernel").arg(self.share.join("vmlinuz"));
        command.arg("-initrd").arg(self.share.join("initrd.img"));
        let words = "console=ttyS0 quiet panic=1 reboot=t mitigations=off no_timer_check wrenn.ip=10.0.2.15/24 wrenn.gw=10.0.2.2";
        command.args(["-append", words, "-serial", "null", "-device", "virtio-rng-pci"]);
        let drive =
            format!("id=root,file={},format=raw,if=none,discard=unmap,detect-zeroes=unmap", disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root"]);
        command.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:49983")]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        let (share, memory) = (if keep { "on" } else { "off" }, self.file("memory"));
        let memory =
            format!("memory-backend-file,id=memory,size=512M,share={share},mem-path={}", memory.display());
        command.args(["-object", &memory]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Boots a guest beside the stack's disks, and saves it when its envd answers.
    pub(crate) async fn save(stack: &Stack, share: &Path) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("bench").tempdir_in(stack.state_dir.join("agent/volumes"))?;
        let client = reqwest::Client::builder().timeout(Duration::from_millis(500));
        // No idle connections, because they belong to the previous guest.
        let client = client.pool_max_idle_per_host(0).build()?;
        let guest = Self { share: share.to_owned(), accel: accel(stack)?, dir, client };
        let (disk, socket) = (disk(share, guest.dir.path())?, guest.file("qmp"));
        let port = free_ports(1)?.remove(0);
        let command = guest.command(&disk, true, port, &socket);
        let _qemu = Qemu::start(command)?.answers(guest.client.clone(), port, &socket).await?;
        let mut control = greeted(UnixStream::connect(&socket)?)?;
        order(&mut control, "stop", &json!({}))?;
        let state = json!({ "filename": guest.file("state"), "live": false });
        order(&mut control, "xen-save-devices-state", &state)?;
        copy(&disk, &guest.file("saved.img"))?;
        Ok(guest)
    }

    /// Copies the saved guest's disk for this many restores.
    pub(crate) fn disks(&self, count: usize) -> Result<Vec<PathBuf>> {
        let targets = (0..count).map(|number| self.file(&format!("copy{number}.img")));
        targets
            .map(|target| {
                copy(&self.file("saved.img"), &target)?;
                Ok(target)
            })
            .collect()
    }

    /// Returns the time from the start of the first QEMU until envd answers in all guests, one on each of these disks.
    pub(crate) async fn restore(&self, disks: &[PathBuf]) -> Result<Duration> {
        let (ports, state) = (free_ports(disks.len())?, self.file("state"));
        let (begin, mut answers) = (Instant::now(), JoinSet::new());
        for (disk, port) in disks.iter().zip(ports) {
            let socket = disk.with_extension("qmp");
            let mut command = self.command(disk, false, port, &socket);
            command.arg("-incoming").arg(format!("exec:cat {}", state.display()));
            let (qemu, client) = (Qemu::start(command)?, self.client.clone());
            answers.spawn(async move { qemu.answers(client, port, &socket).await });
        }
        // All run until the last one answers, as sandboxes do.
        let running = answers.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        let took = begin.elapsed();
        drop(running);
        Ok(took)
    }
}

impl Qemu {
    fn start(mut command: Command) -> Result<Self> {
        Ok(Self(command.spawn().context("QEMU cannot be started: run `make setup`")?))
    }

    /// Waits until the guest runs. What is sent to it before is lost, and sent again only half a second later.
    async fn runs(&mut self, socket: &Path) -> Result<()> {
        let begin = Instant::now();
        let control = loop {
            if let Ok(control) = UnixStream::connect(socket) {
                break control;
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("QEMU ended: {status}");
            }
            ensure!(begin.elapsed() < LIMIT, "QEMU does not answer within {LIMIT:?}");
            tokio::time::sleep(LOOK).await;
        };
        let running = move || {
            let mut control = greeted(control)?;
            while order(&mut control, "query-status", &json!({}))?["status"] != "running" {
                std::thread::sleep(LOOK);
            }
            Ok(())
        };
        tokio::task::spawn_blocking(running).await?
    }

    /// Waits until envd answers.
    async fn answers(mut self, client: reqwest::Client, port: u16, socket: &Path) -> Result<Self> {
        self.runs(socket).await?;
        let begin = Instant::now();
        let url = format!("http://127.0.0.1:{port}/health");
        loop {
            if client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok(self);
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("QEMU ended: {status}");
            }
            ensure!(begin.elapsed() < LIMIT, "the guest did not get ready within {LIMIT:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Returns the accelerator that the stack uses, so that both sides use the same.
fn accel(stack: &Stack) -> Result<&'static str> {
    let output = stack.wrenn(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout).context("wrenn doctor printed no JSON")?;
    Ok(if report["kvm"]["usable"] == true { "kvm" } else { "tcg" })
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are open until the last one is found, so that they differ.
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Copies the template's image, enlarged to the size of a sandbox's disk.
pub(crate) fn disk(share: &Path, dir: &Path) -> Result<PathBuf> {
    let target = dir.join("disk.img");
    let image = share.join("images/minimal/rootfs.ext4");
    copy(&image, &target)?;
    fs::OpenOptions::new().write(true).open(&target)?.set_len(5120 << 20)?;
    Ok(target)
}

/// Copies a disk without its holes; shares its extents where the file system can.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    let copied = Command::new("cp").args(["--reflink=auto"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// Prepares a new connection to QEMU for commands.
fn greeted(mut control: UnixStream) -> Result<UnixStream> {
    control.set_read_timeout(Some(LIMIT))?;
    order(&mut control, "qmp_capabilities", &json!({}))?;
    Ok(control)
}

/// Sends a command of QMP and returns the answer.
fn order(control: &mut UnixStream, name: &str, arguments: &Value) -> Result<Value> {
    control.write_all(format!("{}\n", json!({ "execute": name, "arguments": arguments })).as_bytes())?;
    for line in BufReader::new(control.try_clone()?).lines() {
        let mut line: Value = serde_json::from_str(&line?)?;
        ensure!(line.get("error").is_none(), "{name}: {line}");
        if let Some(answer) = line.get_mut("return") {
            return Ok(answer.take());
        }
    }
    bail!("{name}: QEMU does not answer")
}
