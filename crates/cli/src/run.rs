// SPDX-License-Identifier: Apache-2.0
//! `wrenn run`: runs a command in a new sandbox, and removes the sandbox in any case: if this program is killed, the control
//! plane does, once the sandbox was idle for a while. With `--detach` both go on by themselves.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_api::{CreateSandbox, OnTimeout, Sandbox, SandboxId};
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
  wrenn run -d --name web --port 8000 -- python3 -m http.server 8000
  wrenn run --image python:3.12-slim -- python3 -c 'print(6*7)'
  wrenn run --image ghcr.io/team/app:1.2 --registry-user robot      what the image runs; the token is WRENN_REGISTRY_PASSWORD

The sandbox is removed when the command ends, or this program is interrupted; if this program is killed, once it was not used for 2 minutes (--idle-timeout).
With -d it stays.";

/// Options of `wrenn run`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("command", |command| command.required(false).required_unless_present("image")))]
pub(crate) struct Args {
    #[command(flatten)]
    new: New,
    /// Print the URL of this port of the sandbox to standard error; may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Start the command in the background and print the id of the sandbox, which stays; `logs`, `attach` and `rm` take it
    #[arg(long, short = 'd', conflicts_with = "tty")]
    detach: bool,
    #[command(flatten)]
    command: exec::Program,
}

impl Args {
    /// Returns the request for the sandbox, which does not stay if this program does not remove it, unless it is detached.
    fn sandbox_request(&self) -> Result<CreateSandbox> {
        let mut request = self.new.request()?;
        if !self.detach {
            request.timeout_sec.get_or_insert(IDLE);
            request.on_timeout.get_or_insert(OnTimeout::Delete);
        }
        Ok(request)
    }

    /// Returns the command as it is given.
    #[cfg(test)]
    pub(crate) fn command(&self) -> Result<exec::Command> {
        self.command.command(BTreeMap::new(), Leaving::Ends)
    }

    /// Returns the program to run in a sandbox: if none is given, what its image runs.
    fn program(&self, sandbox: &Sandbox) -> Result<exec::Program> {
        let of_image = sandbox.image.as_ref().map(|image| image.command.as_slice()).unwrap_or_default();
        let program = self.command.clone().or(of_image);
        let template = &sandbox.template;
        ensure!(
            program.is_given(),
            "the image {template} names nothing to run: write it, as in `wrenn run --image {template} -- sh`"
        );
        Ok(program)
    }

    /// Prints the URLs of the ports.
    async fn tell_ports(&self, client: &Client, id: SandboxId) -> Result<()> {
        for port in &self.ports {
            let url = client.port(id, *port).await?.browser_url;
            note(&format!("wrenn: port {port} is {url}"));
        }
        Ok(())
    }

    /// Starts the program in the background.
    async fn start(
        &self,
        client: &Client,
        sandbox: &Sandbox,
        program: &exec::Program,
        format: Format,
    ) -> Result<()> {
        let request = program.background(BTreeMap::new(), None)?;
        let process = client.start_process(sandbox.id, &request).await?;
        self.tell_ports(client, sandbox.id).await?;
        let told = json!({"sandbox": sandbox, "process": process});
        format.print(&told, || sandbox.id.to_string())
    }
}

/// Runs `wrenn run`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let (wanted, key) = (args.sandbox_request()?, Key::own());
    let (sandbox, mut stopped) = during(args.new.work(), create(client, &wanted, &key, &mut stop)).await?;
    let mut result = Ok(0);
    if stopped.is_none() {
        let ran = async {
            let program = args.program(&sandbox)?;
            if args.detach {
                return args.start(client, &sandbox, &program, format).await.map(|()| 0);
            }
            args.tell_ports(client, sandbox.id).await?;
            // Its variables are those of the sandbox.
            let command = program.command(BTreeMap::new(), Leaving::Ends)?;
            exec::run(client, sandbox.id, &command, format).await
        };
        tokio::select! {
            ran = ran => result = ran,
            name = stop.received() => stopped = Some(name),
        }
    }
    if args.detach && stopped.is_none() && result.is_ok() {
        return result;
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
