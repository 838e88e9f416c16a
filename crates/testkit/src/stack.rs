// SPDX-License-Identifier: Apache-2.0
//! Stack under test: `wrenn up` in a temporary state directory.

use std::{
    env,
    ffi::CString,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::TcpListener,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit},
};
use serde_json::json;

use crate::{Api, Process, Resources, processes, resources};

/// Configuration of a stack under test.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Additional environment variables.
    pub env: Vec<(String, String)>,
    /// Maximum number of open files of each process (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Size in MiB of a file system of its own for the state directory.
    pub state_mb: Option<u64>,
}

/// File system in memory that is mounted on a directory; dropping it unmounts it.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: &Path, size_mb: u64) -> Result<Self> {
        let options = CString::new(format!("size={size_mb}M,mode=0755"))?;
        fs::create_dir(dir)?;
        mount("wrenn", dir, "tmpfs", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("cannot mount a tmpfs on {}", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Running Wrenn. Only [`Stack::stop`] stops it; dropping it does not.
#[derive(Debug)]
pub struct Stack {
    /// State directory.
    pub state_dir: PathBuf,
    /// Client with the team's API key.
    pub api: Api,
    /// Directory in which fault points are armed.
    pub faults: PathBuf,
    /// Names of registries on this machine that the agent imports images from. Nothing serves them unless a case does.
    pub registries: [String; 2],
    before: Resources,
    /// Sandboxes that cases have given back.
    unused: Mutex<Vec<String>>,
    up: Child,
    /// File system of the state directory, which is unmounted before the directory is removed.
    _state: Option<Mounted>,
    home: tempfile::TempDir,
    env: Vec<(String, String)>,
}

/// Content of `.env` in the working directory of `wrenn`, which would not start if it read it.
const FOREIGN_VARIABLES: &str = "\
WRENN_URL=http://127.0.0.1:1
WRENN_AGENT_FIRECRACKER=/nonexistent
WRENN_SHARE_DIR=/nonexistent
DATABASE_URL=postgres://shop@127.0.0.1:1/shop
REDIS_URL=redis://127.0.0.1:1
WRENN_SHOP=1
this line is no variable
";

fn program() -> Result<PathBuf> {
    let path = env::var_os("WRENN_BIN").map(PathBuf::from).context(
        "WRENN_BIN is not set: run the tests by `make test`, or name a wrenn built with --features fault-points",
    )?;
    anyhow::ensure!(path.exists(), "{} does not exist", path.display());
    Ok(path)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Returns whether the tests run inside a lab: a virtual host with Firecracker, KVM and device-mapper.
pub fn in_lab() -> bool {
    env::var_os("IN_LAB").is_some()
}

/// Environment of an agent in a lab: its driver, and a boot timeout of minutes.
pub fn lab_agent_variables() -> [(String, String); 2] {
    let variables = [("WRENN_AGENT_DRIVER", "firecracker"), ("WRENN_AGENT_BOOT_TIMEOUT_SEC", "480")];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// Factor for time limits in a lab, whose single CPU and whose guests are emulated.
const LAB_PATIENCE: u32 = 4;

/// Polls until `done` returns a value. Fails with `what` after `limit`, in a lab after four times `limit`.
pub async fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut done: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let limit = if in_lab() { limit * LAB_PATIENCE } else { limit };
    let start = Instant::now();
    loop {
        let look = Instant::now();
        if let Some(value) = done().await {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        // Poll rarely enough that polling does not slow down a slow machine.
        tokio::time::sleep(Duration::from_millis(50).max(look.elapsed() * 2)).await;
    }
}

/// Chooses the first user id of a stack's VMMs at random. Stacks in other namespaces of processes do not see
/// these VMMs, so while this stack's agent is dead, they would take the same ids for free.
fn uid_base() -> u64 {
    /// More ids than an agent uses, and how many ranges of them there are.
    const RANGE: u64 = 40_000;
    const RANGES: u64 = 1000;
    300_000 + RandomState::new().build_hasher().finish() % RANGES * RANGE
}

impl Stack {
    /// Starts a stack with a new state directory and waits until it is ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(Setup::default()).await
    }

    /// Starts a stack with this configuration and waits until it is ready.
    pub async fn start_with(setup: Setup) -> Result<Self> {
        // The path must be short, because Unix sockets are below it.
        let home = tempfile::Builder::new().prefix("wt").tempdir()?;
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
        let (state_dir, faults) = (home.path().join("s"), home.path().join("faults"));
        fs::create_dir(&faults)?;
        // The unprivileged server removes the file of a fault point that has fired.
        fs::set_permissions(&faults, fs::Permissions::from_mode(0o777))?;
        fs::write(home.path().join(".env"), FOREIGN_VARIABLES)?;
        let registries = [format!("127.0.0.1:{}", free_port()?), format!("127.0.0.1:{}", free_port()?)];
        let state = setup.state_mb.map(|size| Mounted::new(&state_dir, size)).transpose()?;
        let mut env = vec![
            ("HOME".to_owned(), home.path().display().to_string()),
            ("WRENN_STATE_DIR".to_owned(), state_dir.display().to_string()),
            ("WRENN_SERVER_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
            ("WRENN_AGENT_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
            ("WRENN_SERVER_PROXY_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
            ("WRENN_AGENT_VMM_UID_BASE".to_owned(), uid_base().to_string()),
            ("WRENN_FAULT_DIR".to_owned(), faults.display().to_string()),
            ("WRENN_AGENT_REGISTRIES_PLAIN_HTTP".to_owned(), registries.join(",")),
            // Its hosts may be labs, where a create takes minutes.
            ("WRENN_SERVER_CREATE_TIMEOUT_SEC".to_owned(), "540".to_owned()),
            // Twice as many as a case runs at a time in its long form, because a team has half of them.
            ("WRENN_SERVER_LONG_COMMANDS".to_owned(), "400".to_owned()),
            // Receivers of channels are cases.
            ("WRENN_SERVER_CHANNELS_ALLOW".to_owned(), "127.0.0.0/8".to_owned()),
        ];
        if in_lab() {
            env.extend(lab_agent_variables());
        } else {
            // So that what a killed server was doing is soon taken over; a lab may pause for longer.
            env.push(("WRENN_SERVER_LEASE_SEC".to_owned(), "3".to_owned()));
        }
        env.extend(setup.env);
        let before = Resources::now(&state_dir);
        let up = spawn_up(&env, home.path(), setup.open_files)?;
        let mut stack = Self {
            api: Api::new("", ""),
            state_dir,
            faults,
            registries,
            before,
            unused: Mutex::default(),
            up,
            _state: state,
            home,
            env,
        };
        match stack.wait_ready().await {
            Ok(()) => Ok(stack),
            Err(error) => {
                let logs = stack.logs();
                let _ = stack.stop().await;
                bail!("{error:#}\n{logs}")
            }
        }
    }

    /// Returns a running sandbox with default settings for a case that leaves it as it found it. A case that
    /// fails does not give it back.
    pub async fn borrow_sandbox(&self) -> Result<String> {
        let unused = self.unused().pop();
        match unused {
            Some(id) => Ok(id),
            None => self.api.create(&json!({"memory_mb": 256})).await,
        }
    }

    /// Takes a sandbox back for other cases.
    pub fn give_back(&self, id: String) {
        self.unused().push(id);
    }

    /// Deletes the sandboxes that were given back, for cases that count sandboxes.
    pub async fn delete_unused(&self) -> Result<()> {
        let ids = std::mem::take(&mut *self.unused());
        for id in ids {
            self.api.remove(&id).await?;
        }
        Ok(())
    }

    fn unused(&self) -> MutexGuard<'_, Vec<String>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// URL of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.env[2].1)
    }

    /// Runs `wrenn ARGS` as the user who ran `wrenn up`.
    pub fn wrenn(&self, args: &[&str]) -> Result<std::process::Output> {
        Ok(self.command(args)?.output()?)
    }

    /// Returns `wrenn ARGS` for the user who ran `wrenn up`, ready to start, without input.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(args).envs(self.env.iter().cloned()).stdin(Stdio::null());
        command.current_dir(self.home.path());
        Ok(command)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let url = self.url();
        let config = self.home.path().join(".config/wrenn/config.toml");
        let ready = wait_until("wrenn up", Duration::from_secs(180), async || {
            if let Ok(Some(status)) = self.up.try_wait() {
                return Some(Err(anyhow::anyhow!("wrenn up ended: {status}")));
            }
            let text = fs::read_to_string(&config).ok()?;
            let key = text.lines().find_map(|line| line.strip_prefix("api_key"))?;
            let key = key.trim_matches([' ', '=', '"']).to_owned();
            let api = Api::new(&url, &key);
            let health = api.get("/health").await.ok()?.json();
            let listed = api.get("/v1/sandboxes").await.ok()?;
            (listed.status == 200 && health["hosts_online"] == 1).then_some(Ok(api))
        })
        .await
        .and_then(|result| result);
        self.api = ready?;
        Ok(())
    }

    /// Output of `wrenn up` itself.
    pub fn up_log(&self) -> Vec<u8> {
        fs::read(self.home.path().join("up.log")).unwrap_or_default()
    }

    /// Last part of each log, for error messages.
    pub fn logs(&self) -> String {
        let mut text = tail(&self.home.path().join("up.log"));
        let Ok(entries) = fs::read_dir(self.state_dir.join("logs")) else { return text };
        for entry in entries.flatten() {
            text.push_str(&format!("\n--- {}\n{}", entry.path().display(), tail(&entry.path())));
        }
        text
    }

    /// Finds a child process of `wrenn up`: `server` (control plane), `agent`, `postgres` or `redis-server`.
    pub fn process(&self, name: &str) -> Result<Process> {
        let parent = self.up.id() as i32;
        let is_it = |process: &Process| {
            process.parent == parent
                && (process.program() == name || process.args.get(1).is_some_and(|arg| arg == name))
        };
        processes().into_iter().find(is_it).with_context(|| format!("no {name} under `wrenn up`"))
    }

    /// Process id of a child process of `wrenn up`.
    pub fn child(&self, name: &str) -> Result<Pid> {
        Ok(self.process(name)?.pid)
    }

    fn vmm_processes(&self) -> Vec<Process> {
        let ours = format!("{}/", self.state_dir.join("agent/sandboxes").display());
        // The command line of a jailed VMM has no such path; the name of its jail contains the sandbox id.
        let is_ours = |process: &Process| match process.program() {
            "firecracker" => process.is_jailed_sandbox(),
            program => program.starts_with("qemu") && process.args.iter().any(|arg| arg.contains(&ours)),
        };
        processes().into_iter().filter(is_ours).collect()
    }

    /// Command lines of all VMMs.
    pub fn vmms(&self) -> Vec<String> {
        self.vmm_processes().into_iter().map(|process| process.args.join(" ")).collect()
    }

    /// Process id of the VMM of sandbox `id`.
    pub fn vmm(&self, id: &str) -> Result<Pid> {
        let names = |process: &Process| process.args.iter().any(|arg| arg.contains(id));
        let found = self.vmm_processes().into_iter().find(names);
        Ok(found.with_context(|| format!("{id} has no VMM"))?.pid)
    }

    /// Command lines of the page servers of sandbox `id`.
    pub fn page_servers(&self, id: &str) -> Vec<String> {
        page_server_processes(id).into_iter().map(|process| process.args.join(" ")).collect()
    }

    /// Process id of the page server of sandbox `id`.
    pub fn page_server(&self, id: &str) -> Result<Pid> {
        let found = page_server_processes(id).into_iter().next();
        Ok(found.with_context(|| format!("{id} has no page server"))?.pid)
    }

    /// Lists files, processes, devices and control groups that belong to sandbox `id`.
    pub fn remains(&self, id: &str) -> Vec<String> {
        let agent = self.state_dir.join("agent");
        let mut found: Vec<String> = self.vmms().into_iter().filter(|line| line.contains(id)).collect();
        found.extend(self.page_servers(id));
        for dir in ["sandboxes", "volumes/volumes", "volumes/nodes"] {
            let Ok(entries) = fs::read_dir(agent.join(dir)) else { continue };
            let paths = entries.flatten().map(|entry| entry.path().display().to_string());
            found.extend(paths.filter(|path| path.contains(id)));
        }
        let snapshots = fs::read_dir(agent.join("volumes/snapshots")).into_iter().flatten().flatten();
        let of_it = snapshots.map(|entry| entry.path()).filter(|path| {
            fs::read_to_string(path.join("manifest")).is_ok_and(|manifest| manifest.contains(id))
        });
        found.extend(of_it.map(|path| path.display().to_string()));
        found.extend(resources::device_maps().into_iter().filter(|name| name.contains(id)));
        let groups =
            ["", "memory", "pids", "cpu"].map(|controller| Path::new("/sys/fs/cgroup").join(controller));
        let groups = groups.map(|root| root.join("wrenn").join(id));
        found.extend(groups.iter().filter(|group| group.exists()).map(|group| group.display().to_string()));
        found
    }

    /// Runs SQL in the private database; returns one line per row with fields separated by `|`.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let sockets = self.state_dir.join("run/postgres");
        let mut command = Command::new("psql");
        command
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "wrenn", "-d", "wrenn", "-h"])
            .arg(sockets);
        let output = command.args(["-c", statement]).stdin(Stdio::null()).current_dir("/").output()?;
        anyhow::ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Arms a fault point, such as `agent.create.slot`: the next process that reaches it is killed.
    pub fn arm(&self, point: &str) -> Result<()> {
        self.arm_with(point, "")
    }

    /// Arms a fault point at which the process stops, until it gets SIGCONT.
    pub fn arm_stop(&self, point: &str) -> Result<()> {
        self.arm_with(point, "stop")
    }

    /// Writes the file of a fault point.
    fn arm_with(&self, point: &str, how: &str) -> Result<()> {
        let path = self.faults.join(point);
        fs::write(&path, how)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o666))?)
    }

    /// Disarms a fault point.
    pub fn disarm(&self, point: &str) {
        let _ = fs::remove_file(self.faults.join(point));
    }

    /// Returns whether a fault point is armed and not yet reached.
    pub fn armed(&self, point: &str) -> bool {
        self.faults.join(point).exists()
    }

    /// Kills a child process of `wrenn up` with SIGKILL and waits until it is restarted and the API is
    /// healthy.
    pub async fn kill_and_wait(&self, name: &str) -> Result<()> {
        let old = self.child(name)?;
        kill_process(old, Signal::KILL)?;
        self.restarted(name, old).await?;
        self.wait_healthy().await
    }

    /// Waits until a new process has replaced `old`.
    pub async fn restarted(&self, name: &str, old: Pid) -> Result<()> {
        let new = async || self.child(name).ok().filter(|&pid| pid != old);
        wait_until(&format!("a new {name}"), Duration::from_secs(30), new).await.map(drop)
    }

    /// Waits until the API is healthy.
    pub async fn wait_healthy(&self) -> Result<()> {
        let healthy = async || self.api.get("/health").await.ok().filter(|reply| reply.status == 200);
        wait_until("health", Duration::from_secs(60), healthy).await.map(drop)
    }

    /// Stops Wrenn, removes its sandboxes, and fails if kernel resources are left.
    pub async fn stop(mut self) -> Result<()> {
        self.end(&["down", "--destroy"]).await
    }

    /// Stops Wrenn, whose sandboxes are paused, and fails if kernel resources are left.
    pub async fn down(&mut self) -> Result<()> {
        self.end(&["down"]).await
    }

    /// Sends `wrenn up` itself a signal by which it pauses its sandboxes and ends, and fails if it does not succeed or
    /// kernel resources are left.
    pub async fn end_by(&mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.up), signal).context("wrenn up has ended")?;
        let ended = self.nothing_is_left().await;
        let status = ended.with_context(|| format!("after {signal:?}\n{}", self.logs()))?;
        anyhow::ensure!(status.success(), "{signal:?} ends wrenn up by {status}\n{}", self.logs());
        Ok(())
    }

    /// Starts Wrenn again after [`Stack::down`] or [`Stack::end_by`].
    pub async fn up_again(&mut self) -> Result<()> {
        self.up = spawn_up(&self.env, self.home.path(), None)?;
        self.wait_ready().await
    }

    async fn end(&mut self, command: &[&str]) -> Result<()> {
        let output = self.wrenn(command)?;
        let mut logs = self.logs();
        logs.push_str(&String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "wrenn {} failed: {logs}", command.join(" "));
        self.nothing_is_left().await.map(drop).context(logs)
    }

    /// Waits for the end of `wrenn up` and for what the kernel frees; returns its exit status.
    async fn nothing_is_left(&mut self) -> Result<ExitStatus> {
        let ended = async || self.up.try_wait().ok().flatten();
        let status = wait_until("the end of wrenn up", Duration::from_secs(60), ended).await?;
        // The kernel frees namespaces in the background.
        let (state_dir, before) = (self.state_dir.clone(), self.before.clone());
        let mut left = Vec::new();
        let clean = wait_until("nothing left", Duration::from_secs(15), async || {
            left = Resources::now(&state_dir).beyond(&before);
            left.is_empty().then_some(())
        })
        .await;
        clean.with_context(|| format!("left behind: {left:#?}"))?;
        Ok(status)
    }
}

