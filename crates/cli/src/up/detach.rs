//! `wrenn up --detach`: starts `wrenn up` in the background and waits until it is ready.

use std::{
    fs,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;
use wrenn_client::Client;

use super::{
    READY,
    child::{rotate, tail_from},
};
use crate::{client_config, config::Config, layout::Layout, output::note, process::Record};

/// Time limit of the start; larger than those of all parts.
const LIMIT: Duration = Duration::from_secs(480);
const POLL: Duration = Duration::from_millis(100);
/// Interval between progress messages.
const PROGRESS: Duration = Duration::from_secs(5);

/// Starts `wrenn up` in the background and waits until the API responds.
pub(crate) async fn start(config: &Config, layout: &Layout) -> Result<()> {
    note("Wrenn starts in the background ...");
    let marks = Marks::now(layout);
    let mut child = spawn(layout)?;
    let (begin, mut said) = (Instant::now(), Instant::now());
    while !serves(config, layout).await {
        if let Some(status) = child.try_wait().context("cannot wait for it")? {
            // 0: another `wrenn up` runs already; wait for that one.
            if !status.success() {
                bail!("wrenn up ended ({status})\n{}", marks.news(layout));
            }
        }
        if begin.elapsed() > LIMIT {
            bail!(
                "wrenn up does not serve after {} s; it goes on trying\n{}",
                LIMIT.as_secs(),
                marks.news(layout)
            );
        }
        if said.elapsed() > PROGRESS {
            note(&format!("... still starting after {} s", begin.elapsed().as_secs()));
            said = Instant::now();
        }
        sleep(POLL).await;
    }
    note(&format!("Wrenn serves after {:.1} s", begin.elapsed().as_secs_f32()));
    Ok(())
}

fn spawn(layout: &Layout) -> Result<Child> {
    let path = layout.log("up");
    rotate(&path)?;
    let log = fs::OpenOptions::new().create(true).append(true).mode(0o640).open(&path);
    let log = log.with_context(|| format!("cannot open {}", path.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wrenn").args(std::env::args_os().skip(1).filter(|arg| arg != "--detach"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let own_session = || rustix::process::setsid().map(drop).map_err(Into::into);
    // SAFETY: between fork and exec, only one system call is made; nothing is allocated or locked.
    unsafe { command.pre_exec(own_session) };
    command.spawn().context("cannot start wrenn up")
}

/// Returns whether the API responds. The key is read from the file each time: `wrenn up` writes it there.
async fn serves(config: &Config, layout: &Layout) -> bool {
    if Record::read(&layout.pid_file(READY)).is_none_or(|record| !record.alive()) {
        return false;
    }
    let ask = async || -> Result<bool> {
        let table: toml::Table = client_config::read(config.file())?.parse()?;
        let key = table.get("api_key").and_then(toml::Value::as_str).context("no key yet")?;
        let client = Client::new(&config.local_url()?, Some(key))?;
        let health = client.health().await?;
        let ready = health.status == "ok" && health.hosts_online > 0;
        Ok(ready && client.list(1, None).await.is_ok())
    };
    ask().await.unwrap_or(false)
}

/// How long the logs were before: only what came since has to do with this start.
struct Marks(Vec<(&'static str, u64)>);

impl Marks {
    fn now(layout: &Layout) -> Self {
        let length = |name| fs::metadata(layout.log(name)).map_or(0, |meta| meta.len());
        Self(["up", "postgres", "redis", "agent", "server"].map(|name| (name, length(name))).to_vec())
    }

    fn news(&self, layout: &Layout) -> String {
        let quote = |&(name, mark): &(&str, u64)| {
            let text = tail_from(&layout.log(name), mark);
            (!text.is_empty()).then(|| format!("--- the end of {}\n{text}\n", layout.log(name).display()))
        };
        self.0.iter().filter_map(quote).collect()
    }
}
