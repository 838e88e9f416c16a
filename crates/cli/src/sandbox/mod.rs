// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox`: commands for single sandboxes.

mod copy;
mod files;
mod forward;
mod list;
mod logs;
mod reference;
mod remove;
mod stats;
mod top;

use anyhow::Result;
use serde_json::json;
use wrenn_api::{OnTimeout, ProcessInfo, ResumeSandbox, SandboxRef, Signal, UpdateSandbox};
use wrenn_client::Client;

pub(crate) use self::reference::find;
use crate::{
    creation::{self, Key, New, label, seconds},
    exec,
    output::{self, Format, fields, note, time},
    progress::during,
    signals::{Stop, exit_status},
    stdin,
    terminal::{self, Leaving},
    variables::Variables,
};

/// Text after the help of `exec`.
const EXEC_EXAMPLES: &str = "\
Examples:
  wrenn sandbox exec ID python3 -c 'print(6*7)'     ID is the sandbox's id, the beginning of it, or its name
  wrenn sandbox exec -it ID bash
  wrenn sandbox exec -u root ID -- apt-get update
  tar c project | wrenn sandbox exec ID -- tar x
  wrenn sandbox exec -d --tag web ID -- python3 -m http.server";
/// Text after the help of `cp`.
const CP_EXAMPLES: &str = "\
Files and directories are copied with their modes, into a directory that exists, and else as the destination. DIR/. is what is
in a directory. `-` is standard input or output; a directory goes to standard output as a tar archive.

