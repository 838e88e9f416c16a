// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox logs`: shows the output of a process that runs in the background.

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt as _;
use wrenn_api::{ProcessInfo, SandboxId, SandboxRef};
use wrenn_client::{Client, ProcessEvent, ProcessStream};

use super::find;
use crate::{
    failure::Failure,
    output::{note, reader_gone},
};

/// Text after the help.
pub(super) const EXAMPLES: &str = "\
The output is that of a process which `exec --detach` started, as much of it as is kept: the last MiB, and for ten minutes after
its end. Standard output and standard error stay apart. The sandbox's console has no log here.

Examples:
  wrenn sandbox exec --detach --tag web ID python3 -m http.server
  wrenn sandbox logs ID web -f";

/// Arguments of `wrenn sandbox logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The sandbox: its id, the beginning of it, or its name
    id: SandboxRef,
    /// The process: its id or its tag; can be left out if only one runs
    process: Option<String>,
    /// Go on with what the process writes, until it ends
    #[arg(long, short = 'f')]
    follow: bool,
}

/// Runs `wrenn sandbox logs`.
pub(super) async fn run(client: &Client, args: &Args) -> Result<u8> {
    let id = find(client, &args.id).await?;
    let process = match &args.process {
        Some(process) => process.clone(),
        None => only(&client.processes(id).await?)?,
    };
    let until = if args.follow { u64::MAX } else { written(client, id, &process).await? };
    let stream = client.process_stream(id, &process, "beginning").await?;
    match copy(stream, until).await {
        Err(error) if reader_gone(&error) => Ok(0),
        result => result.map(|()| 0),
    }
}

/// The tag or the id of the only process.
fn only(all: &[ProcessInfo]) -> Result<String> {
    let name = |process: &ProcessInfo| process.tag.clone().unwrap_or_else(|| process.pid.to_string());
    match all {
        [] => {
            let message = "no process runs that was started through the API: name the one that has ended by its tag or its id";
            Err(Failure::new("no_process", message).into())
        }
        [one] => Ok(name(one)),
        several => {
            let names: Vec<_> = several.iter().map(name).collect();
            let message = format!("several processes run: name one of {}", names.join(", "));
            Err(Failure::new("ambiguous_process", message).into())
        }
    }
}

/// How many bytes a process has written.
async fn written(client: &Client, id: SandboxId, process: &str) -> Result<u64> {
    let mut stream = client.process_stream(id, process, "now").await?;
    match stream.next().await? {
        Some(ProcessEvent::Start { offset, .. }) => Ok(offset),
        _ => bail!("the process's stream did not begin with its start"),
    }
}

/// Copies the output of a process up to so many bytes since its start, or up to its end.
async fn copy(mut stream: ProcessStream, until: u64) -> Result<()> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut place = 0;
    while place < until {
        match stream.next().await? {
            Some(ProcessEvent::Start { offset, .. }) => {
                if offset > 0 {
                    note(&format!("wrenn: the first {offset} bytes are no longer kept"));
                }
                place = offset;
            }
            Some(ProcessEvent::Stdout(bytes)) => {
                place += bytes.len() as u64;
                stdout.write_all(&bytes).await.context("cannot write to standard output")?;
                stdout.flush().await.context("cannot write to standard output")?;
            }
            Some(ProcessEvent::Stderr(bytes)) => {
                place += bytes.len() as u64;
                stderr.write_all(&bytes).await.context("cannot write to standard error")?;
                stderr.flush().await.context("cannot write to standard error")?;
            }
            Some(ProcessEvent::Lost { bytes }) => {
                place += bytes;
                note(&format!("wrenn: {bytes} bytes of the output are missing here"));
            }
            Some(ProcessEvent::InputClosed { .. }) => {}
            Some(ProcessEvent::Exit { .. }) | None => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, tag: Option<&str>) -> ProcessInfo {
        let value =
            serde_json::json!({"pid": pid, "tag": tag, "cmd": "x", "started_at": "2026-01-31T09:30:00Z"});
        serde_json::from_value(value).expect("a process")
    }

    #[test]
    fn a_process_need_not_be_named_if_it_is_the_only_one() {
        assert_eq!(only(&[process(7, Some("web"))]).ok().as_deref(), Some("web"));
        assert_eq!(only(&[process(7, None)]).ok().as_deref(), Some("7"));
        let told = |all: &[ProcessInfo]| only(all).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told(&[process(7, Some("web")), process(8, None)]).contains("web, 8"));
        assert!(told(&[]).contains("no process runs"));
    }
}
