//! The lab: a virtual host with real KVM, device-mapper and Firecracker, for what the machine that runs the
//! tests does not have. `docs/lab.md` says how it is used.
//!
//! Everything here blocks; asynchronous tests call it from `spawn_blocking`.

mod channel;
mod config;
mod files;
mod kept;
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

/// How long fetching a lab's logs may take.
const LOGS_LIMIT: &str = "60";

/// A running lab. Dropping it stops it; so does the end of this process, and the lab's own time limit.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    started_in: Duration,
    // In the order in which they go: the channel, the machine, its place in the network.
    channel: Option<Channel>,
    machine: Machine,
    attachment: Attachment,
    // Held until everything else is gone: the name is free then.
    _name: File,
}

impl Lab {
    /// Boots a lab and waits until it takes commands. What an earlier one of this name left is replaced.
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
        // From here on everything is undone by being dropped.
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
                    "the lab {} took no command within {limit:?}; its console ends: {}",
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

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, which this machine and other labs of the same subnet reach.
    pub fn address(&self) -> Ipv4Addr {
        self.attachment.address()
    }

    /// The address at which labs reach this machine.
    pub fn host_address(&self) -> Ipv4Addr {
        self.attachment.host_address()
    }

    /// Where its console's output and, after [`Lab::logs`], its logs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How the output of its console ends.
    pub fn console_end(&self) -> String {
        self.machine.console_end()
    }

    /// The process id of its machine.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Brings the end of its time forward: it is killed when this much time is over, whatever goes on in it.
    pub fn end_within(&self, left: Duration) {
        self.machine.end_within(left);
    }

    /// How long it took from [`Lab::start`] until it took commands.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// A command that runs in the lab, not started yet: its streams are this process's, its exit status is
    /// the command's (255 where the channel broke). Killing it leaves what runs in the lab running.
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Result<Command> {
        Ok(self.channel()?.command(args, false))
    }

    /// Runs a command and returns what it wrote, without input.
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Result<Output> {
        let output = self.command(args)?.stdin(Stdio::null()).output().context("cannot run ssh")?;
        self.still_runs(output.status)?;
        Ok(output)
    }

    /// Runs a command that must succeed and returns its standard output.
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

    /// Runs a command whose output goes to this process's as it comes.
    pub fn run_live<S: AsRef<str>>(&self, args: &[S]) -> Result<ExitStatus> {
        let status = self.command(args)?.stdin(Stdio::null()).status().context("cannot run ssh")?;
        self.still_runs(status)?;
        Ok(status)
    }

    /// An interactive shell with a terminal, or a command with one.
    pub fn shell<S: AsRef<str>>(&self, args: &[S]) -> Result<ExitStatus> {
        self.channel()?.command(args, true).status().context("cannot run ssh")
    }

    /// Starts a command that goes on by itself; its output goes to `/var/log/lab/NAME.log` in the lab. Returns
    /// its process id there; it leads a session of its own.
    pub fn spawn<S: AsRef<str>>(&self, name: &str, args: &[S]) -> Result<u32> {
        ensure!(config::is_name(name), "{name:?} is no name for a log");
        let script = format!(
            "mkdir -p /var/log/lab; setsid {} > /var/log/lab/{name}.log 2>&1 < /dev/null & echo $!",
            channel::quoted(args)
        );
        let pid = self.check(&["bash", "-c", &script])?;
        pid.trim().parse().with_context(|| format!("the lab {} gave no process id: {pid:?}", self.name))
    }

    /// Puts a file or a directory into the lab, at exactly this path.
    pub fn put(&self, local: &Path, remote: &str) -> Result<()> {
        let parent = Path::new(remote).parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        self.check(&["mkdir", "-p", &parent])?;
        let status = self.channel()?.put(local, remote).status().context("cannot run scp")?;
        ensure!(status.success(), "cannot put {} into the lab {}: {status}", local.display(), self.name);
        Ok(())
    }

    /// Gets a file or a directory out of the lab.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let status = self.channel()?.get(remote, local).status().context("cannot run scp")?;
        ensure!(status.success(), "cannot get {remote} from the lab {}: {status}", self.name);
        Ok(())
    }

    /// Collects the lab's logs into [`Lab::dir`], beside its console's, and returns that directory.
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

    /// Stops it; nothing but its logs is left.
    pub fn stop(self) {
        drop(self);
    }

    /// 255 may be the command's own, or the channel's because the machine has ended.
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
        // Only logs are worth keeping.
        drop(fs::remove_file(self.dir.join(files::SCRATCH)));
    }
}
