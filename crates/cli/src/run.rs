//! `wrenn run`: a sandbox for one command, removed in any case.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use tokio::time::sleep;
use wrenn_api::{CreateSandbox, ExecRequest, SandboxId};
use wrenn_client::Client;

use crate::{
    exec,
    output::{Format, note},
    signals::{Stop, exit_status},
};

/// How often the removal of the sandbox is tried, and the wait in between.
const REMOVALS: u32 = 4;
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

/// What a new sandbox is to be.
#[derive(Debug, clap::Args)]
pub(crate) struct New {
    /// The template to start from
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// A variable for every process in the sandbox; may be repeated
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = variable)]
    envs: Vec<(String, String)>,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u32>,
    /// Size of the root file system in MiB
    #[arg(long, value_name = "MIB")]
    disk_size_mb: Option<u32>,
}

/// What `wrenn run` was asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    new: New,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Reads `NAME=VALUE`.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// The request for a command line.
pub(crate) fn command(words: &[String], envs: &[(String, String)]) -> Result<ExecRequest> {
    let (cmd, args) = words.split_first().context("no command: write it behind --")?;
    let envs: BTreeMap<String, String> = envs.iter().cloned().collect();
    Ok(ExecRequest { cmd: cmd.clone(), args: args.to_vec(), envs, ..ExecRequest::default() })
}

impl New {
    /// The request for the sandbox.
    pub(crate) fn request(&self) -> CreateSandbox {
        CreateSandbox {
            template: self.template.clone(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_size_mb: self.disk_size_mb,
            envs: self.envs.iter().cloned().collect(),
        }
    }
}

/// A key that makes a repeated request the same request.
pub(crate) fn idempotency_key() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Runs `wrenn run`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let request = command(&args.command, &[])?;
    let (id, mut stopped) = create(client, &args.new, &mut stop).await?;
    let mut result = Ok(0);
    if stopped.is_none() {
        tokio::select! {
            ran = exec::run(client, id, &request, format) => result = ran,
            name = stop.received() => stopped = Some(name),
        }
    }
    let removed = tokio::select! {
        removed = remove(client, id) => removed,
        name = stop.received() => {
            stopped = Some(name);
            Err(anyhow::anyhow!("sandbox {id} may still exist: wrenn sandbox rm {id}"))
        }
    };
    let status = result?;
    match (removed, stopped) {
        (Err(error), _) if status == 0 && stopped.is_none() => Err(error),
        (removed, stopped) => {
            if let Err(error) = removed {
                note(&format!("wrenn: {error:#}"));
            }
            Ok(stopped.map_or(status, exit_status))
        }
    }
}

/// Creates the sandbox. When a signal comes meanwhile, its end is awaited all the same, because only then
/// is it known what to remove; a second signal gives up.
async fn create(client: &Client, new: &New, stop: &mut Stop) -> Result<(SandboxId, Option<&'static str>)> {
    let (request, key) = (new.request(), idempotency_key());
    let mut creation = std::pin::pin!(client.create(&request, Some(&key)));
    let name = tokio::select! {
        created = &mut creation => return Ok((created?.id, None)),
        name = stop.received() => name,
    };
    note("wrenn: waiting for the sandbox, to remove it; once more to leave it");
    tokio::select! {
        created = creation => Ok((created?.id, Some(name))),
        _ = stop.received() => anyhow::bail!("the sandbox may come to exist: see wrenn sandbox ls"),
    }
}

async fn remove(client: &Client, id: SandboxId) -> Result<()> {
    let mut attempt = 1;
    loop {
        match client.delete(id).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some("not_found") => return Ok(()),
            Err(error) if attempt == REMOVALS => {
                return Err(error)
                    .with_context(|| format!("sandbox {id} is not removed: wrenn sandbox rm {id}"));
            }
            Err(_) => sleep(REMOVAL_WAIT).await,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("=x").is_err() && variable("A").is_err());
    }

    #[test]
    fn the_first_word_is_the_program() -> Result<()> {
        let words = ["python3".to_owned(), "-c".to_owned(), "1".to_owned()];
        let request = command(&words, &[])?;
        assert_eq!((request.cmd.as_str(), request.args.len()), ("python3", 2));
        assert!(command(&[], &[]).is_err());
        Ok(())
    }
}
