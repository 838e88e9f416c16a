// SPDX-License-Identifier: Apache-2.0
//! `wrenn run`: runs a command in a new sandbox, and removes the sandbox in any case: if this program is killed, the control
//! plane does, once the sandbox was idle for a while.

use anyhow::Result;
use wrenn_api::{CreateSandbox, OnTimeout};
use wrenn_client::Client;

use crate::{
    creation::{self, Key, New, create},
    exec,
    output::{Format, note},
    progress::during,
    signals::{Stop, exit_status},
    terminal::Leaving,
};

/// Time without use in seconds after which the sandbox is deleted. A command that runs is a use.
const IDLE: u32 = 120;

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  wrenn run python3 -c 'print(6*7)'
  wrenn run --memory 1g -e MODE=test -- sh -c 'echo $MODE'
  wrenn run -u root -w / mkdir /data
  wrenn run -it bash
  echo hello | wrenn run cat
  wrenn run --port 8000 -- python3 -m http.server 8000

The sandbox is removed when the command ends, or this program is interrupted; if this program is killed, once it was not used for 2 minutes (--idle-timeout).";

/// Options of `wrenn run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    new: New,
    /// Print the URL of this port of the sandbox to standard error; may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    #[command(flatten)]
    command: exec::Program,
}

impl Args {
    /// Returns the request for the sandbox, which does not stay if this program does not remove it.
    fn sandbox_request(&self) -> CreateSandbox {
        let mut request = self.new.request();
        request.timeout_sec.get_or_insert(IDLE);
        request.on_timeout.get_or_insert(OnTimeout::Delete);
        request
    }

    /// Returns the command; its variables are those of the sandbox.
    pub(crate) fn command(&self) -> Result<exec::Command> {
        self.command.command(&[], Leaving::Ends)
    }
}

/// Runs `wrenn run`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let command = args.command()?;
    let (wanted, key) = (args.sandbox_request(), Key::own());
    let (sandbox, mut stopped) =
        during("creating the sandbox", create(client, &wanted, &key, &mut stop)).await?;
    let mut result = Ok(0);
    if stopped.is_none() {
        let ran = async {
            for port in &args.ports {
                let url = client.port(sandbox.id, *port).await?.browser_url;
                note(&format!("wrenn: port {port} is {url}"));
            }
            exec::run(client, sandbox.id, &command, format).await
        };
        tokio::select! {
            ran = ran => result = ran,
            name = stop.received() => stopped = Some(name),
        }
    }
    let removed = tokio::select! {
        removed = creation::remove(client, sandbox.id) => removed,
        name = stop.received() => {
            stopped = Some(name);
            let id = sandbox.id;
            Err(anyhow::anyhow!("sandbox {id} may still exist: remove it by `wrenn sandbox rm {id}`"))
        }
    };
    let status = result.map(|status| stopped.map_or(status, exit_status));
    match (removed, status) {
        (Err(error), Ok(0)) => Err(error),
        (Err(error), status) => {
            note(&format!("wrenn: {error:#}"));
            status
        }
        (Ok(()), status) => status,
    }
}