fn page_server_processes(id: &str) -> Vec<Process> {
    let serves = |process: &Process| {
        process.args.get(1).is_some_and(|arg| arg == "page-server")
            && process.args.iter().any(|arg| arg.contains(id))
    };
    processes().into_iter().filter(serves).collect()
}

/// Descriptor of a file of root that each Wrenn under test inherits, as from a careless shell.
pub const INHERITED: i32 = 77;

fn spawn_up(env: &[(String, String)], dir: &Path, open_files: Option<u64>) -> Result<Child> {
    let log = fs::File::create(dir.join("up.log"))?;
    let secret = fs::File::create(dir.join("secret"))?;
    secret.set_permissions(fs::Permissions::from_mode(0o600))?;
    let mut command = Command::new(program()?);
    command.arg("up").envs(env.iter().cloned()).current_dir(dir);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if let Some(limit) = open_files {
        // Also the hard limit, because the agent raises its soft limit to it.
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        let set = move || Ok(setrlimit(Resource::Nofile, limit)?);
        // SAFETY: between fork and exec, only one system call is made; nothing is allocated or locked.
        unsafe { command.pre_exec(set) };
    }
    let inherit = move || {
        // SAFETY: system call on an open descriptor. The copy stays open in the child only.
        if unsafe { libc::dup2(secret.as_raw_fd(), INHERITED) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec, only one system call is made; nothing is allocated or locked.
    unsafe { command.pre_exec(inherit) };
    command.spawn().context("cannot start wrenn up")
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(6000);
    String::from_utf8_lossy(&text[start..]).into_owned()
}
