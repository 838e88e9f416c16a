// SPDX-License-Identifier: Apache-2.0
//! Lab: a virtual host with real KVM, device-mapper and Firecracker, for tests that need a feature which this
//! machine does not have. See `docs/lab.md`.
//!
//! All functions block; asynchronous tests call them from `spawn_blocking`.

mod channel;
mod child_process;
mod config;
mod files;
mod machine;
mod network;
mod payload;

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use channel::Channel;
pub use config::LabConfig;
use machine::Machine;
pub use network::Subnet;
use network::{Attachment, Lock};

/// Time limit in seconds for fetching a lab's logs.
const LOGS_LIMIT: &str = "60";

/// Running lab. It is stopped when this is dropped, when this process exits, and when its time limit is over.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    started_in: Duration,
    // Drop order: channel, machine, network attachment.
    channel: Option<Channel>,
    machine: Machine,
    attachment: Attachment,
    // Locks the name until everything else has been removed.
    _name: File,
}

impl Lab {
    /// Boots a lab and waits until it accepts commands. Replaces the files of an earlier lab of the same
    /// name.
    pub fn start(config: &LabConfig) -> Result<Self> {
        let begin = Instant::now();
        config.check()?;
        let image = files::image()?;
        let (dir, name_lock) = files::run_dir(&config.name)?;
        let payload = payload::build(&config.files)?;
        let scratch = files::scratch(&image, &dir)?;
        let keys = channel::Keys::make(&config.name)?;

        let lock = Lock::take()?;
        let place = network::free_place(config.subnet, &lock)?;
        let machine = Machine::start(&machine::Parts {
            config,
            image: &image,
            payload: &payload,
            scratch: &scratch,
            keys: &keys,
            dir: &dir,
            place: &place,
        })?;
        // From here on, dropping the values undoes everything.
        let attachment = Attachment::new(place, || machine.check(), &lock)?;
        drop(lock);
        let address = attachment.address();
        let mut lab = Self {
            name: config.name.clone(),
            dir,
            started_in: Duration::ZERO,
            channel: None,
            machine,
            attachment,
            _name: name_lock,
        };
        lab.channel = Some(lab.connect(keys, address, begin, config)?);
        lab.started_in = begin.elapsed();
        Ok(lab)
    }

