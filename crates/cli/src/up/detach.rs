// SPDX-License-Identifier: Apache-2.0
//! `wrenn up --detach`: starts `wrenn up` in the background and waits until it is ready.

use std::{
    fs,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;
use wrenn_client::{Client, SandboxFilter};

use super::{
    READY,
    child::{QUOTE_MARK, QUOTE_MAX, rotate, tail_from},
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
    let mark = Mark::now(layout);
    let mut child = spawn(layout)?;
    let (begin, mut said) = (Instant::now(), Instant::now());
    while !serves(config, layout).await {
        if let Some(status) = child.try_wait().context("cannot wait for it")? {
            // 0: another `wrenn up` runs already; wait for that one.
            if !status.success() {
                let (quote, cause) = mark.told(layout);
                note(&quote);
                bail!("{}", cause.unwrap_or_else(|| format!("wrenn up ended ({status})")));
            }
        }
        if begin.elapsed() > LIMIT {
            note(&mark.told(layout).0);
            bail!("wrenn up does not serve after {} s; it goes on trying", LIMIT.as_secs());
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
    command
        .arg0("wrenn")
        .args(std::env::args_os().skip(1).filter(|arg| arg != "--detach"))
        .arg("--background");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let own_session = || rustix::process::setsid().map(drop).map_err(Into::into);
    // SAFETY: between fork and exec, only one system call is made; nothing is allocated or locked.
    unsafe { command.pre_exec(own_session) };
    command.spawn().context("cannot start wrenn up")
}

/// Returns whether the API responds. The key is read from the file each time: `wrenn up` writes it there.
async fn serves(config: &Config, layout: &Layout) -> bool {
    if !Record::running(&layout.pid_file(READY)).is_ok_and(|running| running.is_some()) {
        return false;
    }
    let ask = async || -> Result<bool> {
        let table: toml::Table = client_config::read(config.file())?.parse()?;
        let key = table.get("api_key").and_then(toml::Value::as_str).context("no key yet")?;
        let client = Client::new(&config.local_url(), Some(key))?;
        let health = client.health().await?;
        let ready = health.status == "ok" && health.hosts_online > 0;
        Ok(ready && client.list(&SandboxFilter::default(), 1, None).await.is_ok())
    };
    ask().await.unwrap_or(false)
}

/// Length of the log of `wrenn up` before the start: only later output belongs to it.
struct Mark(u64);

impl Mark {
    fn now(layout: &Layout) -> Self {
        Self(fs::metadata(layout.log("up")).map_or(0, |meta| meta.len()))
    }

    /// Returns its output since then, and the cause of its end, if any.
    fn told(&self, layout: &Layout) -> (String, Option<String>) {
        let path = layout.log("up");
        // It quotes the log of the failed part.
        told(&tail_from(&path, self.0, 2 * QUOTE_MAX), &path)
    }
}

/// Splits the output of `wrenn up` into the quoted log of the failed part, or all of it, and its last line,
/// the cause.
fn told(text: &str, path: &Path) -> (String, Option<String>) {
    let (above, cause) = match text.rsplit_once("wrenn: ") {
        Some((above, cause)) if !cause.is_empty() => (above, Some(cause.trim().to_owned())),
        _ => (text, None),
    };
    let quote = match above.rfind(QUOTE_MARK) {
        Some(begin) => above[begin..].trim_end().to_owned(),
        None => format!("{QUOTE_MARK}{}\n{}", path.display(), above.trim_end()),
    };
    (quote, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_failed_is_quoted_and_the_cause_is_last() {
        let path = Path::new("/up.log");
        let text =
            format!("INFO redis runs\n{QUOTE_MARK}/agent.log\nERROR no\nwrenn: Wrenn did not start: no");
        let (quote, cause) = told(&text, path);
        assert_eq!(quote, format!("{QUOTE_MARK}/agent.log\nERROR no"));
        assert_eq!(cause.as_deref(), Some("Wrenn did not start: no"));
        let (quote, cause) = told("INFO one", path);
        assert_eq!((quote, cause), (format!("{QUOTE_MARK}/up.log\nINFO one"), None));
    }
}
