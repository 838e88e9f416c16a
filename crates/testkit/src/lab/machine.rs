//! The lab's machine: QEMU with emulated AMD-V.

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
    files,
    kept::{self, Kept},
    network::Place,
};

/// How much later than it is killed from outside a lab powers off by itself at the end of its time: that is for
/// the case that this process is held still.
const POWER_OFF: Duration = Duration::from_secs(5);
/// How long after its connection broke a machine may take to be seen ended.
const SEEN_ENDED: Duration = Duration::from_millis(500);
/// How much of the console is shown when something is wrong.
const CONSOLE_END: usize = 2000;

const CONSOLE: &str = "serial.log";
const QEMU_LOG: &str = "qemu.log";

/// What a machine is made of.
pub(super) struct Parts<'a> {
    pub(super) config: &'a LabConfig,
    pub(super) image: &'a Path,
    pub(super) payload: &'a Path,
    pub(super) scratch: &'a Path,
    pub(super) keys: &'a Keys,
    pub(super) dir: &'a Path,
    pub(super) place: &'a Place,
}

/// A running machine.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Kept,
    dir: PathBuf,
    master: Arc<Mutex<Option<Master>>>,
}

impl Machine {
    pub(super) fn start(parts: &Parts<'_>) -> Result<Self> {
        let master = Arc::new(Mutex::new(None::<Master>));
        let masters = master.clone();
        let qemu = Kept::start(command(parts)?, parts.config.time_limit, move || {
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

    /// Brings the end of its time forward.
    pub(super) fn end_within(&self, left: Duration) {
        self.qemu.end_within(left);
    }

    /// Has this connection ended when the machine ends.
    pub(super) fn ends_with(&self, master: Master) {
        let mut slot = self.master.lock().unwrap_or_else(PoisonError::into_inner);
        if self.qemu.ended().is_some() {
            channel::end(&master);
        }
        *slot = Some(master);
    }

    /// Fails if it has ended, and says why.
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

    /// The same, for when a connection has just broken: a machine's end may come to notice a moment later.
    pub(super) fn check_soon(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < SEEN_ENDED {
            self.check()?;
            thread::sleep(kept::LOOK);
        }
        Ok(())
    }

    /// The last of what it wrote to its console.
    pub(super) fn console_end(&self) -> String {
        let console = fs::read(self.dir.join(CONSOLE)).unwrap_or_default();
        let end = &console[console.len().saturating_sub(CONSOLE_END)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// Ends it and waits for that. Its disks are thrown away: there is nothing to shut down.
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
    let mut command = kept::command("qemu-system-x86_64");
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
    // Many labs share one image: what each writes is in a file of its own that has no name.
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