    fn connect(
        &self,
        keys: channel::Keys,
        address: Ipv4Addr,
        begin: Instant,
        config: &LabConfig,
    ) -> Result<Channel> {
        let limit = config.start_limit;
        let mut channel = Channel::new(keys, address, config.time_limit);
        loop {
            self.machine.check()?;
            if channel.open(&self.dir.join("ssh.log"))? {
                break;
            }
            if begin.elapsed() > limit {
                bail!(
                    "the lab {} accepted no command within {limit:?}; its console ends: {}",
                    self.name,
                    self.machine.console_end()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.machine.ends_with(channel.master());
        Ok(channel)
    }

    fn channel(&self) -> Result<&Channel> {
        self.machine.check()?;
        self.channel.as_ref().with_context(|| format!("the lab {} has no channel", self.name))
    }

    /// Name of the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// IP address of the lab, reachable from this machine and from other labs of the subnet.
    pub fn address(&self) -> Ipv4Addr {
        self.attachment.address()
    }

    /// IP address of this machine in the labs' network.
    pub fn host_address(&self) -> Ipv4Addr {
        self.attachment.host_address()
    }

    /// Directory of the console log and, after [`Lab::logs`], of all other logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the last part of the console output.
    pub fn console_end(&self) -> String {
        self.machine.console_end()
    }

    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Moves the deadline forward: the lab is killed after `left`, even if commands are running.
    pub fn end_within(&self, left: Duration) {
        self.machine.end_within(left);
    }

    /// Time from [`Lab::start`] until the lab accepted commands.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Builds a command that runs in the lab. It inherits this process's standard streams and returns the
    /// exit status of the command in the lab (255 if the channel broke). Killing it does not stop the command
    /// in the lab.
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Result<Command> {
        Ok(self.channel()?.command(args, false))
    }

    /// Runs a command without input and returns its output.
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Result<Output> {
        let output = self.command(args)?.stdin(Stdio::null()).output().context("cannot run ssh")?;
        self.still_runs(output.status)?;
        Ok(output)
    }

    /// Runs a command, fails if it fails, and returns its standard output.
    pub fn check<S: AsRef<str>>(&self, args: &[S]) -> Result<String> {
        let output = self.run(args)?;
        ensure!(
            output.status.success(),
            "{:?} in the lab {}: {}: {}",
            args.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command and passes its output through.
    pub fn run_live<S: AsRef<str>>(&self, args: &[S]) -> Result<ExitStatus> {
        let status = self.command(args)?.stdin(Stdio::null()).status().context("cannot run ssh")?;
        self.still_runs(status)?;
        Ok(status)
    }

    /// Runs an interactive shell, or a command with a terminal.
    pub fn shell<S: AsRef<str>>(&self, args: &[S]) -> Result<ExitStatus> {
        self.channel()?.command(args, true).status().context("cannot run ssh")
    }

    /// Starts a command in the background, in a session of its own, with output to `/var/log/lab/NAME.log` in
    /// the lab. Returns its process id in the lab.
    pub fn spawn<S: AsRef<str>>(&self, name: &str, args: &[S]) -> Result<u32> {
        ensure!(config::is_name(name), "{name:?} is no name for a log");
        let script = format!(
            "mkdir -p /var/log/lab; setsid {} > /var/log/lab/{name}.log 2>&1 < /dev/null & echo $!",
            channel::quoted(args)
        );
        let pid = self.check(&["bash", "-c", &script])?;
        pid.trim().parse().with_context(|| format!("the lab {} gave no process id: {pid:?}", self.name))
    }

    /// Copies a file or directory to exactly this path in the lab.
    pub fn put(&self, local: &Path, remote: &str) -> Result<()> {
        let parent = Path::new(remote).parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        self.check(&["mkdir", "-p", &parent])?;
        let status = self.channel()?.put(local, remote).status().context("cannot run scp")?;
        ensure!(status.success(), "cannot put {} into the lab {}: {status}", local.display(), self.name);
        Ok(())
    }

    /// Copies a file or directory out of the lab.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let status = self.channel()?.get(remote, local).status().context("cannot run scp")?;
        ensure!(status.success(), "cannot get {remote} from the lab {}: {status}", self.name);
        Ok(())
    }

    /// Copies the lab's logs into [`Lab::dir`] and returns that directory.
    pub fn logs(&self) -> Result<&Path> {
        let script = "dmesg > /var/log/dmesg.log; dmsetup table > /var/log/dmsetup.log 2>&1; \
                      ps -ef > /var/log/processes.log; exec tar -C /var -cf - log";
        let packed = self.dir.join("logs.tar");
        let status = Command::new("timeout")
            .args(["--kill-after=5", LOGS_LIMIT])
            .arg("ssh")
            .args(self.command(&["bash", "-c", script])?.get_args())
            .stdin(Stdio::null())
            .stdout(files::create(&packed)?)
            .status()
            .context("cannot run timeout")?;
        ensure!(status.success(), "cannot collect the logs of the lab {}: {status}", self.name);
        let status = Command::new("tar")
            .arg("-C")
            .arg(&self.dir)
            .arg("-xf")
            .arg(&packed)
            .status()
            .context("cannot run tar")?;
        ensure!(status.success(), "cannot unpack {}: {status}", packed.display());
        drop(fs::remove_file(packed));
        Ok(&self.dir)
    }

    /// Stops the lab and removes everything but its logs.
    pub fn stop(self) {
        drop(self);
    }

    /// Fails if the machine has exited: status 255 can come from the command or from a broken channel.
    fn still_runs(&self, status: ExitStatus) -> Result<()> {
        if status.code() == Some(255) { self.machine.check_soon() } else { Ok(()) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.close();
        }
        self.machine.stop();
        self.attachment.leave();
        // Keep only logs.
        drop(fs::remove_file(self.dir.join(files::SCRATCH)));
    }
}
