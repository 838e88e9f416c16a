//! `wrenn up` in a state directory of its own.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Api, Resources};

/// A running Wrenn; dropping it does not stop it, [`Stack::stop`] does.
#[derive(Debug)]
pub struct Stack {
    /// Its state directory.
    pub state_dir: PathBuf,
    /// A client with the team's key.
    pub api: Api,
    before: Resources,
    up: Child,
    home: tempfile::TempDir,
    env: Vec<(String, String)>,
}

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

/// Waits until `done` gives a value; fails with `what` after `limit`.
pub async fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut done: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done().await {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Stack {
    /// Starts a Wrenn with a fresh state directory and waits until it serves.
    pub async fn start() -> Result<Self> {
        // Short: unix sockets live below it.
        let home = tempfile::Builder::new().prefix("wt").tempdir_in("/tmp")?;
        fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let state_dir = home.path().join("s");
        let env = vec![
            ("HOME".to_owned(), home.path().display().to_string()),
            ("WRENN_STATE_DIR".to_owned(), state_dir.display().to_string()),
            ("WRENN_SERVER_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
            ("WRENN_AGENT_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
        ];
        let before = Resources::now(&state_dir);
        let up = spawn_up(&env, home.path(), &[])?;
        let mut stack = Self { api: Api::new("", ""), state_dir, before, up, home, env };
        stack.wait_ready().await?;
        Ok(stack)
    }

    /// The address of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.env[2].1)
    }

    /// Runs `wrenn ARGS` as the user who ran `wrenn up`.
    pub fn wrenn(&self, args: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(program()?);
        command.args(args).envs(self.env.iter().cloned()).stdin(Stdio::null());
        command.current_dir(self.home.path());
        Ok(command.output()?)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let url = self.url();
        let config = self.home.path().join(".config/wrenn/config.toml");
        let ready = wait_until("wrenn up", Duration::from_secs(120), async || {
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
        match ready {
            Ok(api) => {
                self.api = api;
                Ok(())
            }
            Err(error) => Err(error.context(self.logs())),
        }
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let mut text = tail(&self.home.path().join("up.log"));
        let Ok(entries) = fs::read_dir(self.state_dir.join("logs")) else { return text };
        for entry in entries.flatten() {
            text.push_str(&format!("\n--- {}\n{}", entry.path().display(), tail(&entry.path())));
        }
        text
    }

    /// The process id of the control plane (`server`) or the host agent (`agent`).
    pub fn child(&self, subcommand: &str) -> Result<Pid> {
        let parent = self.up.id().to_string();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some(after) = stat.rsplit(')').next() else { continue };
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_child = after.split_whitespace().nth(1) == Some(parent.as_str());
            if is_child && cmdline.split(|&byte| byte == 0).nth(1) == Some(subcommand.as_bytes()) {
                let pid: i32 = entry.file_name().to_string_lossy().parse()?;
                return Pid::from_raw(pid).context("pid 0");
            }
        }
        bail!("no `wrenn {subcommand}` under `wrenn up`")
    }

    /// Kills the control plane or the agent without warning and waits until another one took its place.
    pub async fn kill_and_wait(&self, subcommand: &str) -> Result<()> {
        let old = self.child(subcommand)?;
        kill_process(old, Signal::KILL)?;
        let restarted = async || self.child(subcommand).ok().filter(|&pid| pid != old);
        wait_until(&format!("a new {subcommand}"), Duration::from_secs(30), restarted).await?;
        self.wait_healthy().await
    }

    /// Waits until the API answers.
    pub async fn wait_healthy(&self) -> Result<()> {
        let healthy = async || self.api.get("/health").await.ok().filter(|reply| reply.status == 200);
        wait_until("health", Duration::from_secs(60), healthy).await.map(drop)
    }

    /// Stops Wrenn and fails if anything is left in the kernel.
    pub async fn stop(mut self) -> Result<()> {
        let output = self.wrenn(&["down"])?;
        let mut logs = self.logs();
        logs.push_str(&String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "wrenn down failed: {logs}");
        let ended = async || self.up.try_wait().ok().flatten();
        wait_until("the end of wrenn up", Duration::from_secs(60), ended).await.context(logs.clone())?;
        // Namespaces are freed in the background once nothing pins them.
        let (state_dir, before) = (self.state_dir.clone(), self.before.clone());
        let mut left = Vec::new();
        let clean = wait_until("nothing left", Duration::from_secs(15), async || {
            left = Resources::now(&state_dir).beyond(&before);
            left.is_empty().then_some(())
        })
        .await;
        clean.with_context(|| format!("left behind: {left:#?}\n{logs}"))
    }
}

fn spawn_up(env: &[(String, String)], dir: &Path, extra: &[(&str, &str)]) -> Result<Child> {
    let log = fs::File::create(dir.join("up.log"))?;
    let mut command = Command::new(program()?);
    command.arg("up").envs(env.iter().cloned()).envs(extra.iter().copied()).current_dir(dir);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("cannot start wrenn up")
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(6000);
    String::from_utf8_lossy(&text[start..]).into_owned()
}
