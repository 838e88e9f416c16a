// SPDX-License-Identifier: Apache-2.0
//! `wrenn run`: runs a command in a new sandbox, and removes the sandbox in any case.

use anyhow::Result;
use wrenn_api::ExecRequest;
use wrenn_client::Client;

use crate::{
    creation::{self, Key, New, create},
    exec,
    output::{Format, note},
    signals::{Stop, exit_status},
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  wrenn run python3 -c 'print(6*7)'
  wrenn run --memory 1g -e MODE=test -- sh -c 'echo $MODE'
  wrenn run -u root -w / mkdir /data
  wrenn run --port 8000 -- python3 -m http.server 8000";

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
    /// Returns the request for the command; its variables are those of the sandbox.
    pub(crate) fn command_request(&self) -> Result<ExecRequest> {
        self.command.request(&[])
    }
}

/// Runs `wrenn run`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let request = args.command_request()?;
    let (sandbox, mut stopped) = create(client, &args.new.request(), &Key::own(), &mut stop).await?;
    let mut result = Ok(0);
    if stopped.is_none() {
        let ran = async {
            for port in &args.ports {
                let url = client.port(sandbox.id, *port).await?.browser_url;
                note(&format!("wrenn: port {port} is {url}"));
            }
            exec::run(client, sandbox.id, &request, format).await
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