Examples:
  wrenn sandbox cp main.py ID:              into the home directory
  wrenn sandbox cp src/*.py tests ID:/tmp/  into a directory
  wrenn sandbox cp project/. ID:/work       what is in a directory
  wrenn sandbox cp 'ID:/var/log/*.log' logs
  wrenn sandbox cp ID:/etc/hostname -       to standard output
  wrenn sandbox cp ID:/etc - | tar t";

/// Text after the help of `create`.
const CREATE_EXAMPLES: &str = "\
Examples:
  wrenn sandbox create --name web --memory 1g
  wrenn sandbox create --template app:next -e MODE=test
  wrenn sandbox create --image python:3.12-slim
  echo $TOKEN | wrenn sandbox create --image ghcr.io/team/app:1 --registry-user robot --registry-password-stdin

The program of an image is not started; `wrenn run --image` runs it.";
/// Text after the help of `ls`.
const LS_EXAMPLES: &str = "\
Examples:
  wrenn sandbox ls --label branch=main --status running
  wrenn sandbox ls --all                            deleted ones too, of which records are kept
  for id in $(wrenn sandbox ls -q); do ...; done

Without --quiet and --json, ids are cut where they are still different; every command takes them so.";
/// Text after the help of `rm`.
const RM_EXAMPLES: &str = "\
Examples:
  wrenn sandbox rm web sb03halx8f                   by name, and by the beginning of an id
  wrenn sandbox rm --label branch=main --yes
  wrenn sandbox rm --all

Exit status: 0 if all were removed, 1 if not, 2 if the command line is wrong.";

/// Text after the help of `forward`.
const FORWARD_EXAMPLES: &str = "\
Examples:
  wrenn sandbox forward ID 8080:8000        http://127.0.0.1:8080 is port 8000 of the sandbox
  wrenn sandbox forward ID 5432             psql -h 127.0.0.1 reaches the sandbox's database";

/// Subcommands of `wrenn sandbox`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and print its id
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        #[command(flatten)]
        new: New,
        /// Create at most one sandbox for this key: repeating it within 24 hours prints the same id
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// List the sandboxes
    #[command(visible_alias = "list", after_help = LS_EXAMPLES)]
    Ls(list::Args),
    /// Show one sandbox
    Get {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
    },
    /// Run a command in a sandbox
    #[command(after_help = EXEC_EXAMPLES, after_long_help = format!("{EXEC_EXAMPLES}\n\n{}", exec::EXIT_STATUS))]
    Exec {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        #[command(flatten)]
        variables: Variables,
        /// Start the command in the background and print its tag; it runs on by itself
        #[arg(long, short = 'd')]
        detach: bool,
        /// Name of the process for `ps`, `kill` and `attach`; with --detach, the default is proc- and 8 hexadecimal digits
        #[arg(long, value_name = "TAG")]
        tag: Option<String>,
        #[command(flatten)]
        command: exec::Program,
    },
    /// Open a shell in a sandbox, in a terminal
    #[command(alias = "shell")]
    Connect {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Run as this user of the sandbox instead of the template's default one: NAME, UID, NAME:GROUP
        #[arg(long, short = 'u', value_name = "NAME")]
        user: Option<String>,
    },
    /// List the running processes of a sandbox that were started through the API; without a sandbox, list the sandboxes
    Ps {
        /// The sandbox: its id, the beginning of it, or its name
        id: Option<SandboxRef>,
    },
    /// Show what sandboxes use: processor, memory, disk and network, as it was measured last
    Stats(stats::Args),
    /// Show what sandboxes use, drawn again every second
    #[command(after_help = top::EXAMPLES)]
    Top(top::Args),
    /// Show the output of a process that runs in the background
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Args),
    /// End a process of a sandbox with all its descendants, or send them another signal
    Kill {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The process: its id or its tag
        process: String,
        /// The signal, by name or number
        #[arg(long, short = 's', value_name = "SIGNAL", default_value = "TERM")]
        signal: Signal,
    },
    /// Show the output of a process and pass standard input on to it, until it ends; it goes on when this is interrupted. A
    /// terminal shows the same screen again
    Attach {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The process: its id or its tag
        process: String,
        /// Where its output begins: beginning (default), now, or a number of bytes since its start; of a terminal, its bare
        /// output
        #[arg(long, value_name = "WHERE", value_parser = place)]
        from: Option<String>,
        /// Pass standard input on even if it is a terminal
        #[arg(long, short = 'i', conflicts_with = "no_stdin")]
        interactive: bool,
        /// Pass no standard input on
        #[arg(long, short = 'n')]
        no_stdin: bool,
    },
    /// Work with the files of a sandbox
    #[command(subcommand)]
    Files(files::Command),
    /// Copy files and directories into or out of a sandbox
    #[command(after_help = CP_EXAMPLES)]
    Cp(copy::Args),
    /// Print the URL of a port of a sandbox; unless its ports are public, the URL has the token that it needs
    Url {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Forward a TCP port of this machine to a port of a sandbox, until interrupted
    #[command(after_help = FORWARD_EXAMPLES)]
    Forward {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The port of this machine, on 127.0.0.1, and that of the sandbox; one number for both
        #[arg(value_name = "LOCAL:REMOTE")]
        ports: forward::Pair,
    },
    /// Pause a sandbox: its memory is written to the disk, and it runs nothing
    Pause {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
    },
    /// Resume a paused sandbox: its processes go on
    Resume {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Boot it from its disk instead of letting it go on; also for one that has failed
        #[arg(long)]
        from_disk: bool,
        /// Change the time without use after which it is paused: seconds, or with a unit, such as 10m; 0 is never
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        idle_timeout: Option<u32>,
    },
    /// Put off the pause of a sandbox with an idle timeout
    Ping {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
    },
    /// Change a sandbox
    Set {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The time without use after which it is paused: seconds, or with a unit, such as 10m; 0 is never
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        idle_timeout: Option<u32>,
        /// What becomes of it then: pause or delete
        #[arg(long, value_name = "ACTION")]
        on_timeout: Option<OnTimeout>,
        /// New name; an empty one takes its name away
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Add or change a label; may be repeated
        #[arg(long = "label", short = 'l', value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Remove a label; may be repeated
        #[arg(long = "remove-label", value_name = "NAME")]
        removed_labels: Vec<String>,
        /// Whether a command, a file request or a request to a port resumes it when it is paused
        #[arg(long, value_name = "BOOL")]
        auto_resume: Option<bool>,
        /// Whether everybody may use its ports
        #[arg(long, value_name = "BOOL")]
        public_ports: Option<bool>,
    },
    /// Remove sandboxes
    #[command(visible_alias = "delete", after_help = RM_EXAMPLES)]
    Rm(remove::Args),
    /// Remove the sandboxes that have failed, also their disks; the records of removed ones go by themselves
    Prune(remove::PruneArgs),
}

/// Runs `wrenn sandbox`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { new, idempotency_key } => {
            return create(client, new, idempotency_key.as_deref(), format).await;
        }
        Command::Ls(args) => list::run(client, args, format).await?,
        Command::Ps { id: None } => list::run(client, &list::Args::default(), format).await?,
        Command::Get { id } => {
            let sandbox = client.get(id.clone()).await?;
            format.print(&sandbox, || fields(&sandbox))?;
        }
        Command::Exec { id, variables, detach: true, tag, command } => {
            let request = command.background(variables.all()?, tag.as_deref())?;
            let started = client.start_process(find(client, id).await?, &request).await?;
            format.print(&started, || started.tag.clone())?;
        }
        Command::Stats(args) => stats::run(client, args, format).await?,
        Command::Top(args) => return top::run(client, args, format).await,
        Command::Logs(args) => return logs::run(client, args).await,
        Command::Ps { id: Some(id) } => {
            let all = client.processes(find(client, id).await?).await?;
            format.print(&all, || processes(&all))?;
        }
        Command::Kill { id, process, signal } => {
            let reached = client.signal_process(find(client, id).await?, process, *signal).await?;
            format.print(&reached, String::new)?;
        }
        Command::Connect { id, user } => {
            let id = find(client, id).await?;
            let mut stop = Stop::new()?;
            return tokio::select! {
                status = terminal::shell(client, id, user.clone()) => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Attach { id, process, from, interactive, no_stdin } => {
            let (id, input) = (find(client, id).await?, stdin::is_passed_on(*interactive, *no_stdin));
            let mut stop = Stop::new()?;
            let attached = async {
                if from.is_none() && format == Format::Text && terminal::is_one(client, id, process).await? {
                    return terminal::connect(client, id, process).await;
                }
                let from = from.as_deref().unwrap_or("beginning");
                exec::attach(client, id, process, from, input, format).await
            };
            return tokio::select! {
                status = attached => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Exec { id, variables, detach: false, tag, command } => {
            let mut command = command.command(variables.all()?, Leaving::Stays)?;
            command.request.tag.clone_from(tag);
            let id = find(client, id).await?;
            let mut stop = Stop::new()?;
            // Closing the connection kills the command.
            return tokio::select! {
                status = exec::run(client, id, &command, format) => status,
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Files(what) => return files::run(client, what, format).await,
        Command::Cp(args) => {
            let mut stop = Stop::new()?;
            let copied = tokio::select! {
                copied = copy::run(client, args) => copied?,
                // What is not complete is removed.
                name = stop.received() => return Ok(exit_status(name)),
            };
            // Standard output may be the target of the copy.
            if !args.to_stdout() {
                format.print(&copied, String::new)?;
            }
        }
        Command::Url { id, port } => {
            let address = client.port(find(client, id).await?, *port).await?;
            format.print(&address, || address.browser_url.clone())?;
        }
        Command::Forward { id, ports } => {
            let id = find(client, id).await?;
            let mut stop = Stop::new()?;
            return tokio::select! {
                ended = forward::run(client, id, *ports, format) => ended.map(|()| 0),
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Pause { id } => {
            let sandbox = during("pausing the sandbox", client.pause(find(client, id).await?)).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Resume { id, from_disk, idle_timeout } => {
            let how = ResumeSandbox { timeout_sec: *idle_timeout, memory: from_disk.then_some(false) };
            let sandbox =
                during("resuming the sandbox", client.resume(find(client, id).await?, &how)).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Ping { id } => {
            let id = find(client, id).await?;
            client.ping(id).await?;
            format.print(&json!({ "id": id }), || id.to_string())?;
        }
        Command::Set {
            id,
            idle_timeout,
            on_timeout,
            name,
            labels,
            removed_labels,
            auto_resume,
            public_ports,
        } => {
            let added = labels.iter().cloned().map(|(name, value)| (name, Some(value)));
            let removed = removed_labels.iter().cloned().map(|name| (name, None));
            let update = UpdateSandbox {
                name: name.clone(),
                labels: added.chain(removed).collect(),
                timeout_sec: *idle_timeout,
                on_timeout: *on_timeout,
                auto_resume: *auto_resume,
                public_ports: *public_ports,
            };
            let sandbox = client.update(find(client, id).await?, &update).await?;
            format.print(&sandbox, || sandbox.id.to_string())?;
        }
        Command::Rm(args) => return remove::run(client, args, format).await,
        Command::Prune(args) => return remove::prune(client, args, format).await,
    }
    Ok(0)
}

async fn create(client: &Client, new: &New, key: Option<&str>, format: Format) -> Result<u8> {
    let mut stop = Stop::new()?;
    let used = key.map_or_else(Key::own, |key| Key::Given(key.to_owned()));
    let request = new.request()?;
    let (sandbox, stopped) = during(new.work(), creation::create(client, &request, &used, &mut stop)).await?;
    let id = sandbox.id;
    if let Some(name) = stopped {
        if key.is_some() {
            // An earlier request may have created it, and another process may use it.
            note(&format!("wrenn: the sandbox of this idempotency key is {id}; it was not removed"));
        } else {
            creation::remove(client, id).await?;
            note(&format!("wrenn: removed sandbox {id}"));
        }
        return Ok(exit_status(name));
    }
    format.print(&sandbox, || id.to_string())?;
    Ok(0)
}

/// Checks where the output of a process begins.
fn place(text: &str) -> Result<String, String> {
    let known = ["beginning", "now"].contains(&text) || text.parse::<u64>().is_ok();
    if known { Ok(text.to_owned()) } else { Err("write beginning, now or a number of bytes".to_owned()) }
}

fn processes(all: &[ProcessInfo]) -> String {
    let rows = all.iter().map(|process| {
        let command = [std::slice::from_ref(&process.cmd), &process.args].concat().join(" ");
        [
            process.pid.to_string(),
            process.tag.clone().unwrap_or_default(),
            process.user.clone(),
            time(process.started_at),
            output::plain(&command),
        ]
    });
    output::table(["PID", "TAG", "USER", "STARTED", "COMMAND"], rows)
}

/// Creates the client for this configuration.
pub(crate) fn client(config: &crate::config::Config) -> Result<Client> {
    crate::contexts::Target::of(config)?.client()
}
