// SPDX-License-Identifier: Apache-2.0
//! Machine of a lab: QEMU with emulated AMD-V.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    LabConfig,
    channel::{self, Keys, Master},
    child_process::{self, ChildProcess},
    files,
    network::Place,
};

/// Time after the deadline at which a lab powers itself off, in case this process is stopped and cannot kill
/// it.
const POWER_OFF: Duration = Duration::from_secs(5);
/// Time that the exit of a machine may take to be noticed after its connection has broken.
const SEEN_ENDED: Duration = Duration::from_millis(500);
/// Number of bytes of console output in error messages.
const CONSOLE_END: usize = 2000;

const CONSOLE: &str = "serial.log";
const QEMU_LOG: &str = "qemu.log";

/// Parts of a machine.
pub(super) struct Parts<'a> {
    pub(super) config: &'a LabConfig,
    pub(super) image: &'a Path,
    pub(super) payload: &'a Path,
    pub(super) scratch: &'a Path,
    pub(super) keys: &'a Keys,
    pub(super) dir: &'a Path,
    pub(super) place: &'a Place,
}

/// Running machine.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: ChildProcess,
    dir: PathBuf,
    master: Arc<Mutex<Option<Master>>>,
}

impl Machine {
    pub(super) fn start(parts: &Parts<'_>) -> Result<Self> {
        let master = Arc::new(Mutex::new(None::<Master>));
        let masters = master.clone();
        let qemu = ChildProcess::start(command(parts)?, parts.config.time_limit, move || {
            if let Some(master) = masters.lock().unwrap_or_else(PoisonError::into_inner).take() {
                channel::end(&master);
            }
        })
        .context("cannot start the lab's machine")?;
        Ok(Self { qemu, dir: parts.dir.to_owned(), master })
    }

    pub(super) fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Moves the deadline forward.
    pub(super) fn end_within(&self, left: Duration) {
        self.qemu.end_within(left);
    }

    /// Registers the SSH process to be killed when the machine exits.
    pub(super) fn ends_with(&self, master: Master) {
        let mut slot = self.master.lock().unwrap_or_else(PoisonError::into_inner);
        if self.qemu.ended().is_some() {
            channel::end(&master);
        }
        *slot = Some(master);
    }

    /// Fails with the reason if the machine has exited.
    pub(super) fn check(&self) -> Result<()> {
        let Some(why) = self.qemu.ended() else { return Ok(()) };
        let errors = fs::read_to_string(self.dir.join(QEMU_LOG)).unwrap_or_default();
        let errors: Vec<_> = errors.lines().filter(|line| !line.contains("warning:")).collect();
        bail!(
            "the lab's machine {why}; QEMU: {:?}; its console ends: {}",
            errors.join("\n"),
            self.console_end()
        )
    }

    /// Same as [`Self::check`] but waits a moment, because after a broken connection the exit may be noticed
    /// late.
    pub(super) fn check_soon(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < SEEN_ENDED {
            self.check()?;
            thread::sleep(child_process::LOOK);
        }
        Ok(())
    }

    /// Returns the last part of the console output.
    pub(super) fn console_end(&self) -> String {
        let console = fs::read(self.dir.join(CONSOLE)).unwrap_or_default();
        let end = &console[console.len().saturating_sub(CONSOLE_END)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// Kills the machine and waits for its exit. Its disks are discarded, so it needs no shutdown.
    pub(super) fn stop(&mut self) {
        self.qemu.stop();
    }
}

fn command(parts: &Parts<'_>) -> Result<Command> {
    let Parts { config, image, payload, scratch, keys, dir, place } = parts;
    let seconds = (config.time_limit + POWER_OFF).as_secs();
    let options = format!(
        "console=ttyS0 quiet panic=1 reboot=t net.ifnames=0 mitigations=off \
         lab.name={} lab.address={}/24 lab.seconds={seconds}",
        config.name,
        place.address()
    );
    let mut command = child_process::command("qemu-system-x86_64");
    command.args(["-name", &format!("lab-{}", config.name)]);

    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"]);
    command.args(["-smp", &config.cpus.to_string(), "-m", &config.memory_mb.to_string()]);
    command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.arg("-serial").arg(format!("file:{}", dir.join(CONSOLE).display()));
    command.arg("-kernel").arg(image.join("vmlinuz"));
    command.arg("-initrd").arg(image.join("initrd.img"));
    command.args(["-append", &options]);
    for (name, file) in [("host_key", keys.host()), ("authorized_keys", keys.authorized())] {
        command.arg("-fw_cfg").arg(format!("name=opt/lab/{name},file={}", file.display()));
    }
    // All labs share one root image; each writes to an unnamed temporary file.
    let root = image.join("root.ext4");
    for (id, file, more) in [
        ("root", root.as_path(), "snapshot=on"),
        ("payload", payload, "readonly=on"),
        ("scratch", scratch, "cache=unsafe,discard=unmap"),
    ] {
        command.arg("-drive").arg(format!("id={id},file={},format=raw,if=none,{more}", file.display()));
        command.args(["-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    let tap = place.tap();
    command.args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
    command.args(["-device", &format!("virtio-net-pci,netdev=net,mac={}", place.mac())]);
    command.args(["-device", "virtio-rng-pci"]);
    let log = files::create(&dir.join(QEMU_LOG))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}
