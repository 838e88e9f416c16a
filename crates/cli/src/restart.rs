// SPDX-License-Identifier: Apache-2.0
//! `wrenn restart`: ends the processes of `wrenn up` and starts them again in the background, with the options and the
//! environment that they had, as after an upgrade of the program. The sandboxes run on.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{config::Config, down, layout::Layout, signals::Ending, status};

/// Runs `wrenn restart`.
pub(crate) async fn run(config: &Config) -> Result<u8> {
    let layout = Layout::new(&config.machine().state_dir);
    let up = status::running(&layout)?.context("Wrenn does not run: start it by `wrenn up`")?;
    let mut up = start_again(up.pid)?;
    down::stop(config, Ending::Leave).await?;
    let started = tokio::task::spawn_blocking(move || up.status());
    let status = started.await?.context("cannot start `wrenn up`")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Command of this program as the `wrenn up` with this process id was started.
fn start_again(pid: i32) -> Result<Command> {
    let read = |file: &str| -> Result<Vec<OsString>> {
        let path = format!("/proc/{pid}/{file}");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {path}: run it with sudo"))?;
        let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
        Ok(parts.map(|part| OsStr::from_bytes(part).to_owned()).collect())
    };
    let args: Vec<_> = read("cmdline")?.into_iter().skip(1).filter(|arg| arg != "--detach").collect();
    ensure!(args.iter().any(|arg| arg == "up"), "process {pid} is no `wrenn up`");
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wrenn").args(args).arg("--detach").env_clear();
    for variable in read("environ")? {
        let bytes = variable.as_bytes();
        if let Some(at) = bytes.iter().position(|byte| *byte == b'=') {
            command.env(OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]));
        }
    }
    Ok(command)
}
